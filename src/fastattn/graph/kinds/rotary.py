"""rotary: rotates pairs of elements of queries and keys by angles of their tokens' positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError, InputError
from fastattn.graph.cost import Cost, Formats, StepShape, weight_bytes
from fastattn.graph.ir import Attr, Op, Program
from fastattn.graph.kinds.rows import ROWS_OF
from fastattn.graph.op_kind import Floats, OpKind, Run
from fastattn.graph.tensor import Tensor, Weights


def rotary(
    x: Tensor, w: Weights, *, n_head: int, dimensions: int, max_positions: int, interleaved: bool = False
) -> Tensor:
    """Rotate pairs of elements of each head of x by position * frequency (Su et al. 2021).

    The first `dimensions` elements of a head rotate: the pairs (i, i + dimensions / 2) as in Llama and GPT-NeoX, or the
    neighbors (2 i, 2 i + 1) as in GPT-J (`interleaved`). The rest of the head does not change. The weight of `w` is the
    table [max_positions, dimensions] that `fastattn.graph.rotary_table.RotaryTable` computes. All rotary ops of a model
    read the same one. Raises ConfigError for an odd number of dimensions, or one that does not fit x.
    """
    head_dim = x.width // n_head
    if x.rows != "tokens" or x.width % n_head or dimensions % 2 or not 0 < dimensions <= head_dim:
        raise ConfigError(
            f"rotary: expected one row per token and an even number of dimensions of {n_head} heads, got "
            f"{dimensions} dimensions and {x.value}"
        )
    attrs: dict[str, Attr] = {
        "n_head": n_head,
        "head_dim": head_dim,
        "dimensions": dimensions,
        "interleaved": interleaved,
        "rows": "tokens",
    }
    weights = (w.table(max_positions, dimensions, exact=True),)
    return x.tracer.emit(ROTARY, (x,), x.rows, x.width, weights=weights, attrs=attrs)


def pairs(dimensions: int, *, interleaved: bool) -> tuple[slice, slice]:
    """Return where a head has the first and the second elements of its pairs.

    A row of the table has the cosines where a head has the first elements, and the sines where it has the second.
    """
    if interleaved:
        return slice(0, dimensions, 2), slice(1, dimensions, 2)
    return slice(0, dimensions // 2), slice(dimensions // 2, dimensions)


def rotary_formula(run: Run, op: Op, x: Floats) -> Floats:
    """Compute what `rotary` describes. Raises InputError for a position outside the table."""
    table = run.weights[op.weights[0]].values
    positions = _positions(run, str(op.attrs["rows"]))
    for row in np.flatnonzero((positions < 0) | (positions >= len(table))):
        raise InputError(f"positions: expected 0 to {len(table) - 1}, got {positions[row]} in row {row}")
    first, second = pairs(int(op.attrs["dimensions"]), interleaved=bool(op.attrs["interleaved"]))
    heads = x.reshape(len(x), int(op.attrs["n_head"]), int(op.attrs["head_dim"]))
    angles = table[positions][:, None]
    cosine, sine = angles[..., first], angles[..., second]
    result: Floats = heads.copy()
    result[..., first] = heads[..., first] * cosine - heads[..., second] * sine
    result[..., second] = heads[..., second] * cosine + heads[..., first] * sine
    return result.reshape(x.shape)


def _positions(run: Run, rows: str) -> NDArray[np.int32]:
    """Return the positions of the tokens that the rows of x belong to; 0 for the row of an empty sequence."""
    positions = run.step.positions
    if rows == "tokens":
        return positions
    if rows == "wanted":
        return positions[run.step.wanted]
    tokens = ((start if rows == "first" else end - 1) if end > start else None for start, end in run.spans)
    return np.array([0 if token is None else positions[token] for token in tokens], np.int32)


def rotary_cost(program: Program, op: Op, shape: StepShape, formats: Formats) -> Cost:
    """Count one row of the table per token. The first op that reads a table counts it for all."""
    first = next(other for other in program.ops if op.weights[0] in other.weights)
    if op.output != first.output:
        return Cost()
    rows = shape.rows(program.values[op.output].rows)
    return Cost(weight_bytes=weight_bytes(op, formats, rows, int(op.attrs["dimensions"])))


ROTARY = OpKind(
    name="rotary",
    inputs=("x",),
    weights=("table",),
    attrs={"n_head": int, "head_dim": int, "dimensions": int, "interleaved": bool, "rows": tuple(ROWS_OF)},
    formula=rotary_formula,
    reads="positions",
    cost=rotary_cost,
)
