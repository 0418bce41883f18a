"""The ops that choose, cut and combine rows: embedding, slice, gather_rows, pool, window_rows, features, concat."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from fastattn.errors import ConfigError, InputError
from fastattn.graph.cost import Cost, Formats, StepShape, weight_bytes
from fastattn.graph.ir import Attr, Op, Program, Rows
from fastattn.graph.op_kind import Floats, OpKind, Run
from fastattn.graph.tensor import Index, Tensor, Tracer, Weights

Selection = Literal["wanted", "first", "last"]
Pooling = Literal["mean", "max", "mean_sqrt_len"]
# The kind of rows that a selection of tokens has.
ROWS_OF: Mapping[str, Rows] = {"tokens": "tokens", "wanted": "wanted", "first": "sequences", "last": "sequences"}


def embedding(w: Weights, index: Index, rows: int, width: int, *, offset: int = 0) -> Tensor:
    """Look up row index + offset of a table [rows, width] for every token."""
    attrs: dict[str, Attr] = {"index": index, "offset": offset}
    return w.tracer.emit(EMBEDDING, (), "tokens", width, weights=(w.table(rows, width),), attrs=attrs)


def embedding_formula(run: Run, op: Op) -> Floats:
    """Return rows of the table. Raises InputError for an index outside it."""
    name, offset = str(op.attrs["index"]), int(op.attrs["offset"])
    index = getattr(run.step, name)
    if index is None:
        index = np.zeros(len(run.step.token_ids), np.int32)
    table = run.weights[op.weights[0]].values
    for i in np.flatnonzero((index < -offset) | (index >= len(table) - offset)):
        raise InputError(f"{name}: expected 0 to {len(table) - 1 - offset}, got {index[i]} at token {i}")
    rows: Floats = table[index + offset]
    return rows


def embedding_cost(program: Program, op: Op, shape: StepShape, formats: Formats) -> Cost:
    """Count one row of the table per token."""
    value = program.values[op.output]
    return Cost(weight_bytes=weight_bytes(op, formats, shape.rows(value.rows), value.width))


def split(x: Tensor, parts: int | Sequence[int]) -> tuple[Tensor, ...]:
    """Split the columns of x into equal slices, or into slices of these widths.

    Raises ConfigError if the widths do not add up to that of x.
    """
    if isinstance(parts, int):
        if x.width % parts:
            raise ConfigError(f"split: expected a width divisible by {parts}, got {x.width}")
        parts = (x.width // parts,) * parts
    if sum(parts) != x.width:
        raise ConfigError(f"split: expected widths with the sum {x.width}, got {list(parts)}")
    ends = itertools.accumulate(parts)
    return tuple(
        x.tracer.emit(SLICE, (x,), x.rows, width, attrs={"offset": end - width, "width": width})
        for width, end in zip(parts, ends, strict=True)
    )


def slice_formula(run: Run, op: Op, x: Floats) -> Floats:
    """Return the columns from offset to offset + width - 1."""
    offset = int(op.attrs["offset"])
    return x[:, offset : offset + int(op.attrs["width"])]


def gather_rows(x: Tensor, which: Selection) -> Tensor:
    """Gather the rows that need logits ("wanted"), or the first or last row of every sequence."""
    return x.tracer.emit(GATHER_ROWS, (x,), ROWS_OF[which], x.width, attrs={"which": which})


def gather_rows_formula(run: Run, op: Op, x: Floats) -> Floats:
    """Return the rows; zeros for a sequence without tokens."""
    rows = np.zeros((0, x.shape[1]))
    if op.attrs["which"] == "wanted":
        return x[run.step.wanted]
    for start, end in run.spans:
        row = x[start:end][:1] if op.attrs["which"] == "first" else x[start:end][-1:]
        rows = np.concatenate([rows, row if len(row) else np.zeros((1, x.shape[1]))])
    return rows


def pool(x: Tensor, pooling: Pooling) -> Tensor:
    """Pool each sequence to one row: the mean or maximum of its n rows, or their sum / sqrt(n)."""
    return x.tracer.emit(POOL, (x,), "sequences", x.width, attrs={"pool": pooling})


def pool_formula(run: Run, op: Op, x: Floats) -> Floats:
    """Compute what `pool` describes; zeros for a sequence without tokens."""
    rows = np.zeros((len(run.spans), x.shape[1]))
    for sequence, (start, end) in enumerate(run.spans):
        if end > start:
            part = x[start:end]
            total = part.sum(axis=0)
            found = {
                "max": part.max(axis=0),
                "mean": total / (end - start),
                "mean_sqrt_len": total / math.sqrt(end - start),
            }
            rows[sequence] = found[str(op.attrs["pool"])]
    return rows


def window_rows(x: Tensor, size: int, *, inside: bool = False) -> Tensor:
    """Put the `size` rows around each token next to each other: [n_tokens, size * width].

    size: odd. Row i has the rows i - size // 2 to i + size // 2 of its sequence, with zeros before its first and after
    its last token. A linear over them is a convolution with zero padding (torch.nn.Conv1d, padding=size // 2).
    inside: row i has the rows i to i + size - 1 instead, or the last `size` rows of its sequence if fewer follow. Any
    size is possible. The maximum of a linear over them is that of a convolution without padding.
    """
    if x.rows != "tokens" or size < 1 or (size % 2 == 0 and not inside):
        raise ConfigError(f"window_rows: expected one row per token and an odd size, got {x.rows} and {size}")
    return x.tracer.emit(WINDOW_ROWS, (x,), x.rows, size * x.width, attrs={"size": size, "inside": inside})


def window_rows_formula(run: Run, op: Op, x: Floats) -> Floats:
    """Compute what `window_rows` describes."""
    size, width = int(op.attrs["size"]), x.shape[1]
    rows = np.zeros((len(x), size, width), x.dtype)
    for start, end in run.spans:
        if op.attrs["inside"]:
            for row in range(start, end):
                window = x[max(start, min(row, end - size)) : end][:size]
                rows[row, : len(window)] = window
            continue
        for j in range(size):
            shift = j - size // 2
            first, last = max(start, start - shift), min(end, end - shift)
            if first < last:
                rows[first:last, j] = x[first + shift : last + shift]
    return rows.reshape(len(x), size * width)


def features(tracer: Tracer, index: int, rows: Literal["tokens", "sequences"], width: int) -> Tensor:
    """Return rows of floats that the caller computed: `Step.features[index]`, [n_tokens or n_sequences, width]."""
    return tracer.emit(FEATURES, (), rows, width, attrs={"index": index})


def features_formula(run: Run, op: Op) -> Floats:
    """Return the rows. Raises InputError if the step has none of this shape."""
    index, (rows, width) = int(op.attrs["index"]), run.shape_of(op.output)
    found = run.step.features[index] if index < len(run.step.features) else None
    if found is None or found.shape != (rows, width):
        got = "none" if found is None else list(found.shape)
        raise InputError(f"features: expected {[rows, width]} at index {index}, got {got}")
    result: Floats = found.astype(np.float64)
    return result


def concat(a: Tensor, b: Tensor) -> Tensor:
    """Put the columns of b after those of a."""
    if a.rows != b.rows:
        raise ConfigError(f"concat: expected the same rows, got {a.value} and {b.value}")
    return a.tracer.emit(CONCAT, (a, b), a.rows, a.width + b.width)


EMBEDDING = OpKind(
    name="embedding",
    weights=("table",),
    attrs={"index": get_args(Index), "offset": int},
    formula=embedding_formula,
    reads="all",
    cost=embedding_cost,
)
SLICE = OpKind(name="slice", inputs=("x",), attrs={"offset": int, "width": int}, formula=slice_formula, reads="view")
GATHER_ROWS = OpKind(
    name="gather_rows",
    inputs=("x",),
    attrs={"which": get_args(Selection)},
    formula=gather_rows_formula,
    reads="gather",
)
WINDOW_ROWS = OpKind(
    name="window_rows",
    inputs=("x",),
    attrs={"size": int, "inside": bool},
    formula=window_rows_formula,
    reads="all",
)
FEATURES = OpKind(name="features", attrs={"index": int}, formula=features_formula, reads="all")
CONCAT = OpKind(name="concat", inputs=("a", "b"), formula=lambda run, op, a, b: np.concatenate([a, b], axis=1))
POOL = OpKind(name="pool", inputs=("x",), attrs={"pool": get_args(Pooling)}, formula=pool_formula, reads="all")
