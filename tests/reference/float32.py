"""Operations of float32 that numpy does not have, bit-exact."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


def fma(a: F32, b: F32, c: F32) -> F32:
    """Return a * b + c of finite numbers, rounded once, to nearest even.

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
    odd = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
    result: F32 = odd.astype(np.float32)
    return result
