"""How far two correct computations of one Program may differ. No test writes a tolerance of its own.

Forward error to first order: an op with inner length k adds at most gamma_k = k * eps relative to the largest value it
works on (Higham 2002, chapter 3), elementwise functions add the few ulp of the libm, and later ops pass an error on
with the growth of the values themselves, which `scale` (the largest magnitude of any value) stands for. Two
computations may each be off by that much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.graph.ir import Op, Program

FUNCTION_ULPS = 8  # exp, tanh, erf, sqrt and division, each within a few ulp


def eps(dtype: Any) -> float:
    """Half the distance from 1 to the next number."""
    return float(np.finfo(np.dtype(dtype)).eps) / 2


def inner_length(program: Program, op: Op, longest: int) -> int:
    """Terms that one element of an op's output is a sum of. longest: tokens in the longest sequence."""
    width = program.values[op.inputs[0]].width if op.inputs else 1
    if op.kind in ("attention", "attention_probs"):
        return 2 * int(op.attrs["head_dim"]) + 2 * longest
    if op.kind == "pool":
        return longest
    return 2 * width if op.kind in ("linear", "layer_norm", "l2_normalize") else 1


def program_bound(program: Program, dtype: object, *, longest: int, scale: float) -> float:
    """Largest difference between a computation of a Program in `dtype` and an exact one."""
    steps = sum(inner_length(program, op, longest) + FUNCTION_ULPS for op in program.ops)
    return 2.0 * steps * eps(dtype) * max(1.0, scale)


def assert_close(
    actual: NDArray[np.floating], expected: NDArray[np.floating], program: Program, *, longest: int, scale: float = 0.0
) -> None:
    """actual (its dtype says how exact it is) against expected, within `program_bound`."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    if not actual.size:
        return
    found = np.abs(actual - expected).max()
    limit = program_bound(program, actual.dtype, longest=longest, scale=max(scale, float(np.abs(expected).max())))
    assert found <= limit, f"expected at most {limit:.3g} from the reference, got {found:.3g}"
