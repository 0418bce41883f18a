"""Cells of lstm and gru, and attention of one query: every target against float64, and equal bits on all targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests import tolerances
from tests.kernels.support import F32, F64, SIZES, assert_within, kernels, on_every_target, random_array
from tests.tolerances import U


def sigmoid(x: F64) -> F64:
    result: F64 = np.exp(-np.logaddexp(0.0, -x))
    return result


def sigmoid_error(a: F64) -> F64:
    """Bound the error of a sigmoid whose argument was rounded once."""
    return U * np.abs(a) / 4 + tolerances.activation("sigmoid", a, sigmoid(a))


def tanh_error(a: F64, error: F64) -> F64:
    """Bound the error of a tanh whose argument has an error."""
    return error + tolerances.activation("tanh", a, np.tanh(a))


def both(run: Callable[[str], Sequence[F32]]) -> F32:
    """Return output and state of a cell, one after the other, equal on all targets."""
    return on_every_target(lambda target: np.concatenate(run(target)))


def doubles(*arrays: F32) -> list[F64]:
    return [array.astype(np.float64) for array in arrays]


@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
@pytest.mark.parametrize("clip", [0.0, 0.75])
@pytest.mark.parametrize("n", SIZES)
def test_lstm_cell(n: int, clip: float, scale: float) -> None:
    x, sums = random_array(1, 4 * n, scale=scale), random_array(2, 4 * n, scale=scale)
    state = random_array(3, n, scale=2.0)
    found = both(lambda target: kernels.lstm_cell_f32(target, x, sums, state, clip))
    i, f, g, o = np.split(x.astype(np.float64) + sums, 4)
    before = state.astype(np.float64)
    c = sigmoid(f) * before + sigmoid(i) * np.tanh(g)
    terms = np.abs(before) * sigmoid(f) + sigmoid(i) * np.abs(np.tanh(g))
    error = np.abs(before) * sigmoid_error(f) + sigmoid_error(i) + tanh_error(g, U * np.abs(g)) + 4 * U * terms
    c = np.clip(c, -clip, clip) if clip else c
    out = sigmoid(o) * np.tanh(c)
    out_error = sigmoid_error(o) + tanh_error(c, error) + 2 * U * np.abs(out)
    assert_within(found, np.concatenate([out, c]), 1.01 * np.concatenate([out_error, error]) + 2.0**-140)


@pytest.mark.parametrize("scale", [0.1, 3.0, 60.0])
@pytest.mark.parametrize("n", SIZES)
def test_gru_cell(n: int, scale: float) -> None:
    x, sums = random_array(1, 3 * n, scale=scale), random_array(2, 3 * n, scale=scale)
    state = random_array(3, n, scale=2.0)
    found = both(lambda target: kernels.gru_cell_f32(target, x, sums, state))
    (xr, xz, xn), (hr, hz, hn) = np.split(x.astype(np.float64), 3), np.split(sums.astype(np.float64), 3)
    reset, update, before = sigmoid(xr + hr), sigmoid(xz + hz), state.astype(np.float64)
    inner = xn + reset * hn
    fresh = np.tanh(inner)
    h = (1 - update) * fresh + update * before
    fresh_error = tanh_error(inner, np.abs(hn) * sigmoid_error(xr + hr) + 2 * U * (np.abs(inner) + np.abs(reset * hn)))
    difference = np.abs(before - fresh)
    error = difference * sigmoid_error(xz + hz) + 2 * fresh_error + 4 * U * (difference + np.abs(fresh) + np.abs(h))
    assert_within(found, np.tile(h, 2), 1.01 * np.tile(error, 2) + 2.0**-140)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_special_values(special: float) -> None:
    """NaN goes through; the gates are 0 or 1 for infinity."""
    x = np.full(8, special, np.float32)
    out, state = kernels.lstm_cell_f32("scalar", x, np.zeros(8, np.float32), np.full(2, 0.5, np.float32), 0.25)
    expected = {True: np.nan, False: 0.25 if special > 0 else 0.0}[bool(np.isnan(special))]
    assert np.array_equal(state, [expected] * 2, equal_nan=True)
    both(lambda target: kernels.lstm_cell_f32(target, x, np.zeros(8, np.float32), np.ones(2, np.float32), 0.25))
    both(lambda target: kernels.gru_cell_f32(target, x[:6], np.zeros(6, np.float32), np.ones(2, np.float32)))
    assert np.isnan(out).all() == np.isnan(special)


@pytest.mark.parametrize("n", SIZES)
def test_clip(n: int) -> None:
    x = random_array(1, n, scale=3.0)
    found = on_every_target(lambda target: kernels.clip_f32(target, x, clip=1.5))
    assert np.array_equal(found, np.clip(x, -1.5, 1.5))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_scores(n: int, rows: int) -> None:
    query, keys, weight = random_array(1, n), random_array(2, rows, n), random_array(3, n)
    q, k, v = doubles(query, keys, weight)
    roundings = tolerances.gamma(tolerances.tree_sum_roundings(n) + 2)
    found = on_every_target(lambda target: kernels.query_scores_f32(target, query, keys))
    assert_within(found, k @ q, roundings * (np.abs(k) @ np.abs(q)) + 2.0**-140)
    found = on_every_target(lambda target: kernels.query_scores_f32(target, query, keys, weight=weight))
    terms = np.tanh(q + k)
    error = roundings * (np.abs(terms) @ np.abs(v)) + tanh_error(q + k, U * np.abs(q + k)) @ np.abs(v)
    assert_within(found, terms @ v, 1.01 * error + 2.0**-140)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("rows", [0, 1, 33])
def test_weighted_sum(n: int, rows: int) -> None:
    weights, x = random_array(1, rows), random_array(2, rows, n)
    found = on_every_target(lambda target: kernels.weighted_sum_f32(target, weights, x))
    w, values = doubles(weights, x)
    assert_within(found, w @ values, tolerances.gamma(rows + 1) * (np.abs(w) @ np.abs(values)) + 2.0**-140)
