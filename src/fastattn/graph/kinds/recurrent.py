"""lstm and gru, and the attention of one query per sequence: sequence_probs and weighted_sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastattn.errors import ConfigError
from fastattn.formats import FORMATS
from fastattn.graph.cost import FLOAT_BYTES, Cost, Formats, StepShape
from fastattn.graph.ir import Attr, Op, Program
from fastattn.graph.kinds.activations import sigmoid
from fastattn.graph.kinds.linear import product
from fastattn.graph.op_kind import Floats, OpKind, Run
from fastattn.graph.tensor import Tensor, Weights


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear without bias from the hidden units of an LSTM to its output (Sak et al. 2014).

    w: has the weight [width, hidden]. clip: the output is clipped to [-clip, clip]; 0: not at all.
    """

    w: Weights
    width: int
    clip: float = 0.0


def lstm(
    x: Tensor,
    w: Weights,
    hidden: int,
    *,
    bias: bool | Weights = True,
    reverse: bool = False,
    state: Tensor | None = None,
    cells: bool = False,
    cell_clip: float = 0.0,
    projection: Projection | None = None,
) -> Tensor:
    """Run an LSTM over the rows of each sequence (Hochreiter and Schmidhuber 1997); a row per sequence is one step.

    x: the part of the gates that comes from the input, [4 * hidden]: input, forget, cell and output gate, as in torch.
    w: has the weight [4 * hidden, width] of the last output and, if `bias`, the bias; bias: as in `linear`. reverse:
    from the last row to the first. state: first output and cell of each sequence, [width + hidden]; None: zeros. cells:
    whether the rows of the result have the cell after the output. cell_clip: the cell is clipped to [-cell_clip,
    cell_clip]; 0: not at all. Raises ConfigError for widths that do not fit.
    """
    width = hidden if projection is None else projection.width
    attrs: dict[str, Attr] = {
        "width": width,
        "has_projection": projection is not None,
        "cells": cells,
        "cell_clip": cell_clip,
        "projection_clip": 0.0 if projection is None else projection.clip,
    }
    more = () if projection is None else (projection.w.matrix(width, hidden),)
    inputs, weights, common = _cell(x, w, hidden, 4, width, width + hidden, bias, state, reverse)
    out = width + hidden if cells else width
    return x.tracer.emit(LSTM, inputs, x.rows, out, weights=weights + more, attrs=common | attrs)


def gru(
    x: Tensor,
    w: Weights,
    hidden: int,
    *,
    bias: bool | Weights = True,
    reverse: bool = False,
    state: Tensor | None = None,
) -> Tensor:
    """Run a GRU over the rows of each sequence (Cho et al. 2014, in torch's form); a row per sequence is one step.

    x: the part of the gates that comes from the input, [3 * hidden]: reset, update and new gate, as in torch. state:
    first output of each sequence, [hidden]; None: zeros. The rest is as in `lstm`.
    """
    inputs, weights, attrs = _cell(x, w, hidden, 3, hidden, hidden, bias, state, reverse)
    return x.tracer.emit(GRU, inputs, x.rows, hidden, weights=weights, attrs=attrs)


def _cell(
    x: Tensor,
    w: Weights,
    hidden: int,
    gates: int,
    width: int,
    state_width: int,
    bias: bool | Weights,
    state: Tensor | None,
    reverse: bool,
) -> tuple[tuple[Tensor, ...], tuple[str, ...], dict[str, Attr]]:
    """Return inputs, weights and attrs that lstm and gru share."""
    if x.rows == "wanted" or x.width != gates * hidden:
        raise ConfigError(f"gates: expected {gates * hidden} columns for tokens or sequences, got {x.value}")
    if state is not None and (state.rows != "sequences" or state.width != state_width):
        raise ConfigError(f"state: expected {state_width} columns for sequences, got {state.value}")
    place = w if bias is True else bias or None
    weights: tuple[str, ...] = (w.matrix(gates * hidden, width),)
    weights += () if place is None else (place.vector("bias", gates * hidden),)
    attrs: dict[str, Attr] = {
        "hidden": hidden,
        "reverse": reverse,
        "has_state": state is not None,
        "has_bias": place is not None,
    }
    return (x,) if state is None else (x, state), weights, attrs


def _spans(run: Run, op: Op, x: Floats) -> list[tuple[int, int]]:
    """Return begin and end of the rows of each sequence, which has one row if the rows are sequences."""
    tokens = run.rows_of(op.inputs[0]) == "tokens"
    return list(run.spans) if tokens else [(i, i + 1) for i in range(len(x))]


def lstm_formula(run: Run, op: Op, x: Floats, state: Floats | None = None) -> Floats:
    """Compute what `lstm` describes."""
    hidden, width = int(op.attrs["hidden"]), int(op.attrs["width"])
    found = [run.weights[key] for key in op.weights]
    bias = found[1].values if op.attrs["has_bias"] else 0.0
    clip, projection_clip = float(op.attrs["cell_clip"]), float(op.attrs["projection_clip"])
    out = np.zeros((len(x), width + hidden), x.dtype)
    for sequence, (start, end) in enumerate(_spans(run, op, x)):
        h, c = np.zeros((1, width), x.dtype), np.zeros((1, hidden), x.dtype)
        if state is not None:
            h, c = state[sequence : sequence + 1, :width], state[sequence : sequence + 1, width:]
        for row in range(end - 1, start - 1, -1) if op.attrs["reverse"] else range(start, end):
            i, f, g, o = np.split(x[row : row + 1] + (product(h, found[0]) + bias), 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            c = np.clip(c, -clip, clip) if clip else c
            h = sigmoid(o) * np.tanh(c)
            if op.attrs["has_projection"]:
                h = product(h, found[-1])
                h = np.clip(h, -projection_clip, projection_clip) if projection_clip else h
            out[row] = np.concatenate([h[0], c[0]])
    return out if op.attrs["cells"] else out[:, :width]


def gru_formula(run: Run, op: Op, x: Floats, state: Floats | None = None) -> Floats:
    """Compute what `gru` describes."""
    hidden, weight = int(op.attrs["hidden"]), run.weights[op.weights[0]]
    bias = run.weights[op.weights[1]].values if op.attrs["has_bias"] else 0.0
    out = np.zeros((len(x), hidden), x.dtype)
    for sequence, (start, end) in enumerate(_spans(run, op, x)):
        h = np.zeros((1, hidden), x.dtype) if state is None else state[sequence : sequence + 1]
        for row in range(end - 1, start - 1, -1) if op.attrs["reverse"] else range(start, end):
            from_x, from_h = np.split(x[row : row + 1], 3, axis=1), np.split(product(h, weight) + bias, 3, axis=1)
            reset, update = sigmoid(from_x[0] + from_h[0]), sigmoid(from_x[1] + from_h[1])
            h = (1 - update) * np.tanh(from_x[2] + reset * from_h[2]) + update * h
            out[row] = h[0]
    return out


def recurrent_cost(program: Program, op: Op, shape: StepShape, formats: Formats) -> Cost:
    """Count one multiply-add per row and weight; all weights are read once."""
    rows = shape.rows(program.values[op.output].rows)
    if not rows:
        return Cost()
    total = Cost()
    for key in op.weights:
        size = program.weights[key].shape
        if len(size) == 1:
            total += Cost(weight_bytes=size[0] * FLOAT_BYTES)
            continue
        found = FORMATS[formats.weight(key)]
        total += Cost(rows * size[0] * size[1], size[0] * (size[1] * found.element_bytes + found.scale_bytes))
    return total


def sequence_probs(query: Tensor, keys: Tensor, w: Weights | None = None) -> Tensor:
    """Return the probability of each token of a sequence for the query of the sequence, [n_tokens, 1].

    query: one row per sequence; keys: one row per token. The score of a token is the product of query and key (Luong et
    al. 2015) or, with w, the sum of weight * tanh(query + key) with its weight [width] (Bahdanau et al. 2015). The
    probabilities are the softmax over the tokens of the sequence.
    """
    if query.rows != "sequences" or keys.rows != "tokens" or query.width != keys.width:
        raise ConfigError(
            f"sequence_probs: expected sequences and tokens of one width, got {query.value}, {keys.value}"
        )
    weights = () if w is None else (w.vector("weight", query.width),)
    attrs: dict[str, Attr] = {"has_weight": w is not None}
    return query.tracer.emit(SEQUENCE_PROBS, (query, keys), "tokens", 1, weights=weights, attrs=attrs)


def sequence_probs_formula(run: Run, op: Op, query: Floats, keys: Floats) -> Floats:
    """Compute what `sequence_probs` describes."""
    out = np.zeros((len(keys), 1), keys.dtype)
    for sequence, (start, end) in enumerate(run.spans):
        if end > start:
            part = keys[start:end]
            if op.attrs["has_weight"]:
                scores = np.tanh(query[sequence] + part) @ run.weights[op.weights[0]].values
            else:
                scores = part @ query[sequence]
            terms = np.exp(scores - scores.max())
            out[start:end, 0] = terms / terms.sum()
    return out


def weighted_sum(weights: Tensor, x: Tensor) -> Tensor:
    """Return the sum of the rows of each sequence, multiplied by their weights [n_tokens, 1]."""
    if weights.rows != "tokens" or weights.width != 1 or x.rows != "tokens":
        raise ConfigError(f"weighted_sum: expected one weight per token, got {weights.value} for {x.value}")
    return x.tracer.emit(WEIGHTED_SUM, (weights, x), "sequences", x.width)


def weighted_sum_formula(run: Run, op: Op, weights: Floats, x: Floats) -> Floats:
    """Compute what `weighted_sum` describes; zeros for a sequence without tokens."""
    out = np.zeros((len(run.spans), x.shape[1]), x.dtype)
    for sequence, (start, end) in enumerate(run.spans):
        out[sequence] = (weights[start:end] * x[start:end]).sum(axis=0)
    return out


_CELL: dict[str, type] = {"hidden": int, "reverse": bool, "has_state": bool, "has_bias": bool}

LSTM = OpKind(
    name="lstm",
    inputs=("x", "state"),
    weights=("weight", "bias", "projection"),
    attrs=_CELL | {"width": int, "has_projection": bool, "cells": bool, "cell_clip": float, "projection_clip": float},
    formula=lstm_formula,
    reads="all",
    cost=recurrent_cost,
    format=lambda op, formats: formats.weight(op.weights[0]),
)
GRU = OpKind(
    name="gru",
    inputs=("x", "state"),
    weights=("weight", "bias"),
    attrs=_CELL,
    formula=gru_formula,
    reads="all",
    cost=recurrent_cost,
    format=lambda op, formats: formats.weight(op.weights[0]),
)
SEQUENCE_PROBS = OpKind(
    name="sequence_probs",
    inputs=("query", "keys"),
    weights=("weight",),
    attrs={"has_weight": bool},
    formula=sequence_probs_formula,
    reads="all",
)
WEIGHTED_SUM = OpKind(name="weighted_sum", inputs=("weights", "x"), formula=weighted_sum_formula, reads="all")
