"""The activations: functions of one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np

from fastattn.graph.op_kind import Floats
from fastattn.graph.quantize import rough_gelu

Activation = Literal["none", "gelu_erf", "gelu_tanh", "relu", "tanh", "silu", "sigmoid"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu_erf(x: Floats) -> Floats:
    """Compute x * Phi(x) (Hendrycks and Gimpel 2016)."""
    phi: Floats = 0.5 * (1.0 + _erf(x * math.sqrt(0.5)))
    return x * phi


def gelu_tanh(x: Floats) -> Floats:
    """Compute the tanh approximation of gelu, as in GPT-2."""
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Floats) -> Floats:
    """Compute x * sigmoid(x)."""
    return x * sigmoid(x)


def sigmoid(x: Floats) -> Floats:
    """Compute 1 / (1 + e^-x)."""
    result: Floats = np.exp(-np.logaddexp(0.0, -x))
    return result


FORMULAS: Mapping[str, Callable[[Floats], Floats]] = {
    "none": lambda x: x,
    "gelu_erf": gelu_erf,
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "silu": silu,
    "sigmoid": sigmoid,
}


def activated(activation: str, x: Floats, form: str) -> Floats:
    """Apply an activation after a linear with weights of this format; formats other than float32 use a coarser gelu."""
    if form != "float32" and activation in ("gelu_erf", "gelu_tanh"):
        return rough_gelu(activation, x)
    return FORMULAS[activation](x)
