"""The textbook formulas of fastattn.ops in any precision, and bounds derived from them.

`formula(..., dtype=numpy.float64)` is exact for our purposes, `dtype=numpy.float32` is the naive result. A fused op may
be at most twice as far from the exact result as the naive formula (plus one rounding of the largest value, because the
naive error of a small case can be zero).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT_ROUNDOFF = 2.0**-24  # of float32
Formula = Callable[..., NDArray[Any]]


def product_bound(a: NDArray[Any], b: NDArray[Any], terms: int) -> NDArray[np.float64]:
    """Return gamma_n |A||B|: the largest error of a float32 product with any order of summation."""
    gamma = terms * UNIT_ROUNDOFF / (1 - terms * UNIT_ROUNDOFF)
    return gamma * np.matmul(np.abs(a).astype(np.float64), np.abs(b).astype(np.float64))


def assert_product(found: NDArray[Any], a: NDArray[Any], b: NDArray[Any], bias: NDArray[Any] | None = None) -> None:
    exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
    bound = product_bound(a, b, a.shape[-1] + 1)
    if bias is not None:
        exact = exact + bias.astype(np.float64)
        bound = bound + UNIT_ROUNDOFF * (np.abs(exact) + np.abs(bias))
    assert found.shape == exact.shape
    assert np.all(np.abs(found - exact) <= bound)


def assert_as_good_as_naive(
    found: NDArray[Any], formula: Formula, *arrays: NDArray[Any] | None, **options: Any
) -> None:
    exact = formula(*arrays, dtype=np.float64, **options)
    naive = formula(*arrays, dtype=np.float32, **options)
    assert found.shape == exact.shape
    assert found.dtype == np.float32
    rounding = UNIT_ROUNDOFF * np.abs(exact).max(initial=0.0)
    assert np.abs(found - exact).max(initial=0.0) <= 2 * np.abs(naive - exact).max(initial=0.0) + 2 * rounding


def layer_norm(
    x: NDArray[Any], weight: NDArray[Any] | None, bias: NDArray[Any] | None, *, eps: float, dtype: Any
) -> NDArray[Any]:
    x = x.astype(dtype)
    centered = x - x.mean(-1, keepdims=True)
    y = centered / np.sqrt((centered * centered).mean(-1, keepdims=True) + dtype(eps))
    y = y if weight is None else y * weight.astype(dtype)
    return y if bias is None else y + bias.astype(dtype)


def softmax(x: NDArray[Any], *, axis: int = -1, dtype: Any) -> NDArray[Any]:
    e = np.exp(x.astype(dtype) - x.astype(dtype).max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x: NDArray[Any], *, axis: int = -1, dtype: Any) -> NDArray[Any]:
    shifted = x.astype(dtype) - x.astype(dtype).max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def gelu_none(x: NDArray[Any], *, dtype: Any) -> NDArray[Any]:
    phi = np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)), otypes=[np.float64])(x.astype(np.float64))
    return x.astype(dtype) * phi.astype(dtype)


def gelu_tanh(x: NDArray[Any], *, dtype: Any) -> NDArray[Any]:
    x = x.astype(dtype)
    return dtype(0.5) * x * (1 + np.tanh(dtype(math.sqrt(2 / math.pi)) * (x + dtype(0.044715) * x * x * x)))


def product(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return a @ b summed term by term, as the formula is written (numpy.matmul sums in blocks)."""
    if a.dtype == np.float64:
        return np.matmul(a, b)
    total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), a.dtype)
    for i in range(a.shape[-1]):
        total += a[..., :, i : i + 1] * b[..., i : i + 1, :]
    return total


def attention(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], added: NDArray[Any] | None = None, *, scale: float, dtype: Any
) -> NDArray[Any]:
    """Compute attention with one kv head per query head; `added` is the additive mask. A row without any key is 0."""
    scores = product(q.astype(dtype), np.swapaxes(k.astype(dtype), -1, -2)) * dtype(scale)
    if added is not None:
        scores = scores + added.astype(dtype)
    highest = scores.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(scores - np.where(highest == -np.inf, dtype(0), highest))
    total = e.sum(-1, keepdims=True)
    probs = e / np.where(total == 0, dtype(1), total)
    return product(probs, v.astype(dtype))


def causal_mask(q_len: int, kv_len: int) -> NDArray[np.float32]:
    """Return -inf above the diagonal, aligned at the top left."""
    seen = np.tri(q_len, kv_len, dtype=bool)
    return np.where(seen, np.float32(0), np.float32(-np.inf))
