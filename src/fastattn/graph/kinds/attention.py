"""attention, and attention_probs, the maps that explain it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError
from fastattn.formats import FORMATS
from fastattn.graph.cost import Cost, Formats, StepShape
from fastattn.graph.ir import Attr, Op, Program
from fastattn.graph.kinds.rows import ROWS_OF
from fastattn.graph.op_kind import Floats, OpKind, Run
from fastattn.graph.tensor import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layer: int,
    n_head: int,
    causal: bool,
    n_kv_head: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Compute softmax(scale * q @ k.T) @ v for every head within each sequence (Vaswani et al. 2017)."""
    kv_heads = n_kv_head or n_head
    if q.width % n_head or n_head % kv_heads or k.width != v.width or k.width * n_head != q.width * kv_heads:
        raise ConfigError(
            f"attention: {n_head} heads over {kv_heads} do not fit q, k, v of widths {q.width}, {k.width}, {v.width}"
        )
    head_dim = q.width // n_head
    attrs: dict[str, Attr] = {
        "causal": causal,
        "layer": layer,
        "n_head": n_head,
        "n_kv_head": kv_heads,
        "head_dim": head_dim,
        "scale": 1.0 / math.sqrt(head_dim) if scale is None else scale,
        "q_rows": "tokens",
    }
    return q.tracer.emit(ATTENTION, (q, k, v), q.rows, q.width, attrs=attrs)


def attention_formula(run: Run, op: Op, q: Floats, k: Floats, v: Floats) -> Floats:
    """As `attention` says; zeros for a query that sees no key."""
    out = np.zeros_like(q)
    for sequence, (rows, positions) in enumerate(_queries(run, str(op.attrs["q_rows"]))):
        keys, values = _keys_and_values(run, op, sequence, k, v)
        probs = _probs(op, q[rows], positions, keys, len(keys) - _length(run, sequence))
        out[rows] = _join(probs @ _repeat(_heads(values, op), op))
    return out


def attention_probs_formula(run: Run, op: Op, q: Floats, k: Floats) -> list[Floats]:
    """For every sequence [n_head, q_len, kv_len]."""
    maps = []
    for sequence, (rows, positions) in enumerate(_queries(run, "tokens")):
        keys, _ = _keys_and_values(run, op, sequence, k, None)
        maps.append(_probs(op, q[rows], positions, keys, len(keys) - _length(run, sequence)))
    return maps


def softmax(scores: Floats) -> Floats:
    """Compute the softmax over the last axis; a row that sees nothing (all -inf, or empty) is 0."""
    if scores.shape[-1] == 0:
        return scores
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
    total = weights.sum(axis=-1, keepdims=True)
    result: Floats = weights / np.where(total == 0.0, 1.0, total)
    return result


def _length(run: Run, sequence: int) -> int:
    start, end = run.spans[sequence]
    return end - start


def _queries(run: Run, q_rows: str) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the rows of q that are the queries of each sequence, and their positions among its new tokens."""
    queries = []
    for sequence, (start, end) in enumerate(run.spans):
        if q_rows == "tokens":
            rows = np.arange(start, end)
            positions = rows - start
        elif q_rows == "wanted":
            rows = np.flatnonzero((run.step.wanted >= start) & (run.step.wanted < end))
            positions = run.step.wanted[rows].astype(np.intp) - start
        else:
            rows = np.arange(sequence, sequence + (end > start))
            positions = np.full(len(rows), 0 if q_rows == "first" else end - start - 1)
        queries.append((rows, positions))
    return queries


def _keys_and_values(run: Run, op: Op, sequence: int, k: Floats, v: Floats | None) -> tuple[Floats, Floats]:
    """Return all keys and values that a sequence may see, those of its cache first."""
    start, end = run.spans[sequence]
    keys = k[start:end]
    values = keys if v is None else v[start:end]
    if not (op.attrs["causal"] and run.caches):
        return keys, values
    layer = int(op.attrs["layer"])
    past_keys, past_values = run.caches[sequence].past(layer)
    keys, values = np.concatenate([past_keys, keys]), np.concatenate([past_values, values])
    if v is not None:
        run.fresh.append((run.caches[sequence], layer, keys, values))
    return keys, values


def _probs(op: Op, q: Floats, positions: NDArray[np.intp], keys: Floats, past: int) -> Floats:
    """Return the attention probabilities [n_head, q_len, kv_len] of a sequence."""
    queries = _heads(q, op)
    scores = float(op.attrs["scale"]) * (queries @ _repeat(_heads(keys, op), op).transpose(0, 2, 1))
    if op.attrs["causal"]:
        unseen = np.arange(len(keys)) > (positions + past)[:, None]
        scores = np.where(unseen, -np.inf, scores)
    return softmax(scores)


def _heads(x: Floats, op: Op) -> Floats:
    """Reshape [rows, heads * head_dim] to [heads, rows, head_dim]."""
    head_dim = int(op.attrs["head_dim"])
    heads: Floats = x.reshape(len(x), x.shape[1] // head_dim, head_dim).transpose(1, 0, 2)
    return heads


def _repeat(x: Floats, op: Op) -> Floats:
    """Repeat each key or value head for every query head that shares it."""
    return np.repeat(x, int(op.attrs["n_head"]) // int(op.attrs["n_kv_head"]), axis=0)


def _join(x: Floats) -> Floats:
    """Reshape [heads, rows, head_dim] to [rows, heads * head_dim]."""
    heads, rows, head_dim = x.shape
    joined: Floats = x.transpose(1, 0, 2).reshape(rows, heads * head_dim)
    return joined


def attention_cost(program: Program, op: Op, shape: StepShape, formats: Formats) -> Cost:
    """q k^T, and in attention probabilities times v; keys and values of the cache are read once."""
    n_products = 2 if op.kind == "attention" else 1
    multiply_adds = n_products * seen_pairs(op, shape) * int(op.attrs["n_head"]) * int(op.attrs["head_dim"])
    kv = FORMATS[formats.kv]
    row_bytes = int(op.attrs["head_dim"]) * kv.element_bytes + kv.scale_bytes
    n_rows = n_products * int(op.attrs["n_kv_head"]) * sum(shape.past_lens or ())
    return Cost(multiply_adds, kv_bytes=n_rows * row_bytes)


def seen_pairs(op: Op, shape: StepShape) -> float:
    """Return the number of pairs of a query row and a position that it sees, for one head."""
    total = 0.0
    for q_len, past in zip(shape.q_lens, shape.past_lens or (0,) * len(shape.q_lens), strict=True):
        if q_len == 0:
            continue
        kv_len = past + q_len
        selection = op.attrs["q_rows"]
        count = {"tokens": q_len, "wanted": shape.wanted_rows(q_len)}.get(str(selection), 1)
        last_sees = past + 1 if selection == "first" else kv_len
        total += count * (last_sees - (count - 1) / 2) if op.attrs["causal"] else count * kv_len
    return total


_ATTRS: dict[str, type | tuple[str, ...]] = {
    "causal": bool,
    "layer": int,
    "n_head": int,
    "n_kv_head": int,
    "head_dim": int,
    "scale": float,
    "q_rows": tuple(ROWS_OF),
}
ATTENTION = OpKind(
    name="attention",
    inputs=("q", "k", "v"),
    attrs=_ATTRS,
    formula=attention_formula,
    reads="queries",
    cost=attention_cost,
    format=lambda op, formats: formats.kv,
)
ATTENTION_PROBS = OpKind(
    name="attention_probs",
    inputs=("q", "k"),
    attrs=_ATTRS,
    formula=attention_probs_formula,
    reads="all",
    cost=attention_cost,
    format=lambda op, formats: formats.kv,
)
