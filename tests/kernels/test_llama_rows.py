"""rms_norm and rotary: every target against float64, and equal bits on all targets."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import tolerances
from tests.kernels.support import (
    F32,
    F64,
    SIZES,
    TARGETS,
    assert_same_bits,
    assert_within,
    kernels,
    on_every_target,
    random_array,
)

EPS = 1e-6


def rms_norm(x: F32, weight: F32, eps: float) -> F64:
    """The formula in float64, for the groups of len(weight) elements."""
    groups = x.astype(np.float64).reshape(len(x), -1, len(weight))
    mean = (groups**2).mean(axis=-1, keepdims=True)
    return (groups / np.sqrt(mean + float(np.float32(eps))) * weight).reshape(x.shape)


@pytest.mark.parametrize("n", [*SIZES[1:], 64, 100, 4096])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rms_norm(n: int, groups: int, scale: float) -> None:
    x, weight = random_array(1, 3, groups * n, scale=scale), random_array(2, n, offset=3)
    reference = rms_norm(x, weight, EPS)
    result = on_every_target(lambda target: kernels.rms_norm_f32(target, x, weight, eps=EPS))
    assert_within(result, reference, tolerances.rms_norm(n, reference))


def test_no_rows() -> None:
    x, table, positions = random_array(1, 0, 20), random_array(2, 1, 20), np.empty(0, np.int32)
    for target in TARGETS:
        assert kernels.rms_norm_f32(target, x, table[0], eps=EPS).shape == (0, 20)
        assert kernels.rotary_f32(target, x, table, positions, n_head=1).shape == (0, 20)


def test_rms_norm_rows_are_separate() -> None:
    """A NaN reaches its own row or group; in a row with an infinity, other elements are x / infinity."""
    x, weight = random_array(1, 5, 600), random_array(2, 300)
    x[1, 299], x[3, 0] = np.nan, np.inf
    result = on_every_target(lambda target: kernels.rms_norm_f32(target, x, weight, eps=EPS))
    assert np.isnan(result[1, :300]).all()
    assert np.isnan(result[3, 0])
    np.testing.assert_array_equal(result[3, 1:300], 0.0)
    for row in range(5):
        for group in range(2):
            part = slice(group * 300, group * 300 + 300)
            alone = kernels.rms_norm_f32("scalar", x[row : row + 1, part], weight, eps=EPS)
            assert_same_bits(alone[0], result[row, part])


def test_rms_norm_of_zeros() -> None:
    zeros, ones = np.zeros((2, 40), np.float32), np.ones(40, np.float32)
    result = on_every_target(lambda target: kernels.rms_norm_f32(target, zeros, ones, eps=EPS))
    assert_same_bits(result, zeros)


def partners(dimensions: int, interleaved: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first and the second elements of the pairs."""
    if interleaved:
        return np.arange(0, dimensions, 2), np.arange(1, dimensions, 2)
    return np.arange(dimensions // 2), np.arange(dimensions // 2, dimensions)


def rotary(x: F32, table: F32, positions: NDArray[np.int32], *, n_head: int, interleaved: bool) -> tuple[F64, F64]:
    """The formula in float64, and the bound of the kernel."""
    out = x.astype(np.float64).reshape(len(x), n_head, -1)
    bound = np.zeros_like(out)
    first, second = partners(table.shape[1], interleaved)
    a, b = out[..., first], out[..., second]
    rows = table[positions].astype(np.float64)[:, None]
    cosine, sine = rows[..., first], rows[..., second]
    out[..., first], out[..., second] = a * cosine - b * sine, b * cosine + a * sine
    bound[..., first] = tolerances.rotary(a, b, cosine, sine)
    bound[..., second] = tolerances.rotary(b, a, cosine, sine)
    return out.reshape(x.shape), bound.reshape(x.shape)


def table_of(positions: int, dimensions: int, interleaved: bool) -> F32:
    angles = np.random.default_rng(5).uniform(-4, 4, (positions, dimensions // 2))
    table = random_array(0, positions, dimensions)
    first, second = partners(dimensions, interleaved)
    table[:, first], table[:, second] = np.cos(angles), np.sin(angles)
    return table


@pytest.mark.parametrize("dimensions", [2, 14, 16, 18, 24, 30, 32, 34, 64, 70, 128, 256])
@pytest.mark.parametrize("rest", [0, 1, 16, 35])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(dimensions: int, rest: int, interleaved: bool) -> None:
    n_head = 3
    x, table = random_array(1, 4, n_head * (dimensions + rest)), table_of(7, dimensions, interleaved)
    positions = np.array([6, 0, 3, 3], np.int32)
    reference, bound = rotary(x, table, positions, n_head=n_head, interleaved=interleaved)

    def run(target: str, rows: slice = slice(None)) -> F32:
        return kernels.rotary_f32(target, x[rows], table, positions[rows], n_head=n_head, interleaved=interleaved)

    result = on_every_target(run)
    assert_within(result, reference, bound)
    for row in range(4):
        assert_same_bits(run("scalar", slice(row, row + 1))[0], result[row])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dimensions", [32, 40])
def test_rotary_in_place(dimensions: int, interleaved: bool) -> None:
    """The result may be x, and x a slice of wider rows."""
    wide, table = random_array(1, 3, 2 * 48 + 20), table_of(5, dimensions, interleaved)
    positions = np.array([4, 1, 2], np.int32)
    expected = kernels.rotary_f32("scalar", wide[:, 7 : 7 + 96], table, positions, n_head=2, interleaved=interleaved)
    for target in TARGETS:
        rows = wide.copy()
        part = rows[:, 7 : 7 + 96]
        kernels.rotary_f32(target, part, table, positions, n_head=2, interleaved=interleaved, in_place=True)
        assert_same_bits(np.ascontiguousarray(part), expected)
        assert_same_bits(np.delete(rows, np.s_[7 : 7 + 96], axis=1), np.delete(wide, np.s_[7 : 7 + 96], axis=1))


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_keeps_nan_in_its_pair(interleaved: bool) -> None:
    dimensions = 40
    table = table_of(2, dimensions, interleaved)
    first, second = partners(dimensions, interleaved)
    for element in (0, 17, 39, 45):
        x = random_array(1, 1, 50)
        x[0, element] = np.nan
        result = on_every_target(
            lambda target, x=x: kernels.rotary_f32(
                target, x, table, np.ones(1, np.int32), n_head=1, interleaved=interleaved
            )
        )
        pair = [{int(a), int(b)} for a, b in zip(first, second, strict=True) if element in (a, b)]
        assert set(np.flatnonzero(np.isnan(result[0])).tolist()) == (pair[0] if pair else {element})


def test_rotary_by_no_angle_changes_no_bit() -> None:
    x = random_array(1, 2, 96)
    for interleaved in (False, True):
        table = np.zeros((1, 48), np.float32)
        table[:, partners(48, interleaved)[0]] = 1.0
        run = {"n_head": 2, "interleaved": interleaved}
        result = on_every_target(
            lambda t, run=run, table=table: kernels.rotary_f32(t, x, table, np.zeros(2, np.int32), **run)
        )
        assert_same_bits(result, x)
