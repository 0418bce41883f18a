"""Compares the emulated float32 operations with fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tests.reference.float32 import F32, fma


def nearest(exact: Fraction) -> np.float32:
    """Return the nearest float32; on a tie, the even one."""
    guess = np.float32(float(exact))
    near = [guess, np.nextafter(guess, np.float32(-np.inf)), np.nextafter(guess, np.float32(np.inf))]
    return min(near, key=lambda x: (abs(Fraction(float(x)) - exact), int(x.view(np.int32)) & 1))


def expected(a: F32, b: F32, c: F32) -> F32:
    rows = zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    return np.array([nearest(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in rows], np.float32)


@pytest.mark.parametrize("low", [0, -30, -60, -140])
def test_fma_of_random_numbers(low: int) -> None:
    """Terms of similar and of very different magnitudes, down to denormal sums."""
    rng = np.random.default_rng(-low)
    a, b, c = (np.ldexp(rng.standard_normal(2000), rng.integers(low, 3, 2000)).astype(np.float32) for _ in range(3))
    c[:500] = -(a[:500] * b[:500])  # only the product's rounding error remains
    np.testing.assert_array_equal(fma(a, b, c), expected(a, b, c))


def test_fma_where_rounding_twice_is_wrong() -> None:
    """A float64 sum on a float32 tie, with an error that says which side is correct."""
    a = np.array([1 + 2**-12, 1 + 2**-12, 1 - 2**-12], np.float32)
    b = np.array([1 + 2**-12, -1 - 2**-12, 1 + 2**-12], np.float32)
    c = np.array([2.0**-60, -(2.0**-60), -(2.0**-60)], np.float32)
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    np.testing.assert_array_equal(fma(a, b, c), expected(a, b, c))
    assert (fma(a, b, c) != twice).any()


def test_one_addend_for_every_row() -> None:
    a, c = np.ones((2, 3), np.float32), np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(fma(a, a, c), [[1, 2, 3], [1, 2, 3]])
