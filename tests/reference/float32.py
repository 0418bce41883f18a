"""Operations of float32 that numpy does not have, bit-exact."""

from __future__ import annotations

import platform

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
SMALLEST_NORMAL = np.float32(2.0**-126)


def _rounded_to_odd(a: F32, b: F32, c: F32) -> F64:
    """Return a * b + c in float64, rounded to odd, so that the result can be rounded again.

    In float64 the product is exact and the sum has a known error (Knuth's TwoSum). Rounding the sum to odd preserves
    which side of a float32 tie it is on, so the second rounding is correct (Boldo and Melquiond 2008, "Emulation of FMA
    and correctly rounded sums").
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    added = np.broadcast_to(c, product.shape).astype(np.float64)
    total = product + added
    part = total - product
    error = (product - (total - part)) + (added - part)
    even = (total.view(np.int64) & 1) == 0
    inexact = (error != 0) & even & np.isfinite(total)
    odd: F64 = np.where(inexact, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd


def fma(a: F32, b: F32, c: F32) -> F32:
    """Return a * b + c, rounded once, to nearest even."""
    result: F32 = _rounded_to_odd(a, b, c).astype(np.float32)
    return result


def flush(x: F32) -> F32:
    """Replace denormals by zeros of the same sign."""
    return np.where(np.abs(x) < SMALLEST_NORMAL, np.copysign(np.float32(0), x), x)


def flushing_add(a: F32, b: F32) -> F32:
    """Return a + b with denormals as zeros. Sums below the normal range are exact, so rounding does not matter."""
    return flush(flush(a) + flush(b))


def flushing_fma(a: F32, b: F32, c: F32) -> F32:
    """Return a * b + c, rounded once, with denormals as zeros.

    x86 rounds to 24 bits first, as if there were no smallest exponent. If the result is below the smallest normal
    number, it is replaced by 0. Arm decides before it rounds.
    """
    exact = _rounded_to_odd(flush(a), flush(b), flush(c))
    scale = 1.0 if platform.machine() in ("aarch64", "arm64") else 2.0**60
    compared = exact if scale == 1 else (exact * scale).astype(np.float32)
    denormal = np.abs(compared) < 2.0**-126 * scale
    return np.where(denormal, np.copysign(np.float32(0), exact), exact).astype(np.float32)
