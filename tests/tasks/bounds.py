"""The bound for whole models: at most twice as far from float64 as PyTorch's float32."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_as_good_as(found: Any, exact: Any, rough: Any) -> None:
    """Check `found` (ours) against `exact` (float64 PyTorch) and `rough` (float32 PyTorch).

    One float32 rounding of the result is allowed in addition. Distances are root mean squares: the largest of a few
    errors is random, and one wrong number is visible anyway.
    """
    ours, wide, single = (np.asarray(x, np.float64) for x in (found, exact, rough))
    assert ours.shape == wide.shape == single.shape
    if ours.size:
        rounding = float(np.spacing(np.float32(np.abs(wide).max())))
        assert _distance(ours, wide) <= 2 * _distance(single, wide) + rounding


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


def assert_same_bits(found: Any, expected: Any, device: str) -> None:
    """Check the numerics contract: equal bits on every device except numpy, whose BLAS is only float64-close."""
    ours, theirs = np.asarray(found), np.asarray(expected)
    assert ours.shape == theirs.shape
    if device != "numpy":
        assert ours.tobytes() == theirs.tobytes()
    else:
        assert np.allclose(ours, theirs, rtol=np.finfo(np.float32).eps, atol=np.finfo(np.float32).eps)
