"""Attention over bfloat16 and int8 KV blocks: the stored bits, and the distance of the results from float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import tolerances
from tests.kernels.support import (
    BLOCK_LEN,
    F32,
    F64,
    PORTABLE,
    TARGETS,
    assert_same_bits,
    assert_within,
    attention_reference,
    kernels,
    kv_blocks,
    random_array,
)

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml-dtypes has no wheel for musl")

HEAD_DIMS = (1, 3, 16, 35, 40, 64, 80, 256)
SHAPES = ((1, 0, 1), (1, 62, 63), (1, 63, 64), (1, 64, 65), (5, 0, 5), (7, 60, 67), (35, 0, 35), (130, 0, 130))
LOG2_E = np.float32(1.4426950408889634)


def _inputs(q_len: int, kv_len: int, head_dim: int) -> tuple[F32, F32, F32]:
    v = random_array(3, kv_len, head_dim)
    v *= np.exp2(np.random.default_rng(4).integers(-6, 6, (kv_len, 1))).astype(np.float32)  # different scales
    return random_array(1, q_len, head_dim), random_array(2, kv_len, head_dim), v


def _bfloat16(x: F32) -> F32:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def _int8(x: F32) -> tuple[NDArray[np.int8], F32]:
    """Return the bytes and the scale of each row."""
    highest = np.abs(x).max(axis=1, keepdims=True)
    return np.rint(x * (np.float32(127) / highest)).astype(np.int8), highest / np.float32(127)


def _padded(x: NDArray[Any], size: int, axis: int, filler: Any) -> NDArray[Any]:
    widths = [(0, size - n if i == axis else 0) for i, n in enumerate(x.shape)]
    return np.pad(x, widths, constant_values=filler)


def _expected_blocks(k: F32, v: F32, format: str) -> NDArray[np.uint8]:
    """Return the content of KV blocks as specified in kernels.h, with bytes of 0xff where nothing was stored."""
    kv_len, head_dim = k.shape
    n_blocks = -(-kv_len // BLOCK_LEN)
    group, empty = (2, np.uint16(0xFFFF)) if format == "bfloat16" else (4, np.uint8(0xFF))
    scales = []
    if format == "bfloat16":
        keys, values = (x.astype(ml_dtypes.bfloat16).view(np.uint16) for x in (k, v))
    else:
        keys, values = (_int8(x)[0].view(np.uint8) for x in (k, v))
        scales = [_int8(x)[1][:, 0].view(np.uint32) for x in (k, v)]
    width = -(-head_dim // group) * group
    keys = _padded(_padded(keys, width, 1, 0), n_blocks * BLOCK_LEN, 0, empty)
    values = _padded(values, n_blocks * BLOCK_LEN, 0, empty)
    parts = [
        keys.reshape(n_blocks, BLOCK_LEN, width // group, group).swapaxes(1, 2),
        values.reshape(n_blocks, BLOCK_LEN // group, group, head_dim).swapaxes(2, 3),
    ]
    parts += [_padded(x, n_blocks * BLOCK_LEN, 0, np.uint32(0xFFFFFFFF)).reshape(n_blocks, BLOCK_LEN) for x in scales]
    flat = [np.ascontiguousarray(part).reshape(n_blocks, -1).view(np.uint8) for part in parts]
    return np.concatenate(flat, axis=1)


@pytest.mark.parametrize("format", ["bfloat16", "int8"])
@pytest.mark.parametrize("head_dim", [1, 16, 35, 64, 80])
def test_kv_store(format: str, head_dim: int) -> None:
    """The chunks do not matter; the neighbors of an element within a word do not change."""
    _, k, v = _inputs(1, 150, head_dim)
    expected = _expected_blocks(k, v, format)
    for target in TARGETS:
        for chunk in (1, 3, 7, 16, 64, 100, None):
            np.testing.assert_array_equal(kv_blocks(k, v, target=target, format=format, chunk=chunk), expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", ["bfloat16", "int8"])
def test_kv_store_of_a_wider_array(target: str, format: str) -> None:
    """Rows with a stride, such as the columns of one head."""
    wide = random_array(6, 70, 100)
    k, v = wide[:, 3:43], wide[:, 50:90]
    dense = kv_blocks(k.copy(), v.copy(), target=target, format=format)
    np.testing.assert_array_equal(kv_blocks(k, v, target=target, format=format), dense)


def rounded_reference(
    format: str,
    q: F32,
    k: F32,
    v: F32,
    scale: float,
    causal: bool,
    q_position: int,
    *,
    window: int = 0,
    softcap: float = 0.0,
    bias: F32 | None = None,
) -> tuple[F64, F64, F64, F64, F64]:
    """Return output and probabilities for q, k and v rounded to the format, and bounds of both."""
    wide_bias = None if bias is None else bias.astype(np.float64)
    if format == "bfloat16":
        factor = np.float32(scale) * LOG2_E
        wide = [_bfloat16(q * factor).astype(np.float64) / float(LOG2_E), *(_bfloat16(x).astype(float) for x in (k, v))]
        scale = 1.0
    else:
        wide = [bytes_.astype(np.float64) * scales for bytes_, scales in map(_int8, (q, k, v))]
    options: Any = {"scale": scale, "causal": causal, "q_position": q_position, "mask": bias, "window": window}
    options["softcap"] = softcap
    out, probs = attention_reference(*wide, **options)
    if softcap:  # the error of tanh, a division and a product, relative to a score that is no larger than before
        wide_bias = 2 * np.abs(wide[0] @ wide[1].T) * scale
    if format == "bfloat16":
        bound = tolerances.attention_bfloat16(wide[0], wide[1], probs, wide[2], scale, wide_bias)
    else:
        v_scales = _int8(v)[1][:, 0].astype(float)
        bound = tolerances.attention_int8(wide[0], wide[1], probs, wide[2], v_scales, scale, wide_bias)
    rough = tolerances.attention_rough(wide[0], wide[1], scale, wide_bias)
    return out, probs, bound, rough * probs + 2.0**-125, wide[2]


@pytest.mark.parametrize("format", ["bfloat16", "int8"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_against_float64(head_dim: int, shape: tuple[int, int, int], causal: bool, format: str) -> None:
    q_len, q_position, kv_len = shape
    q, k, v = _inputs(q_len, kv_len, head_dim)
    scale = float(np.float32(head_dim**-0.5))
    reference, probs, bound, probs_bound, _ = rounded_reference(format, q, k, v, scale, causal, q_position)
    options: dict[str, Any] = {"scale": scale, "causal": causal, "q_position": q_position, "format": format}
    results = {}
    for target in TARGETS:
        blocks = kv_blocks(k, v, target=target, format=format)
        out = kernels.attention(target, q, blocks, kv_len=kv_len, **options)
        assert_within(out, reference, bound)
        out_probs = kernels.attention_probs(target, q, blocks, kv_len=kv_len, **options)
        assert_within(out_probs, probs, probs_bound)
        results[target] = out, out_probs
    for target in PORTABLE if format == "bfloat16" else TARGETS:
        assert_same_bits(results[target][0], results["scalar"][0])
        assert_same_bits(results[target][1], results["scalar"][1])


@pytest.mark.parametrize("target", TARGETS)
def test_zeros(target: str) -> None:
    """A query, key or value of zeros has the scale 0 in int8: nothing is divided by it."""
    for which in range(3):
        arrays = list(_inputs(20, 70, 32))
        arrays[which][:] = 0
        results = []
        for format in ("float32", "int8"):
            blocks = kv_blocks(arrays[1], arrays[2], target=target, format=format)
            out = kernels.attention(target, arrays[0], blocks, kv_len=70, q_position=50, causal=True, format=format)
            results.append(out)
        assert np.isfinite(results[1]).all()
        assert results[0].any() == results[1].any()
