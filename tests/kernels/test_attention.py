"""Attention over KV blocks: accuracy against float64, and rows whose bits depend only on themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tolerances
from tests.kernels.support import (
    BLOCK_LEN,
    F32,
    TARGETS,
    assert_same_bits,
    assert_within,
    attention_reference,
    kernels,
    kv_blocks,
    random_array,
)

FORMATS = ("float32", "bfloat16", "int8")
HEAD_DIMS = (1, 16, 32, 35, 48, 64, 80, 128, 256)
SHAPES = ((1, 0, 1), (1, 63, 64), (1, 64, 65), (5, 0, 5), (7, 60, 67), (35, 0, 35), (150, 0, 150), (2, 198, 200))


def _inputs(q_len: int, kv_len: int, head_dim: int) -> tuple[F32, F32, F32]:
    return random_array(1, q_len, head_dim), random_array(2, kv_len, head_dim), random_array(3, kv_len, head_dim)


def _mask(q_len: int, kv_len: int) -> F32:
    mask = random_array(4, q_len, kv_len)
    mask[np.random.default_rng(5).random(mask.shape) < 0.3] = -np.inf
    return mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_against_float64(head_dim: int, shape: tuple[int, int, int], causal: bool, masked: bool) -> None:
    q_len, q_position, kv_len = shape
    q, k, v = _inputs(q_len, kv_len, head_dim)
    mask = _mask(q_len, kv_len) if masked else None
    scale = float(np.float32(head_dim**-0.5))
    options = {"scale": scale, "causal": causal, "q_position": q_position, "mask": mask}
    reference, probs = attention_reference(q, k, v, **options)
    naive, _ = attention_reference(q, k, v, dtype=np.float32, **options)
    wide = [x.astype(np.float64) for x in (q, k, v)]
    wide_mask = None if mask is None else mask.astype(np.float64)
    bound = tolerances.attention(wide[0], wide[1], probs, wide[2], scale, wide_mask)
    # Half an ulp of the largest value per merged block, two for the rest.
    floor = tolerances.U * (4 + 2 * -(-kv_len // BLOCK_LEN)) * np.abs(wide[2]).max()
    results = []
    for target in TARGETS:
        blocks = kv_blocks(k, v, target=target)
        out = kernels.attention(target, q, blocks, kv_len=kv_len, **options)
        assert_within(out, reference, np.minimum(bound, tolerances.fused(reference, naive, floor=floor)))
        out_probs = kernels.attention_probs(target, q, blocks, kv_len=kv_len, **options)
        assert_within(out_probs, probs, tolerances.attention_probs(wide[0], wide[1], probs, scale, wide_mask))
        results.append((out, out_probs))
    for out, out_probs in results[1:]:
        assert_same_bits(out, results[0][0])
        assert_same_bits(out_probs, results[0][1])


@pytest.mark.parametrize("head_dim", [1, 16, 35, 64])
def test_kv_store(head_dim: int) -> None:
    """Position p is in block p // 64, lane p % 64, whatever chunks it came in; nothing else is written."""
    kv_len = 150
    _, k, v = _inputs(1, kv_len, head_dim)
    n_blocks = -(-kv_len // BLOCK_LEN)
    keys = np.full((n_blocks * BLOCK_LEN, head_dim), np.nan, np.float32)
    values = keys.copy()
    keys[:kv_len], values[:kv_len] = k, v
    transposed = keys.reshape(n_blocks, BLOCK_LEN, head_dim).transpose(0, 2, 1)
    expected = np.concatenate([transposed.reshape(n_blocks, -1), values.reshape(n_blocks, -1)], axis=1)
    for target in TARGETS:
        for chunk in (1, 7, 16, 64, 100, None):
            assert_same_bits(
                kv_blocks(k, v, target=target, chunk=chunk).view(np.float32), np.ascontiguousarray(expected)
            )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("head_dim", [17, 64])
def test_causal_row_does_not_depend_on_tiles_chunks_or_later_tokens(target: str, format: str, head_dim: int) -> None:
    kv_len = 200
    q, k, v = _inputs(kv_len, kv_len, head_dim)
    blocks = kv_blocks(k, v, target=target, format=format)
    options: dict[str, Any] = {"causal": True, "scale": 0.2, "format": format}
    whole = kernels.attention(target, q, blocks, kv_len=kv_len, **options)
    probs = kernels.attention_probs(target, q, blocks, kv_len=kv_len, **options)
    for chunk in (1, 2, 5, 6, 7, 64, 65, 199):
        for begin in range(0, kv_len, chunk):
            end = min(begin + chunk, kv_len)
            # Positions after the chunk have not been stored yet: NaN.
            so_far = blocks if begin % 3 else kv_blocks(k[:end], v[:end], target=target, format=format)
            out = kernels.attention(target, q[begin:end], so_far, kv_len=end, q_position=begin, **options)
            assert_same_bits(out, whole[begin:end])
            part = kernels.attention_probs(target, q[begin:end], so_far, kv_len=end, q_position=begin, **options)
            assert_same_bits(part, np.ascontiguousarray(probs[begin:end, :end]))


@settings(max_examples=100)
@given(st.data())
def test_row_alone_has_the_same_bits(data: st.DataObject) -> None:
    q_len, kv_len = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 140))
    head_dim = data.draw(st.sampled_from([3, 16, 64]))
    causal = data.draw(st.booleans())
    q_position = data.draw(st.integers(0, max(kv_len - q_len, 0)))
    q, k, v = _inputs(q_len, kv_len, head_dim)
    format = data.draw(st.sampled_from(FORMATS))
    mask = _mask(q_len, kv_len) if format == "float32" and data.draw(st.booleans()) else None
    row = data.draw(st.integers(0, q_len - 1))
    for target in TARGETS:
        blocks = kv_blocks(k, v, target=target, format=format)
        whole = kernels.attention(
            target, q, blocks, kv_len=kv_len, q_position=q_position, causal=causal, mask=mask, format=format
        )
        alone = kernels.attention(
            target,
            q[row : row + 1],
            blocks,
            kv_len=kv_len,
            q_position=q_position + row,
            causal=causal,
            mask=None if mask is None else mask[row : row + 1],
            format=format,
        )
        assert_same_bits(alone[0], whole[row])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows_per_head", [1, 2, 3, 20])
def test_heads_of_one_position_have_the_bits_of_each_alone(target: str, format: str, rows_per_head: int) -> None:
    head_dim, heads = 40, 7
    for kv_len in (1, 63, 64, 65, 130):
        q = random_array(7, heads * rows_per_head, head_dim)
        kv = [(random_array(10 + i, kv_len, head_dim), random_array(20 + i, kv_len, head_dim)) for i in range(heads)]
        blocks = [kv_blocks(k, v, target=target, format=format) for k, v in kv]
        options: dict[str, Any] = {"kv_len": kv_len, "q_position": kv_len - 1, "causal": True, "format": format}
        side_by_side = np.ascontiguousarray(np.concatenate(blocks, axis=1))
        together = kernels.attention(target, q, side_by_side, rows_per_head=rows_per_head, **options)
        for row in range(len(q)):
            alone = kernels.attention(target, q[row : row + 1], blocks[row // rows_per_head], **options)
            assert_same_bits(together[row], alone[0])


@pytest.mark.parametrize("target", TARGETS)
def test_causal_is_a_mask(target: str) -> None:
    """The same softmax, but not the same bits: a masked position adds 0 to a sum, and a causal one adds nothing."""
    q, k, v = _inputs(70, 70, 32)
    blocks = kv_blocks(k, v, target=target)
    mask = np.where(np.tri(70, dtype=bool), 0.0, -np.inf).astype(np.float32)
    causal = kernels.attention(target, q, blocks, kv_len=70, causal=True)
    np.testing.assert_array_equal(causal, kernels.attention(target, q, blocks, kv_len=70, mask=mask))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
def test_nan_and_infinity_stay_where_they_are_seen(target: str, format: str) -> None:
    """With int8, one non-finite number affects its whole row of keys or values: their common scale is NaN."""
    q, k, v = _inputs(90, 90, 48)

    def attend(q: F32, k: F32, v: F32) -> F32:
        blocks = kv_blocks(k, v, target=target, format=format)
        out: F32 = kernels.attention(target, q, blocks, kv_len=90, causal=True, format=format)
        return out

    clean = attend(q, k, v)
    for position, poison in ((0, np.nan), (13, np.nan), (64, np.inf), (70, np.nan), (89, -np.inf)):
        for which in range(3):
            arrays = [q.copy(), k.copy(), v.copy()]
            arrays[which][position, 5] = poison
            out = attend(*arrays)
            rows = np.arange(90)
            if which == 0:
                untouched = rows != position
            else:
                untouched = rows < position
                if which == 2 and format != "int8":
                    columns = np.arange(48) != 5
                    assert_same_bits(np.ascontiguousarray(out[:, columns]), np.ascontiguousarray(clean[:, columns]))
                    assert not np.isfinite(out[position:, 5]).any()
                elif np.isnan(poison) or format == "int8":
                    assert np.isnan(out[position:]).all()
            assert_same_bits(out[untouched], clean[untouched])
            if which == 0 and (np.isnan(poison) or format == "int8"):
                assert np.isnan(out[position]).all()


@pytest.mark.parametrize("target", TARGETS)
def test_row_that_sees_nothing_is_zero(target: str) -> None:
    q, k, v = _inputs(3, 80, 20)
    mask = np.zeros((3, 80), np.float32)
    mask[1] = -np.inf
    blocks = kv_blocks(k, v)
    out = kernels.attention(target, q, blocks, kv_len=80, mask=mask)
    probs = kernels.attention_probs(target, q, blocks, kv_len=80, mask=mask)
    assert not out[1].any()
    assert not probs[1].any()
    assert out[[0, 2]].any(axis=1).all()
    for format in FORMATS:
        blocks = kv_blocks(k, v, format=format)
        assert not kernels.attention(target, q, blocks, kv_len=0, format=format).any()


@pytest.mark.parametrize("target", TARGETS)
def test_first_block_masked(target: str) -> None:
    """A row that sees nothing in its first block starts in the second block as if that were the first."""
    q, k, v = _inputs(2, 100, 16)
    mask = np.zeros((2, 100), np.float32)
    mask[0, :64] = -np.inf
    out = kernels.attention(target, q, kv_blocks(k, v), kv_len=100, mask=mask)
    rest = kernels.attention(target, q, kv_blocks(k[64:], v[64:]), kv_len=36)
    assert_same_bits(out[0], rest[0])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_extreme_scores(target: str, format: str, scale: float) -> None:
    """Scores in the hundreds neither overflow nor lose the row: probabilities stay in [0, 1] and sum to 1."""
    q, k, v = _inputs(9, 130, 64)
    blocks = kv_blocks(k, v, format=format)
    probs = kernels.attention_probs(target, q, blocks, kv_len=130, scale=scale, format=format)
    # Except in the highest block, e^(score - block_max) e^(block_max - row_max) replaces e^(score - row_max).
    rough = 0.0 if format == "float32" else 4 * tolerances.EXP2_ROUGH
    assert (probs >= 0).all()
    assert (probs <= 1 + rough + tolerances.gamma(4)).all()
    total = probs.astype(np.float64).sum(axis=1)
    assert (np.abs(total - 1) <= rough + tolerances.gamma(2 * BLOCK_LEN)).all()
