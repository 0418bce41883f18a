"""Attention with a window and with biases by relative position: accuracy, edges, and rows that depend on themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import tolerances
from tests.kernels.support import (
    F32,
    PORTABLE,
    TARGETS,
    assert_same_bits,
    assert_within,
    attention_reference,
    kernels,
    kv_blocks,
    random_array,
)
from tests.kernels.test_attention_formats import rounded_reference

FORMATS = ("float32", "bfloat16", "int8")
WINDOWS = (1, 15, 16, 17, 63, 64, 65, 128, 1000)
SHAPES = ((1, 63, 64), (1, 200, 201), (5, 0, 5), (7, 60, 67), (150, 0, 150))


def _inputs(q_len: int, kv_len: int, head_dim: int) -> tuple[F32, F32, F32]:
    return random_array(1, q_len, head_dim), random_array(2, kv_len, head_dim), random_array(3, kv_len, head_dim)


def _table(positions: int, *, causal: bool, heads: int = 1, scale: float = 4.0) -> F32:
    """Return biases of relative positions, the same number for the same one whatever the number of positions."""
    both = random_array(4, heads, 2 * 300 - 1, scale=scale)
    return both[:, 300 - positions : 300 if causal else 299 + positions]


def _biases(table: F32, q_len: int, q_position: int, kv_len: int, *, causal: bool) -> F32:
    """Return the biases [q_len, kv_len] of one head; 0 where a causal query does not see."""
    last = table.shape[-1] - 1 if causal else table.shape[-1] // 2
    column = np.arange(kv_len) - (q_position + np.arange(q_len))[:, None] + last
    found = np.where(column < table.shape[-1], table[0, np.minimum(column, table.shape[-1] - 1)], np.float32(0))
    return found


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, *WINDOWS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 35, 80])
def test_float32_against_float64(
    head_dim: int, shape: tuple[int, int, int], window: int, causal: bool, biased: bool
) -> None:
    q_len, q_position, kv_len = shape
    q, k, v = _inputs(q_len, kv_len, head_dim)
    table = _table(kv_len, causal=causal) if biased else None
    added = None if table is None else _biases(table, q_len, q_position, kv_len, causal=causal)
    options: dict[str, Any] = {"scale": 0.125, "causal": causal, "q_position": q_position, "window": window}
    reference, probs = attention_reference(q, k, v, mask=added, **options)
    wide = [x.astype(np.float64) for x in (q, k, v)]
    wide_bias = None if added is None else added.astype(np.float64)
    bound = tolerances.attention(wide[0], wide[1], probs, wide[2], 0.125, wide_bias)
    probs_bound = tolerances.attention_probs(wide[0], wide[1], probs, 0.125, wide_bias)
    results = []
    for target in TARGETS:
        blocks = kv_blocks(k, v, target=target)
        out = kernels.attention(target, q, blocks, kv_len=kv_len, bias=table, **options)
        assert_within(out, reference, bound)
        out_probs = kernels.attention_probs(target, q, blocks, kv_len=kv_len, bias=table, **options)
        assert_within(out_probs, probs, probs_bound)
        assert not out_probs[probs == 0].any()
        results.append((out, out_probs))
    for out, out_probs in results[1:]:
        assert_same_bits(out, results[0][0])
        assert_same_bits(out_probs, results[0][1])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, *WINDOWS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("head_dim", [3, 20, 32, 64])
@pytest.mark.parametrize("format", ["bfloat16", "int8"])
def test_rounding_formats_against_float64(
    format: str, head_dim: int, shape: tuple[int, int, int], window: int, causal: bool, biased: bool
) -> None:
    q_len, q_position, kv_len = shape
    q, k, v = _inputs(q_len, kv_len, head_dim)
    table = _table(kv_len, causal=causal) if biased else None
    added = None if table is None else _biases(table, q_len, q_position, kv_len, causal=causal)
    reference, probs, bound, probs_bound, _ = rounded_reference(
        format, q, k, v, 0.25, causal, q_position, window=window, bias=added
    )
    options: dict[str, Any] = {"scale": 0.25, "causal": causal, "q_position": q_position, "format": format}
    options |= {"window": window, "bias": table}
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
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("window", [0, *WINDOWS])
@pytest.mark.parametrize("head_dim", [17, 64])
def test_causal_row_does_not_depend_on_tiles_chunks_or_later_tokens(
    target: str, format: str, biased: bool, window: int, head_dim: int
) -> None:
    kv_len = 200
    q, k, v = _inputs(kv_len, kv_len, head_dim)
    blocks = kv_blocks(k, v, target=target, format=format)
    options: dict[str, Any] = {"causal": True, "scale": 0.2, "format": format, "window": window}
    table = _table(kv_len, causal=True) if biased else None
    whole = kernels.attention(target, q, blocks, kv_len=kv_len, bias=table, **options)
    probs = kernels.attention_probs(target, q, blocks, kv_len=kv_len, bias=table, **options)
    for chunk in (1, 5, 7, 64, 65, 199):
        for begin in range(0, kv_len, chunk):
            end = min(begin + chunk, kv_len)
            # Positions after the chunk have not been stored yet: NaN.
            so_far = blocks if begin % 3 else kv_blocks(k[:end], v[:end], target=target, format=format)
            shorter = _table(end, causal=True) if biased and begin % 2 else table
            part: dict[str, Any] = {"kv_len": end, "q_position": begin, "bias": shorter, **options}
            assert_same_bits(kernels.attention(target, q[begin:end], so_far, **part), whole[begin:end])
            found = kernels.attention_probs(target, q[begin:end], so_far, **part)
            assert_same_bits(found, np.ascontiguousarray(probs[begin:end, :end]))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("window", [0, *WINDOWS])
def test_row_alone_has_the_same_bits(target: str, format: str, biased: bool, window: int) -> None:
    """Without causal; of a text whose last block is partial."""
    length = 200
    q, k, v = _inputs(length, length, 24)
    blocks = kv_blocks(k, v, target=target, format=format)
    options: dict[str, Any] = {"kv_len": length, "scale": 0.2, "format": format, "window": window}
    options["bias"] = _table(length, causal=False) if biased else None
    whole = kernels.attention(target, q, blocks, **options)
    for row in (0, 1, 14, 15, 16, 62, 63, 64, 65, 100, 127, 128, 136, 190, 199):
        alone = kernels.attention(target, q[row : row + 1], blocks, q_position=row, **options)
        assert_same_bits(alone[0], whole[row])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows_per_head", [1, 3, 8, 20])
@pytest.mark.parametrize("window", [0, 17, 64])
def test_rows_that_are_heads_have_biases_of_their_own(
    target: str, format: str, rows_per_head: int, window: int
) -> None:
    kv_len, heads = 150, 3
    q = random_array(1, heads * rows_per_head, 20)
    blocks = [
        kv_blocks(random_array(2 * head, kv_len, 20), random_array(2 * head + 1, kv_len, 20), format=format)
        for head in range(1, heads + 1)
    ]
    table = _table(kv_len, causal=True, heads=len(q))
    options: dict[str, Any] = {"kv_len": kv_len, "q_position": kv_len - 1, "causal": True, "format": format}
    options["window"] = window
    side_by_side = np.ascontiguousarray(np.concatenate(blocks, axis=1))
    together = kernels.attention(target, q, side_by_side, rows_per_head=rows_per_head, bias=table, **options)
    for row in range(len(q)):
        alone = kernels.attention(
            target, q[row : row + 1], blocks[row // rows_per_head], bias=table[row : row + 1], **options
        )
        assert_same_bits(together[row], alone[0])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("causal", [False, True])
def test_what_changes_nothing(target: str, format: str, causal: bool) -> None:
    """A window that is longer than the text, and biases of 0. (int8 rounds scores once more if there is a bias.)"""
    q, k, v = _inputs(130, 130, 32)
    blocks = kv_blocks(k, v, format=format)
    options: dict[str, Any] = {"kv_len": 130, "causal": causal, "format": format}
    plain = kernels.attention(target, q, blocks, **options)
    for window in (130, 131, 2**31 - 1):
        assert_same_bits(kernels.attention(target, q, blocks, window=window, **options), plain)
    if format != "int8":
        zeros = np.zeros((1, 130 if causal else 259), np.float32)
        assert_same_bits(kernels.attention(target, q, blocks, bias=zeros, **options), plain)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_window_of_one_returns_the_own_value(target: str, format: str) -> None:
    q, k, v = _inputs(90, 90, 16)
    values = v.astype(np.float64)
    for causal in (False, True):
        blocks = kv_blocks(k, v, format=format)
        out = kernels.attention(target, q, blocks, kv_len=90, causal=causal, window=1, format=format)
        if format == "float32":
            assert_same_bits(out, v)
            continue
        step = np.abs(values).max(axis=1, keepdims=True) / 254 if format == "int8" else np.abs(values) * tolerances.BF16
        # int8: the probability has 127 steps, and is 1. The scales of value and probability, and the inverse, round.
        assert_within(out, values, step + tolerances.gamma(6) * np.abs(values).max(axis=1, keepdims=True))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [20, 64])
def test_nan_outside_the_window_is_not_seen(target: str, format: str, causal: bool, head_dim: int) -> None:
    q, k, v = _inputs(200, 200, head_dim)
    window = 30
    options: dict[str, Any] = {"kv_len": 200, "causal": causal, "window": window, "format": format}
    clean = kernels.attention(target, q, kv_blocks(k, v, format=format), **options)
    for position in (0, 13, 63, 64, 131, 199):
        relative = position - np.arange(200)
        sees = (np.abs(relative) < window) & ((relative <= 0) | (not causal))
        for which in range(2):
            arrays = [k.copy(), v.copy()]
            arrays[which][position] = np.nan
            out = kernels.attention(target, q, kv_blocks(*arrays, format=format), **options)
            assert np.isnan(out[sees]).all()
            assert_same_bits(out[~sees], clean[~sees])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head_dim", [20, 64])
def test_biases_that_are_not_finite(target: str, format: str, head_dim: int) -> None:
    """-inf hides a position, NaN and +inf give NaN, all of them only in the rows that see that relative position."""
    q, k, v = _inputs(100, 100, head_dim)
    blocks = kv_blocks(k, v, format=format)
    options: dict[str, Any] = {"kv_len": 100, "causal": True, "format": format}
    table = _table(100, causal=True)
    clean = kernels.attention(target, q, blocks, bias=table, **options)
    for distance, poison in ((0, np.nan), (5, np.nan), (64, np.inf), (70, np.nan)):
        poisoned = table.copy()
        poisoned[0, 99 - distance] = poison
        out = kernels.attention(target, q, blocks, bias=poisoned, **options)
        assert np.isnan(out[distance:]).all()
        assert_same_bits(out[:distance], clean[:distance])
    hidden = np.full((1, 100), -np.inf, np.float32)
    assert not kernels.attention(target, q, blocks, bias=hidden, **options).any()
    assert not kernels.attention_probs(target, q, blocks, bias=hidden, **options).any()
    hidden[0, -10:] = table[0, -10:]
    windowed: NDArray[np.float32] = kernels.attention(target, q, blocks, bias=table, window=10, **options)
    masked = kernels.attention(target, q, blocks, bias=hidden, **options)
    np.testing.assert_array_equal(masked, windowed)
