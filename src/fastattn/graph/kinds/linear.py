"""linear and activation: matrix products, and functions of one number."""

from __future__ import annotations

import numpy as np

from fastattn.formats import FORMATS
from fastattn.graph.cost import FLOAT_BYTES, Cost, Formats, StepShape, weight_bytes
from fastattn.graph.ir import Attr, Op, Program
from fastattn.graph.kinds.activations import ACTIVATIONS, Activation, activated
from fastattn.graph.op_kind import Floats, OpKind, Parameter, Run
from fastattn.graph.quantize import to_bfloat16, to_int8
from fastattn.graph.tensor import Tensor, Weights


def linear(x: Tensor, w: Weights, out_features: int, *, bias: bool | Weights = True) -> Tensor:
    """Compute x @ weight.T + bias, with weight [out_features, x.width] and, if `bias`, bias [out_features].

    bias: True if it is next to the weight in the checkpoint, False if there is none, or the `Weights` that has it.
    """
    place = w if bias is True else bias or None
    weights = (w.matrix(out_features, x.width),) + (() if place is None else (place.vector("bias", out_features),))
    attrs: dict[str, Attr] = {"activation": "none", "has_bias": place is not None, "has_residual": False}
    return x.tracer.emit(LINEAR, (x,), x.rows, out_features, weights=weights, attrs=attrs)


def linear_formula(run: Run, op: Op, x: Floats, residual: Floats | None = None) -> Floats:
    """Compute residual + activation(x @ weight.T + bias)."""
    weight = run.weights[op.weights[0]]
    y = product(x, weight)
    if op.attrs["has_bias"]:
        y = y + run.weights[op.weights[1]].values
    y = activated(str(op.attrs["activation"]), y, weight.form)
    return y if residual is None else residual + y


def product(x: Floats, weight: Parameter) -> Floats:
    """Compute x @ weight.T with both rounded to the weight's format; sums of integers are exact."""
    y: Floats
    if weight.integers is not None:
        rows = to_int8(x.astype(np.float32))
        total = rows.values.astype(np.float64) @ weight.integers.values.astype(np.float64).T
        y = total.astype(x.dtype) * rows.scales[:, None] * weight.integers.scales
    elif FORMATS[weight.form].product == "bfloat16":
        y = to_bfloat16(x.astype(np.float32)).astype(x.dtype) @ weight.values.T.astype(x.dtype)
    else:
        y = x @ weight.values.T
    return y


def linear_cost(program: Program, op: Op, shape: StepShape, formats: Formats) -> Cost:
    """Count one multiply-add per row and weight; the matrix and the bias are read once."""
    width, depth = program.values[op.output].width, program.values[op.inputs[0]].width
    rows = shape.rows(program.values[op.output].rows)
    if not rows:
        return Cost()
    bias_bytes = width * FLOAT_BYTES if op.attrs["has_bias"] else 0
    return Cost(rows * width * depth, weight_bytes(op, formats, width, depth) + bias_bytes)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply an elementwise function."""
    if activation == "none":
        return x
    return x.tracer.emit(ACTIVATION, (x,), x.rows, x.width, attrs={"activation": activation})


def activation_formula(run: Run, op: Op, x: Floats) -> Floats:
    """Compute activation(x), with the coarser gelu if x comes from a linear that is not float32, as if fused."""
    source = run.sources.get(op.inputs[0])
    form = "float32"
    if source is not None and source.kind == "linear":
        plain = source.attrs["activation"] == "none" and not source.attrs["has_residual"]
        form = run.weights[source.weights[0]].form if plain else form
    return activated(str(op.attrs["activation"]), x, form)


LINEAR = OpKind(
    name="linear",
    inputs=("x", "residual"),
    weights=("weight", "bias"),
    attrs={"activation": ACTIVATIONS, "has_bias": bool, "has_residual": bool},
    formula=linear_formula,
    cost=linear_cost,
    format=lambda op, formats: formats.weight(op.weights[0]),
)
ACTIVATION = OpKind(name="activation", inputs=("x",), attrs={"activation": ACTIVATIONS}, formula=activation_formula)
