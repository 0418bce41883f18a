"""Arrays for the kernel tests, and the float64 formulas that the kernels are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn import _core

kernels = _core.kernels

TARGETS: list[str] = kernels.targets()
# The targets whose bfloat16 sums have the same order (docs/numerics.md).
PORTABLE = [target for target in TARGETS if _core.bfloat16_sums(target) == "portable"]
BLOCK_LEN: int = kernels.BLOCK_LEN
SIZES = (0, 1, 15, 16, 17, 35, 768)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def random_array(seed: int, *shape: int, scale: float = 1.0, offset: int = 1) -> F32:
    """Return normal random numbers at an address that is `offset` floats off the allocation's alignment."""
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    flat = np.empty(values.size + offset, np.float32)[offset:]
    flat[:] = values.ravel()
    return flat.reshape(shape)


def assert_same_bits(a: F32, b: F32) -> None:
    """Assert equal bits; any NaN equals any other."""
    __tracebackhide__ = True
    assert a.shape == b.shape
    different = (a.view(np.uint32) != b.view(np.uint32)) & ~(np.isnan(a) & np.isnan(b))
    assert not different.any(), f"{different.sum()} of {a.size} differ, first at {np.argwhere(different)[0]}"


def on_every_target(run: Callable[[str], F32], targets: Sequence[str] = TARGETS) -> F32:
    """Run on each target, assert equal bits, return the result."""
    __tracebackhide__ = True
    results = [run(target) for target in targets]
    for other in results[1:]:
        assert_same_bits(other, results[0])
    return results[0]


def assert_within(result: F32, reference: F64, bound: F64) -> None:
    __tracebackhide__ = True
    assert result.shape == reference.shape
    error = np.abs(result.astype(np.float64) - reference)
    bad = ~(error <= bound)
    if bad.any():
        at = tuple(np.argwhere(bad)[0])
        limit = np.broadcast_to(bound, error.shape)[at]
        pytest.fail(f"{bad.sum()} of {bad.size} beyond the bound, first at {at}: {result[at]} vs {reference[at]}, "
                    f"error {error[at]:.3e} > {limit:.3e}")  # fmt: skip


def kv_blocks(
    k: F32, v: F32, *, target: str = "scalar", format: str = "float32", chunk: int | None = None
) -> NDArray[np.uint8]:
    """Return keys and values in KV blocks; unwritten elements are NaN (and bytes of -1)."""
    kv_len, head_dim = k.shape
    n_blocks = -(-kv_len // BLOCK_LEN)
    blocks = np.full((n_blocks, kernels.kv_head_bytes(format, head_dim)), 0xFF, np.uint8)
    for begin in range(0, kv_len, chunk or max(kv_len, 1)):
        end = min(begin + (chunk or kv_len), kv_len)
        kernels.kv_store(target, k[begin:end], v[begin:end], blocks, position=begin, format=format)
    return blocks


def attention_reference(
    q: F32,
    k: F32,
    v: F32,
    *,
    scale: float,
    causal: bool,
    q_position: int,
    mask: F32 | None,
    window: int = 0,
    softcap: float = 0.0,
    dtype: type = np.float64,
) -> tuple[NDArray, NDArray]:
    """Return output and probabilities of the plain formula in `dtype`."""
    scores = (q.astype(dtype) @ k.astype(dtype).T) * dtype(scale)
    if softcap:
        scores = dtype(softcap) * np.tanh(scores / dtype(softcap))
    if mask is not None:
        scores = scores + mask.astype(dtype)
    relative = np.arange(len(k)) - (q_position + np.arange(len(q)))[:, None]
    if causal:
        scores = np.where(relative <= 0, scores, dtype(-np.inf))
    if window:
        scores = np.where(np.abs(relative) < window, scores, dtype(-np.inf))
    if scores.shape[1] == 0:
        return np.zeros((len(q), v.shape[1]), dtype), scores
    highest = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(highest), highest, dtype(0)))
    total = weights.sum(axis=1, keepdims=True)
    probs = weights / np.where(total == 0, dtype(1), total)
    return probs @ v.astype(dtype), probs
