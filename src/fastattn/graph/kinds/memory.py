"""store_memory and cross_attention: keys and values that an encoder writes once and a decoder only reads."""

from __future__ import annotations

import math

import numpy as np

from fastattn.errors import ConfigError, InputError
from fastattn.formats import FORMATS
from fastattn.graph.cost import Cost, Formats, StepShape
from fastattn.graph.ir import Attr, Op, Program
from fastattn.graph.kinds.attention import join_heads, queries_of, repeat_heads, softmax, split_heads
from fastattn.graph.kinds.rows import ROWS_OF
from fastattn.graph.op_kind import Floats, OpKind, Run
from fastattn.graph.tensor import Tensor


def store_memory(k: Tensor, v: Tensor, *, layer: int, n_kv_head: int) -> Tensor:
    """Store the keys and values of all tokens, [n_tokens, n_kv_head * head_dim], in the caches of the step.

    Returns the number of positions of each sequence, [n_sequences, 1], which must be an output of the Program. The
    caches must be empty. Then `Cache.set_memory` makes them the memories of a decoder's caches, whose
    `cross_attention` with the same layer reads them. All attention of the Program comes before, and is not causal.
    """
    if k.value != v.value or k.rows != "tokens" or k.width % n_kv_head:
        raise ConfigError(f"store_memory: {n_kv_head} heads do not fit keys and values {k.value} and {v.value}")
    attrs: dict[str, Attr] = {"layer": layer, "n_kv_head": n_kv_head, "head_dim": k.width // n_kv_head}
    return k.tracer.emit(STORE_MEMORY, (k, v), "sequences", 1, attrs=attrs)


def cross_attention(
    q: Tensor, *, layer: int, n_head: int, n_kv_head: int | None = None, scale: float | None = None
) -> Tensor:
    """Compute softmax(scale * q @ k.T) @ v for every head, with the keys and values of each sequence's memory.

    q [n_tokens, n_head * head_dim] -> the shape of q. A row depends on nothing else in the step. n_kv_head: None for
    n_head. scale: None for 1 / sqrt(head_dim).
    """
    kv_heads = n_kv_head or n_head
    if q.rows != "tokens" or q.width % n_head or n_head % kv_heads:
        raise ConfigError(f"cross_attention: {n_head} heads and {kv_heads} key heads do not fit queries {q.value}")
    head_dim = q.width // n_head
    attrs: dict[str, Attr] = {
        "layer": layer,
        "n_head": n_head,
        "n_kv_head": kv_heads,
        "head_dim": head_dim,
        "scale": 1.0 / math.sqrt(head_dim) if scale is None else scale,
        "rows": "tokens",
    }
    return q.tracer.emit(CROSS_ATTENTION, (q,), q.rows, q.width, attrs=attrs)


def store_memory_formula(run: Run, op: Op, k: Floats, v: Floats) -> Floats:
    """Compute what `store_memory` describes."""
    if len(run.caches) != len(run.spans):
        raise InputError("caches: expected a cache for every sequence, which holds its memory, got none")
    layer = int(op.attrs["layer"])
    for cache, (start, end) in zip(run.caches, run.spans, strict=True):
        if cache.length:
            raise InputError(f"caches: expected empty ones for store_memory, got one of {cache.length} positions")
        run.fresh.append((cache, layer, k[start:end], v[start:end]))
    return np.array([[end - start] for start, end in run.spans], k.dtype).reshape(-1, 1)


def cross_attention_formula(run: Run, op: Op, q: Floats) -> Floats:
    """Compute what `cross_attention` describes."""
    if len(run.caches) != len(run.spans):
        raise InputError("caches: expected a cache for every sequence, which holds its memory, got none")
    out = np.zeros_like(q)
    for sequence, (rows, _) in enumerate(queries_of(run, str(op.attrs["rows"]))):
        memory = run.caches[sequence].memory
        if memory is None:
            raise InputError("caches: expected caches with a memory (see set_memory), got one without")
        keys, values = memory.past(int(op.attrs["layer"]))
        scores = split_heads(q[rows], op) @ repeat_heads(split_heads(keys, op), op).transpose(0, 2, 1)
        out[rows] = join_heads(softmax(float(op.attrs["scale"]) * scores) @ repeat_heads(split_heads(values, op), op))
    return out


def cross_attention_cost(program: Program, op: Op, shape: StepShape, formats: Formats) -> Cost:
    """Count both products with the memory, whose keys and values are read once."""
    lengths = shape.memory_lens or (0,) * len(shape.q_lens)
    multiply_adds, positions = 0.0, 0.0
    for q_len, length in zip(shape.q_lens, lengths, strict=True):
        rows = {"tokens": q_len, "wanted": shape.wanted_rows(q_len)}.get(str(op.attrs["rows"]), min(q_len, 1))
        multiply_adds += 2 * rows * length * int(op.attrs["n_head"]) * int(op.attrs["head_dim"])
        positions += length if rows else 0
    kv = FORMATS[formats.kv]
    row_bytes = int(op.attrs["head_dim"]) * kv.element_bytes + kv.scale_bytes
    return Cost(multiply_adds, kv_bytes=2 * positions * int(op.attrs["n_kv_head"]) * row_bytes)


STORE_MEMORY = OpKind(
    name="store_memory",
    inputs=("k", "v"),
    attrs={"layer": int, "n_kv_head": int, "head_dim": int},
    formula=store_memory_formula,
    reads="all",
)
CROSS_ATTENTION = OpKind(
    name="cross_attention",
    inputs=("q",),
    attrs={"layer": int, "n_head": int, "n_kv_head": int, "head_dim": int, "scale": float, "rows": tuple(ROWS_OF)},
    formula=cross_attention_formula,
    reads="positions",
    cost=cross_attention_cost,
    format=lambda op, formats: formats.kv,
)
