"""The kernel of LoRA adapters: close to float64, equal bits on all targets and for each row alone."""

from __future__ import annotations

import numpy as np
import pytest

from tests import tolerances
from tests.kernels.support import TARGETS, assert_within, kernels, on_every_target, random_array


@pytest.mark.parametrize("rank", [1, 7, 8, 19])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (16, 64), (37, 83), (300, 17)])
def test_lora(rank: int, k: int, n: int) -> None:
    x, y = random_array(1, 5, k), random_array(2, 5, n)
    down, up = random_array(3, rank, k), random_array(4, rank, n)
    inner = x.astype(np.float64) @ down.astype(np.float64).T
    reference = y + inner @ up
    result = on_every_target(lambda target: kernels.lora_f32(target, x, down, up, y))
    bound = tolerances.lora(*(array.astype(np.float64) for array in (x, down, up, y)))
    assert_within(result, reference, bound)
    for row in range(5):
        alone = kernels.lora_f32("scalar", x[row : row + 1], down, up, y[row : row + 1])
        np.testing.assert_array_equal(alone[0], result[row])


def test_no_rows() -> None:
    for target in TARGETS:
        found = kernels.lora_f32(
            target, random_array(1, 0, 20), random_array(2, 3, 20), random_array(3, 3, 5), random_array(4, 0, 5)
        )
        assert found.shape == (0, 5)


def test_a_nan_stays_in_its_row() -> None:
    x, y, down, up = random_array(1, 3, 40), random_array(2, 3, 40), random_array(3, 8, 40), random_array(4, 8, 40)
    x[1, 39] = np.nan
    result = on_every_target(lambda target: kernels.lora_f32(target, x, down, up, y))
    assert np.isnan(result[1]).all()
    assert np.isfinite(result[[0, 2]]).all()
