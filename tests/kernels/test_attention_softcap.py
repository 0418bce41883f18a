"""Attention with soft-capped scores: accuracy, and rows that depend on themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import tolerances
from tests.kernels.support import (
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
SHAPES = ((1, 63, 64), (1, 200, 201), (7, 60, 67), (150, 0, 150))


@pytest.mark.parametrize("softcap", [0.1, 1.0, 50.0])
@pytest.mark.parametrize("window", [0, 17])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("head_dim", [16, 35, 80])
@pytest.mark.parametrize("format", FORMATS)
def test_against_float64(format: str, head_dim: int, shape: tuple[int, int, int], window: int, softcap: float) -> None:
    q_len, q_position, kv_len = shape
    q, k, v = (random_array(i, n, head_dim) for i, n in ((1, q_len), (2, kv_len), (3, kv_len)))
    options: dict[str, Any] = {"scale": 0.25, "causal": True, "q_position": q_position, "window": window}
    options["softcap"] = softcap
    if format == "float32":
        reference, probs = attention_reference(q, k, v, mask=None, **options)
        wide = [x.astype(np.float64) for x in (q, k, v)]
        scores = 2 * np.abs(wide[0] @ wide[1].T) * 0.25  # for tanh, a division and a product
        bound = tolerances.attention(wide[0], wide[1], probs, wide[2], 0.25, scores)
        probs_bound = tolerances.attention_probs(wide[0], wide[1], probs, 0.25, scores)
    else:
        reference, probs, bound, probs_bound, _ = rounded_reference(
            format, q, k, v, 0.25, True, q_position, window=window, softcap=softcap
        )
    plain, _ = attention_reference(q, k, v, mask=None, **{**options, "softcap": 0.0})
    assert softcap == 50.0 or np.abs(plain - reference).max() > 100 * np.abs(bound).max() * (format == "float32")
    results = {}
    for target in TARGETS:
        blocks = kv_blocks(k, v, target=target, format=format)
        out = kernels.attention(target, q, blocks, kv_len=kv_len, format=format, **options)
        assert_within(out, reference, bound)
        out_probs = kernels.attention_probs(target, q, blocks, kv_len=kv_len, format=format, **options)
        assert_within(out_probs, probs, probs_bound)
        results[target] = out, out_probs
    for target in PORTABLE if format == "bfloat16" else TARGETS:
        assert_same_bits(results[target][0], results["scalar"][0])
        assert_same_bits(results[target][1], results["scalar"][1])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_chunks_or_later_tokens(target: str, format: str) -> None:
    length = 200
    q, k, v = (random_array(i, length, 24) for i in (1, 2, 3))
    blocks = kv_blocks(k, v, target=target, format=format)
    options: dict[str, Any] = {"causal": True, "scale": 0.2, "format": format, "softcap": 0.7}
    whole = kernels.attention(target, q, blocks, kv_len=length, **options)
    for chunk in (1, 7, 64, 65):
        for begin in range(0, length, chunk):
            end = min(begin + chunk, length)
            so_far = kv_blocks(k[:end], v[:end], target=target, format=format)
            part = kernels.attention(target, q[begin:end], so_far, kv_len=end, q_position=begin, **options)
            assert_same_bits(part, whole[begin:end])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("format", FORMATS)
def test_special_values(target: str, format: str) -> None:
    """NaN stays NaN in its row, and huge scores are capped."""
    q, k, v = (random_array(i, 5, 16) for i in (1, 2, 3))
    q[1], q[2] = np.nan, 1e4
    blocks = kv_blocks(k, v, target=target, format=format)
    out = kernels.attention(target, q, blocks, kv_len=5, scale=1.0, format=format, softcap=2.0)
    assert np.isnan(out[1]).all()
    assert np.isfinite(np.delete(out, 1, axis=0)).all()
