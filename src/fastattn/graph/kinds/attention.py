"""attention, and attention_probs, which returns its probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError, ContextLengthError
from fastattn.formats import FORMATS
from fastattn.graph.attention_bias import bias_columns
from fastattn.graph.cost import FLOAT_BYTES, Cost, Formats, StepShape
from fastattn.graph.ir import Attr, Op, Program
from fastattn.graph.kinds.linear import product
from fastattn.graph.kinds.rows import ROWS_OF
from fastattn.graph.op_kind import Floats, OpKind, Parameter, Run
from fastattn.graph.position_tables import PositionTables, column_reach
from fastattn.graph.tensor import Tensor, Weights


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
    window: int = 0,
    softcap: float = 0.0,
    bias: Weights | None = None,
    bias_positions: int = 0,
    tables: PositionTables | None = None,
) -> Tensor:
    """Compute softmax(cap(scale * q @ k.T) + bias) @ v for every head within each sequence (Vaswani et al. 2017).

    q [n_tokens, n_head * head_dim], k and v [n_tokens, n_kv_head * head_dim] -> the shape of q. layer: the index of the
    keys and values in a KV cache. n_kv_head: None for n_head. scale: None for 1 / sqrt(head_dim).
    window: a query at position p attends to position j only if |p - j| < window; 0 means no window. Mistral's
    `sliding_window` is this number. ModernBERT's is `local_attention` // 2 + 1.
    softcap: cap(s) is softcap * tanh(s / softcap), as in Gemma 2, or s if softcap is 0. Not with a bias or tables.
    bias: its weight is the table [n_head, relative positions] of `fastattn.graph.attention_bias`, for sequences of up
    to `bias_positions`. Several layers may read the same one.
    tables: the scores are scale * (q @ k.T + c2p + p2c). c2p of a query at p and a key at j is q times the row of the
    position keys for j - p, and p2c is k times the row of the position queries (He et al. 2020). Raises ConfigError.
    """
    kv_heads = n_kv_head or n_head
    if q.width % n_head or n_head % kv_heads or k.width != v.width or k.width * n_head != q.width * kv_heads:
        raise ConfigError(
            f"attention: {n_head} query heads and {kv_heads} key heads do not fit q, k, v of widths {q.width}, "
            f"{k.width}, {v.width}"
        )
    _check_scores(window, softcap, bias, bias_positions, tables)
    if tables is not None and (causal or bias is not None or kv_heads != n_head):
        raise ConfigError(
            "attention: expected position tables only without causal and bias, and as many key heads as query heads"
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
        "window": window,
        "softcap": float(softcap),
        "has_bias": bias is not None,
        "bias_positions": bias_positions,
        **_position_attrs(tables),
    }
    columns = bias_columns(bias_positions, causal=causal)
    weights: tuple[str, ...] = () if bias is None else (bias.table(n_head, columns, exact=True),)
    if tables is not None:
        weights += tables.weights(n_head, head_dim)
    return q.tracer.emit(ATTENTION, (q, k, v), q.rows, q.width, weights=weights, attrs=attrs)


def _check_scores(
    window: int, softcap: float, bias: Weights | None, bias_positions: int, tables: PositionTables | None
) -> None:
    """Raise ConfigError for arguments that do not fit each other."""
    if window < 0 or (bias_positions < 1 if bias else bias_positions):
        raise ConfigError(
            f"attention: expected a window of at least 0, and bias_positions only with a bias, got {window} and "
            f"{bias_positions}"
        )
    if not 0 <= softcap < math.inf or (softcap and (bias is not None or tables is not None)):
        raise ConfigError(
            f"attention: expected a finite softcap of at least 0, and 0 with a bias or tables, got {softcap}"
        )


def _position_attrs(tables: PositionTables | None) -> dict[str, Attr]:
    return {
        "has_columns": tables is not None,
        "has_position_keys": tables is not None and tables.keys is not None,
        "has_position_queries": tables is not None and tables.queries is not None,
        "n_columns": 0 if tables is None else tables.n_columns,
        "column_positions": 0 if tables is None else tables.positions,
    }


def attention_formula(run: Run, op: Op, q: Floats, k: Floats, v: Floats) -> Floats:
    """Compute what `attention` describes; zeros for a query that attends to no key."""
    out = np.zeros_like(q)
    for sequence, (rows, positions) in enumerate(queries_of(run, str(op.attrs["q_rows"]))):
        keys, values = _keys_and_values(run, op, sequence, k, v)
        probs = _probs(run, op, sequence, q[rows], positions, keys)
        out[rows] = join_heads(probs @ repeat_heads(split_heads(values, op), op))
    return out


def attention_probs_formula(run: Run, op: Op, q: Floats, k: Floats) -> list[Floats]:
    """Return the probabilities [n_maps, q_len, kv_len] of every sequence, of the heads from first_head on."""
    first, count = int(op.attrs["first_head"]), int(op.attrs["n_maps"])
    maps = []
    for sequence, (rows, positions) in enumerate(queries_of(run, "tokens")):
        keys, _ = _keys_and_values(run, op, sequence, k, None)
        maps.append(_probs(run, op, sequence, q[rows], positions, keys)[first : first + count])
    return maps


def softmax(scores: Floats) -> Floats:
    """Compute the softmax over the last axis; a row without a finite score (all -inf, or empty) gives zeros."""
    if scores.shape[-1] == 0:
        return scores
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total == 0.0, 1.0, total)


def _length(run: Run, sequence: int) -> int:
    start, end = run.spans[sequence]
    return end - start


def queries_of(run: Run, q_rows: str) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
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
    """Return all keys and values of a sequence, the cached ones first."""
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


def _probs(run: Run, op: Op, sequence: int, q: Floats, positions: NDArray[np.intp], keys: Floats) -> Floats:
    """Return the attention probabilities [n_head, q_len, kv_len] of a sequence."""
    queries = split_heads(q, op)
    scores = queries @ repeat_heads(split_heads(keys, op), op).transpose(0, 2, 1)
    past = len(keys) - _length(run, sequence)
    relative = np.arange(len(keys)) - (positions + past)[:, None]
    if op.attrs["has_columns"]:
        scores = scores + _position_scores(run, op, sequence, relative, queries, split_heads(keys, op))
    scores = float(op.attrs["scale"]) * scores
    if op.attrs["has_bias"]:
        scores = scores + _biases(run, op, sequence, relative)
    window, softcap = int(op.attrs["window"]), float(op.attrs["softcap"])
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if op.attrs["causal"]:
        scores = np.where(relative > 0, -np.inf, scores)
    if window:
        scores = np.where(np.abs(relative) < window, scores, -np.inf)
    if run.step.key_counts is not None:
        scores = np.where(np.arange(len(keys)) < run.step.key_counts[sequence], scores, -np.inf)
    return softmax(scores)


def _biases(run: Run, op: Op, sequence: int, relative: NDArray[np.intp]) -> Floats:
    """Return the bias [n_head, q_len, kv_len] at relative positions; arbitrary where a causal query does not attend."""
    most = int(op.attrs["bias_positions"])
    if relative.shape[1] > most:
        raise ContextLengthError(f"sequence {sequence}: {relative.shape[1]} positions, the attention bias has {most}")
    table = run.weights[op.weights[0]].values
    return table[:, np.minimum(relative, table.shape[1] - most) + most - 1]


def _position_scores(
    run: Run, op: Op, sequence: int, relative: NDArray[np.intp], queries: Floats, keys: Floats
) -> Floats:
    """Return the scores [n_head, q_len, kv_len] of relative positions, from queries and keys by head."""
    most = int(op.attrs["column_positions"])
    if relative.shape[1] > most:
        raise ContextLengthError(f"sequence {sequence}: {relative.shape[1]} positions, the position tables have {most}")
    table, *matrices = op.weights
    columns = run.weights[table].values[0].astype(np.intp)[relative + column_reach(most)]
    total = np.zeros((len(queries), *relative.shape))
    for head in range(len(queries)):
        rows = slice(head * int(op.attrs["n_columns"]), (head + 1) * int(op.attrs["n_columns"]))
        names = iter(matrices)
        if op.attrs["has_position_keys"]:
            scores = product(queries[head], _rows_of(run.weights[next(names)], rows))
            total[head] += np.take_along_axis(scores, columns, axis=1)
        if op.attrs["has_position_queries"]:
            scores = product(keys[head], _rows_of(run.weights[next(names)], rows))
            total[head] += np.take_along_axis(scores, columns.T, axis=1).T
    return total.astype(queries.dtype)


def _rows_of(weight: Parameter, rows: slice) -> Parameter:
    integers = weight.integers
    if integers is not None:
        integers = replace(integers, values=integers.values[rows], scales=integers.scales[rows])
    return Parameter(weight.form, weight.values[rows], integers)


def split_heads(x: Floats, op: Op) -> Floats:
    """Reshape [rows, heads * head_dim] to [heads, rows, head_dim]."""
    head_dim = int(op.attrs["head_dim"])
    heads: Floats = x.reshape(len(x), x.shape[1] // head_dim, head_dim).transpose(1, 0, 2)
    return heads


def repeat_heads(x: Floats, op: Op) -> Floats:
    """Repeat each key or value head for every query head that shares it."""
    return np.repeat(x, int(op.attrs["n_head"]) // int(op.attrs["n_kv_head"]), axis=0)


def join_heads(x: Floats) -> Floats:
    """Reshape [heads, rows, head_dim] to [rows, heads * head_dim]."""
    heads, rows, head_dim = x.shape
    joined: Floats = x.transpose(1, 0, 2).reshape(rows, heads * head_dim)
    return joined


def attention_cost(program: Program, op: Op, shape: StepShape, formats: Formats) -> Cost:
    """Count q @ k.T and, for attention, probabilities @ v; cached keys and values, and biases, are read once."""
    n_products = 2 if op.kind == "attention" else 1
    seen = [_seen(op, shape, q_len, past) for q_len, past in _lengths(shape)]
    pairs = sum(of_sequence.pairs for of_sequence in seen)
    n_heads = int(op.attrs.get("n_maps", op.attrs["n_head"]))
    multiply_adds = n_products * pairs * n_heads * int(op.attrs["head_dim"])
    kv = FORMATS[formats.kv]
    row_bytes = int(op.attrs["head_dim"]) * kv.element_bytes + kv.scale_bytes
    n_rows = n_products * int(op.attrs["n_kv_head"]) * sum(of_sequence.past for of_sequence in seen)
    relative = max((of_sequence.relative for of_sequence in seen), default=0.0)
    biases = 0.0
    # The first op that reads a table counts it for all.
    if op.weights and op.output == next(o.output for o in program.ops if op.weights[0] in o.weights):
        biases = relative * (int(op.attrs["n_head"]) if op.attrs["has_bias"] else 1)
    cost = Cost(multiply_adds, weight_bytes=biases * FLOAT_BYTES, kv_bytes=n_rows * row_bytes)
    return cost + _tables_cost(op, shape, formats, relative) if op.attrs["has_columns"] else cost


def _tables_cost(op: Op, shape: StepShape, formats: Formats, relative: float) -> Cost:
    """Count the products with the position tables: each query, and each key, with the columns that it needs."""
    heads, head_dim, columns = (int(op.attrs[name]) for name in ("n_head", "head_dim", "n_columns"))
    cost = Cost()
    for name, matrix in zip(_tables_of(op), op.weights[1:], strict=True):
        products = 0
        for length, _ in _lengths(shape):
            queries = {"tokens": length, "wanted": shape.wanted_rows(length)}.get(str(op.attrs["q_rows"]), 1)
            rows, others = (queries, length) if name == "position_keys" else (length, queries)
            products += rows * min(others, columns)
        form = FORMATS[formats.weight(matrix)]
        row_bytes = head_dim * form.element_bytes + form.scale_bytes
        cost += Cost(heads * products * head_dim, weight_bytes=heads * min(relative, columns) * row_bytes)
    return cost


def _tables_of(op: Op) -> list[str]:
    return [name for name in ("position_keys", "position_queries") if op.attrs[f"has_{name}"]]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the query rows of a sequence read: (row, position) pairs, cached positions and relative positions.

    A cache may have a fractional number of positions (see StepShape).
    """

    pairs: float
    past: float
    relative: float


def _lengths(shape: StepShape) -> Iterator[tuple[int, float]]:
    """Yield the new tokens of each sequence that has some, and the positions in its cache."""
    for q_len, past in zip(shape.q_lens, shape.past_lens or (0,) * len(shape.q_lens), strict=True):
        if q_len:
            yield q_len, past


def _seen(op: Op, shape: StepShape, q_len: int, past: float) -> _Seen:
    selection = str(op.attrs["q_rows"])
    count = {"tokens": q_len, "wanted": shape.wanted_rows(q_len)}.get(selection, 1)
    last = past if selection == "first" else past + q_len - 1
    first, end = last - (count - 1), past + q_len - 1
    reach = float(op.attrs["window"]) - 1 if op.attrs["window"] else math.inf
    pairs = count + _sum_up_to(reach, first, count)
    after = 0.0
    if not op.attrs["causal"]:
        pairs += _sum_up_to(reach, end - last, count)
        after = min(reach, end - first)
    return _Seen(pairs, max(0.0, min(past, reach - (first - past))), 1 + min(reach, last) + after)


def _sum_up_to(most: float, first: float, count: int) -> float:
    """Return the sum of min(most, n) for n from `first` to first + count - 1."""
    below = max(0, min(count, math.ceil(most - first))) if most < math.inf else count
    return below * (first + (below - 1) / 2) + (count - below) * (most if count > below else 0.0)


ATTENTION = OpKind(
    name="attention",
    inputs=("q", "k", "v"),
    weights=("bias", "columns", "position_keys", "position_queries"),
    attrs={
        "causal": bool,
        "layer": int,
        "n_head": int,
        "n_kv_head": int,
        "head_dim": int,
        "scale": float,
        "q_rows": tuple(ROWS_OF),
        "window": int,
        "softcap": float,
        "has_bias": bool,
        "bias_positions": int,
        "has_columns": bool,
        "has_position_keys": bool,
        "has_position_queries": bool,
        "n_columns": int,
        "column_positions": int,
    },
    formula=attention_formula,
    reads="queries",
    cost=attention_cost,
    format=lambda op, formats: formats.kv,
)
ATTENTION_PROBS = replace(
    ATTENTION,
    name="attention_probs",
    inputs=("q", "k"),
    attrs={**ATTENTION.attrs, "first_head": int, "n_maps": int},
    formula=attention_probs_formula,
    reads="all",
)
