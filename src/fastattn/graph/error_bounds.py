"""Bounds on the difference between two correct computations of one Program, for `verify_model` and for tests.

This is a first-order forward error: an op with inner length k adds at most gamma_k = k * eps relative to the largest
value that it works on (Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 3). Elementwise functions
add the few ulp of the libm. Later ops propagate an error in proportion to the growth of the values themselves; `scale`
(the largest magnitude of any value) represents this growth. Each of the two computations may be off by that much.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastattn.graph.ir import Op, Program

FUNCTION_ULPS = 8  # exp, tanh, erf, sqrt and division, each within a few ulp


def eps(dtype: Any) -> float:
    """Return half the distance from 1 to the next number."""
    return float(np.finfo(np.dtype(dtype)).eps) / 2


def inner_length(program: Program, op: Op, longest: int) -> int:
    """Return the number of terms in the sum for one output element of an op. longest: longest sequence in tokens."""
    width = program.values[op.inputs[0]].width if op.inputs else 1
    if op.kind in ("attention", "attention_probs"):
        tables = int(op.attrs["has_position_keys"]) + int(op.attrs["has_position_queries"])
        return (2 + tables) * int(op.attrs["head_dim"]) + 2 * longest
    if op.kind in ("pool", "weighted_sum"):
        return longest
    if op.kind == "sequence_probs":
        return width + 2 * longest
    if op.kind in ("lstm", "gru"):  # every step adds its own error; gates and cells have slopes of at most 1
        return longest * (2 * int(op.attrs["hidden"]) + 4 * FUNCTION_ULPS)
    return 2 * width if op.kind in ("linear", "layer_norm", "rms_norm", "l2_normalize") else 1


def program_bound(program: Program, dtype: object, *, longest: int, scale: float) -> float:
    """Return a bound on the difference between two computations of a Program in `dtype`, or in a more precise one.

    longest: the longest sequence in tokens. scale: the largest magnitude of any value.
    """
    steps = sum(inner_length(program, op, longest) + FUNCTION_ULPS for op in program.ops)
    return 2.0 * steps * eps(dtype) * max(1.0, scale)
