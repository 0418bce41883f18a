"""layer_norm, rms_norm, l2_normalize and scale: ops with at most one number per column as weights."""

from __future__ import annotations

import numpy as np

from fastattn.errors import ConfigError
from fastattn.graph.cost import FLOAT_BYTES, Cost, Formats, StepShape
from fastattn.graph.ir import Op, Program
from fastattn.graph.op_kind import Floats, OpKind, Run
from fastattn.graph.tensor import Tensor, Weights


def layer_norm(x: Tensor, w: Weights, eps: float) -> Tensor:
    """Compute (x - mean) / sqrt(variance + eps) * weight + bias for each row (Ba et al. 2016)."""
    weights = (w.vector("weight", x.width), w.vector("bias", x.width))
    return x.tracer.emit(LAYER_NORM, (x,), x.rows, x.width, weights=weights, attrs={"eps": eps})


def layer_norm_formula(run: Run, op: Op, x: Floats) -> Floats:
    """Compute what `layer_norm` describes, with the variance in two passes."""
    weight, bias = (run.weights[key].values for key in op.weights)
    centered = x - x.mean(axis=1, keepdims=True)
    variance = (centered**2).mean(axis=1, keepdims=True)
    result: Floats = centered / np.sqrt(variance + float(op.attrs["eps"])) * weight + bias
    return result


def norm_cost(program: Program, op: Op, shape: StepShape, formats: Formats) -> Cost:
    """Count the weight, and the bias if there is one, once."""
    n_floats = sum(program.weights[name].shape[0] for name in op.weights)
    return Cost(weight_bytes=n_floats * FLOAT_BYTES) if shape.rows(program.values[op.output].rows) else Cost()


def rms_norm(x: Tensor, w: Weights, eps: float, *, groups: int = 1) -> Tensor:
    """Compute x / sqrt(mean(x^2) + eps) * weight for each row (Zhang and Sennrich 2019).

    groups: equal parts of a row that are normalized separately, all with the same weight [x.width / groups]. Queries
    and keys that are normalized by head have n_head groups. A family that multiplies by 1 + weight (Gemma) adds the 1
    when it loads the weight. Raises ConfigError if the groups do not divide the width.
    """
    if groups < 1 or x.width % groups:
        raise ConfigError(f"rms_norm: expected a width divisible by {groups}, got {x.width}")
    weights = (w.vector("weight", x.width // groups),)
    return x.tracer.emit(RMS_NORM, (x,), x.rows, x.width, weights=weights, attrs={"eps": eps, "groups": groups})


def rms_norm_formula(run: Run, op: Op, x: Floats) -> Floats:
    """Compute what `rms_norm` describes."""
    weight = run.weights[op.weights[0]].values
    parts = x.reshape(len(x), int(op.attrs["groups"]), len(weight))
    mean = (parts**2).mean(axis=2, keepdims=True)
    result: Floats = (parts / np.sqrt(mean + float(op.attrs["eps"])) * weight).reshape(x.shape)
    return result


def scale(x: Tensor, w: Weights) -> Tensor:
    """Multiply each column by its number of the weight [x.width]."""
    return x.tracer.emit(SCALE, (x,), x.rows, x.width, weights=(w.vector("weight", x.width),))


def l2_normalize_formula(run: Run, op: Op, x: Floats) -> Floats:
    """Compute x / max(||x||, eps), row by row."""
    norm = np.sqrt((x**2).sum(axis=1, keepdims=True))
    result: Floats = x / np.maximum(norm, float(op.attrs["eps"]))
    return result


LAYER_NORM = OpKind(
    name="layer_norm",
    inputs=("x",),
    weights=("weight", "bias"),
    attrs={"eps": float},
    formula=layer_norm_formula,
    cost=norm_cost,
)
RMS_NORM = OpKind(
    name="rms_norm",
    inputs=("x",),
    weights=("weight",),
    attrs={"eps": float, "groups": int},
    formula=rms_norm_formula,
    cost=norm_cost,
)
L2_NORMALIZE = OpKind(name="l2_normalize", inputs=("x",), attrs={"eps": float}, formula=l2_normalize_formula)
SCALE = OpKind(
    name="scale",
    inputs=("x",),
    weights=("weight",),
    formula=lambda run, op, x: x * run.weights[op.weights[0]].values,
    cost=norm_cost,
)
