"""Products, norms, softmax, activations, pooling: every target against float64, and equal bits on all targets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests import tolerances
from tests.kernels.support import (
    F32,
    SIZES,
    TARGETS,
    assert_same_bits,
    assert_within,
    kernels,
    on_every_target,
    random_array,
)

ACTIVATIONS = ("none", "gelu_erf", "gelu_tanh", "relu", "tanh", "silu", "sigmoid")
ROUGH = ("gelu_erf", "gelu_tanh")


def _gelu_erf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


REFERENCES = {
    "none": lambda x: x,
    "gelu_erf": _gelu_erf,
    "gelu_tanh": lambda x: x * _sigmoid(np.sqrt(8 / np.pi) * (x + 0.044715 * x**3)),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": lambda x: _sigmoid(x),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation: str) -> None:
    x = np.concatenate([np.linspace(-110, 110, 4001), np.linspace(-7, 7, 8001), np.geomspace(1e-30, 1, 301)])
    x = x.astype(np.float32)
    reference = REFERENCES[activation](x.astype(np.float64))
    result = on_every_target(lambda target: kernels.activation_f32(target, x, activation=activation))
    assert_within(result, reference, tolerances.activation(activation, x.astype(np.float64), reference))


@pytest.mark.parametrize("activation", ROUGH)
def test_rough_activation(activation: str) -> None:
    x = np.concatenate([np.linspace(-110, 110, 4001), np.linspace(-7, 7, 8001), np.geomspace(1e-30, 1, 301)])
    x = x.astype(np.float32)
    reference = REFERENCES[activation](x.astype(np.float64))
    bound = tolerances.gelu_rough(activation, x.astype(np.float64), reference)
    assert bound.max() < 2.5e-5 + tolerances.ulp(x.astype(np.float64)).max()
    result = on_every_target(lambda target: kernels.activation_f32(target, x, activation=activation, rough=True))
    assert_within(result, reference, bound)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("n", SIZES)
def test_activation_sizes(activation: str, n: int) -> None:
    x = random_array(n, n, scale=3.0)
    reference = REFERENCES[activation](x.astype(np.float64))
    result = on_every_target(lambda target: kernels.activation_f32(target, x, activation=activation))
    assert_within(result, reference, tolerances.activation(activation, x.astype(np.float64), reference))


@pytest.mark.parametrize(("activation", "rough"), [(a, False) for a in ACTIVATIONS] + [(a, True) for a in ROUGH])
def test_activation_limits(activation: str, rough: bool) -> None:
    """Infinities and huge numbers give the limits, a NaN affects only its element, a zero keeps its sign."""
    x = np.array([np.inf, 3e38, np.nan, 0.0, -0.0, -3e38, -np.inf, 1.0], np.float32)
    result = on_every_target(lambda target: kernels.activation_f32(target, x, activation=activation, rough=rough))
    upper = {"tanh": (1.0, 1.0), "sigmoid": (1.0, 1.0)}.get(activation, (np.inf, x[1]))
    lower = {"none": (x[5], -np.inf), "tanh": (-1.0, -1.0)}.get(activation, (0.0, 0.0))
    np.testing.assert_array_equal(result[:2], upper)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(x))
    np.testing.assert_array_equal(result[5:7], lower)
    if activation == "sigmoid":
        assert (result[3:5] == 0.5).all()
        return
    assert result[3] == 0 == result[4]
    assert [bool(s) for s in np.signbit(result[3:5])] == [False, True]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_bits_over_all_floats(activation: str) -> None:
    """A sample of all 2^32 bit patterns, including denormal numbers, infinities and NaN."""
    x = np.arange(0, 2**32, 40009, dtype=np.uint32).view(np.float32)
    result = on_every_target(lambda target: kernels.activation_f32(target, x, activation=activation))
    np.testing.assert_array_equal(np.isnan(result), np.isnan(x))


def test_exp_down_to_the_smallest_number() -> None:
    """softmax of (0, -t) is e^-t / (1 + e^-t): for t around 100 e^-t is denormal, rounded once, and 0 beyond 104."""
    x = np.zeros((2001, 2), np.float32)
    x[:, 1] = -np.linspace(0, 110, 2001)
    wide = x.astype(np.float64)
    reference = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    result = on_every_target(lambda target: kernels.softmax_f32(target, x))
    assert_within(result, reference, (2 * tolerances.EXP + tolerances.gamma(2)) * reference + tolerances.SMALLEST)
    assert (result[x[:, 1] < -104, 1] == 0).all()
    assert (result[x[:, 1] > -103, 1] > 0).all()


@pytest.mark.parametrize("k", [0, 1, 15, 16, 17, 64, 300])
@pytest.mark.parametrize("n", [1, 16, 35, 64, 65, 200])
@pytest.mark.parametrize("m", [0, 1, 6, 7])
def test_linear(m: int, n: int, k: int) -> None:
    a, weight = random_array(1, m, k), random_array(2, n, k)
    result = on_every_target(lambda target: kernels.linear(target, a, weight))
    wide_a, wide_weight = a.astype(np.float64), weight.astype(np.float64)
    assert_within(result, wide_a @ wide_weight.T, tolerances.product(wide_a, wide_weight))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_linear_epilogue(activation: str) -> None:
    """Bias, activation and residual in the product give the bits of the separate kernels."""
    a, weight = random_array(1, 9, 70), random_array(2, 150, 70, scale=0.3)
    bias, residual = random_array(3, 150), random_array(4, 9, 150)

    def fused(target: str) -> F32:
        return kernels.linear(target, a, weight, bias=bias, residual=residual, activation=activation)

    plain = kernels.linear("scalar", a, weight) + bias
    activated = kernels.activation_f32("scalar", plain.ravel(), activation=activation).reshape(plain.shape)
    assert_same_bits(on_every_target(fused), residual + activated)


def test_linear_row_depends_on_itself_alone() -> None:
    a, weight = random_array(1, 400, 129), random_array(2, 97, 129)
    for target in TARGETS:
        together = kernels.linear(target, a, weight)
        for row in (0, 5, 6, 191, 192, 399):
            assert_same_bits(kernels.linear(target, a[row : row + 1], weight)[0], together[row])
        poisoned = a.copy()
        poisoned[7, 3], poisoned[9, 0] = np.nan, np.inf
        others = np.delete(np.arange(400), [7, 9])
        result = kernels.linear(target, poisoned, weight)
        assert_same_bits(result[others], together[others])
        assert np.isnan(result[7]).all()
        assert not np.isfinite(result[9]).any()


@pytest.mark.parametrize("n", SIZES[1:])
@pytest.mark.parametrize("parts", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("center", [0.0, 100.0])
def test_layer_norm(n: int, parts: tuple[bool, bool], center: float) -> None:
    x = random_array(1, 3, n) + np.float32(center)
    weight = random_array(2, n) if parts[0] else None
    bias = random_array(3, n) if parts[1] else None
    eps = 1e-5

    def formula(dtype: type) -> np.ndarray:
        y = x.astype(dtype)
        y = y - y.mean(axis=1, keepdims=True, dtype=dtype)
        y = y / np.sqrt((y * y).mean(axis=1, keepdims=True, dtype=dtype) + dtype(np.float32(eps)))
        y = y * weight.astype(dtype) if weight is not None else y
        return y + bias.astype(dtype) if bias is not None else y

    reference = formula(np.float64)
    result = on_every_target(lambda t: kernels.layer_norm_f32(t, x, weight=weight, bias=bias, eps=eps))
    # The rounded mean alone changes every element of the row by up to half an ulp of the mean, divided by the
    # deviation.
    scale = np.abs(weight).max() if weight is not None else 1.0
    deviation = np.sqrt(x.astype(np.float64).var(axis=1, keepdims=True) + eps)
    floor = tolerances.U * scale * (np.abs(x).max(axis=1, keepdims=True) / deviation)
    floor = floor + 4 * tolerances.U * np.abs(reference).max(axis=1, keepdims=True)
    assert_within(result, reference, tolerances.fused(reference, formula(np.float32), floor=floor))


def test_layer_norm_rows_are_separate() -> None:
    x = random_array(1, 5, 300)
    x[1, 299], x[3, 0] = np.nan, np.inf
    result = on_every_target(lambda target: kernels.layer_norm_f32(target, x, eps=1e-12))
    assert np.isnan(result[[1, 3]]).all()
    for row in (0, 2, 4):
        assert_same_bits(kernels.layer_norm_f32("scalar", x[row : row + 1], eps=1e-12)[0], result[row])


@pytest.mark.parametrize("n", SIZES[1:])
@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("log", [False, True])
def test_softmax(n: int, scale: float, log: bool) -> None:
    x = random_array(n, 4, n, scale=scale)
    wide = x.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_reference = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    result = on_every_target(lambda target: kernels.softmax_f32(target, x, log=log))
    if log:
        assert_within(result, log_reference, tolerances.log_softmax(wide, log_reference))
    else:
        assert_within(result, np.exp(log_reference), tolerances.softmax(wide, np.exp(log_reference)))


def test_softmax_of_infinities() -> None:
    x = np.full((5, 40), -np.inf, np.float32)
    x[1, 3] = 2.0
    x[2, :] = 1.0
    x[2, 39] = np.nan
    x[3, :] = 1.0
    x[3, 0] = np.inf
    x[4, :] = 0.0
    probs = on_every_target(lambda target: kernels.softmax_f32(target, x))
    np.testing.assert_array_equal(probs[0], 0.0)
    np.testing.assert_array_equal(probs[1], np.eye(40)[3])
    assert np.isnan(probs[2:4]).all()
    np.testing.assert_array_equal(probs[4], np.float32(1) / np.float32(40))
    logs = on_every_target(lambda target: kernels.softmax_f32(target, x, log=True))
    np.testing.assert_array_equal(logs[0], -np.inf)
    assert logs[1, 3] == 0
    assert np.isnan(logs[2:4]).all()


@pytest.mark.parametrize("n", SIZES)
def test_add_and_multiply(n: int) -> None:
    x, y = random_array(1, n), random_array(2, n, offset=3)
    assert_same_bits(on_every_target(lambda target: kernels.add_f32(target, x, y)), x + y)
    assert_same_bits(on_every_target(lambda target: kernels.multiply_f32(target, x, y)), x * y)


def test_multiply_of_infinities_and_denormals() -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-30, 1e-40, 3e38], np.float32)
    x, y = (part.ravel() for part in np.meshgrid(x, x))
    with np.errstate(all="ignore"):
        expected = x * y
    assert_same_bits(on_every_target(lambda target: kernels.multiply_f32(target, x, y)), expected)


@pytest.mark.parametrize("kind", ["mean", "max", "mean_sqrt_len"])
@pytest.mark.parametrize("rows", [0, 1, 3, 129])
@pytest.mark.parametrize("n", SIZES)
def test_pool(kind: str, rows: int, n: int) -> None:
    x = random_array(1, rows, n)
    wide = x.astype(np.float64)
    if rows == 0:
        reference = np.zeros(n)
    elif kind == "max":
        reference = wide.max(axis=0)
    else:
        reference = wide.sum(axis=0) / (rows if kind == "mean" else np.sqrt(rows))
    result = on_every_target(lambda target: kernels.pool_f32(target, x, kind=kind))
    assert_within(result, reference, tolerances.pool(wide, kind=kind))


def test_pool_keeps_nan_in_its_column() -> None:
    for kind in ("mean", "max", "mean_sqrt_len"):
        for row in (0, 2, 4):
            x = random_array(1, 5, 40)
            x[row, 17] = np.nan
            result = on_every_target(lambda target, x=x, kind=kind: kernels.pool_f32(target, x, kind=kind))
            np.testing.assert_array_equal(np.flatnonzero(np.isnan(result)), [17])


@pytest.mark.parametrize("n", SIZES[1:])
def test_l2_normalize(n: int) -> None:
    x = random_array(1, 3, n)
    wide = x.astype(np.float64)
    reference = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    result = on_every_target(lambda target: kernels.l2_normalize_f32(target, x, eps=1e-12))
    assert_within(result, reference, tolerances.l2_normalize(n, reference))


def test_l2_normalize_of_zeros_and_nan() -> None:
    x = np.zeros((3, 20), np.float32)
    x[1, 19] = np.nan
    x[2] = 1.0
    result = on_every_target(lambda target: kernels.l2_normalize_f32(target, x, eps=1e-12))
    np.testing.assert_array_equal(result[0], 0.0)
    assert np.isnan(result[1]).all()
    assert np.isfinite(result[2]).all()


@settings(max_examples=200)
@given(hnp.arrays(np.float32, st.integers(1, 70), elements=st.floats(-3, 3, width=16) | st.just(-np.inf)))
def test_argmax(x: F32) -> None:
    for target in TARGETS:
        index, value = kernels.argmax_f32(target, x)
        assert index == np.argmax(x)
        assert value == x[index]


@pytest.mark.parametrize("n", [1, 16, 17, 50257])
def test_argmax_special(n: int) -> None:
    for target in TARGETS:
        assert kernels.argmax_f32(target, np.full(n, -np.inf, np.float32)) == (0, -np.inf)
        for at in {0, n // 2, n - 1}:
            x = np.zeros(n, np.float32)
            x[at] = 1.0
            assert kernels.argmax_f32(target, x) == (at, 1.0)
            x[at] = np.nan
            assert kernels.argmax_f32(target, x)[0] == -1
        assert kernels.argmax_f32(target, np.empty(0, np.float32))[0] == -1


@settings(max_examples=200)
@given(
    hnp.arrays(
        np.float32, st.integers(0, 150), elements=st.floats(-3, 3, width=16) | st.sampled_from([np.nan, -np.inf])
    ),
    st.floats(-3, 3, width=16) | st.sampled_from([np.inf, -np.inf]),
)
def test_find(x: F32, threshold: float) -> None:
    """The first value that is not below the threshold; comparisons with NaN are false."""
    found = np.flatnonzero(~(x < np.float32(threshold)))
    for target in TARGETS:
        assert kernels.find_f32(target, x, threshold=threshold) == (found[0] if found.size else len(x))


@pytest.mark.parametrize("n", [*SIZES, 50257])
def test_exp_sum(n: int) -> None:
    """exp_sum gives the softmax's own exponentials and sum: the quotient and the log-softmax have the same bits."""
    x = random_array(n, n, scale=4)
    shift = float(x.max()) if n else 0.0
    results = [kernels.exp_sum_f32(target, x, shift=shift) for target in TARGETS]
    for out, *sums in results:
        assert_same_bits(out, results[0][0])
        assert tuple(sums) == results[0][1:]
    out, total, alone, log_total = results[0]
    assert alone == total
    if n:
        assert_same_bits(out / np.float32(total), kernels.softmax_f32("scalar", x[None])[0])
        logs = x - np.float32(shift) - np.float32(log_total)
        assert_same_bits(logs, kernels.softmax_f32("scalar", x[None], log=True)[0])
    else:
        assert (total, log_total) == (0, 0)
