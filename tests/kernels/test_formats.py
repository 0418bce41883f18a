"""bfloat16, int8 and int4: compares every target's packing and products with fastattn.graph.quantize."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastattn.errors import ConfigError
from fastattn.graph.quantize import dequantize, quantize, to_bfloat16, to_int8
from tests import tolerances
from tests.kernels.support import F32, F64, TARGETS, assert_same_bits, assert_within, kernels, random_array
from tests.reference.float32 import fma

INTEGERS = ("int8", "int4")
FORMATS = ("bfloat16", *INTEGERS)
DEPTHS = (1, 3, 4, 31, 32, 33, 100, 768, 1500)
WIDTHS = (1, 15, 16, 17, 63, 64, 65, 130)
NO_BIAS = np.zeros(1, np.float32)


def integer_linear(a: F32, weight: F32, form: str, bias: F32 = NO_BIAS) -> F32:
    """Return the formula: an exact sum of integers, rounded once to float32, times the scale of the row.

    The result times the scale of the column, plus the bias, is rounded once.
    """
    rows, columns = to_int8(a), quantize(weight, form)
    total = rows.values.astype(np.int64) @ columns.values.astype(np.int64).T
    return fma(total.astype(np.float32) * rows.scales[:, None], columns.scales, bias)


def bfloat16_bound(a: F32, weight: F32) -> tuple[F64, F64]:
    """Return the product of the rounded operands and its bound.

    A target may add a pair of products before adding them to the sum, with a rounding each, and may treat denormal
    operands and sums as 0.
    """
    rounded_a, rounded = to_bfloat16(a).astype(np.float64), to_bfloat16(weight).astype(np.float64)
    bound = tolerances.product(rounded_a, rounded, extra_roundings=a.shape[1] + 1)
    smallest = (
        a.shape[1]
        * tolerances.SMALLEST_NORMAL
        * (1 + np.abs(rounded_a).max(initial=0) + np.abs(rounded).max(initial=0))
    )
    return rounded_a @ rounded.T, bound + smallest


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("k", DEPTHS)
def test_weights_as_the_formula_says(form: str, n: int, k: int) -> None:
    weight = random_array(n, n, k)
    weight[:, ::7] *= 20
    for target in TARGETS:
        for transposed in (False, True):
            assert_same_bits(kernels.dequantized(target, weight, form, transposed=transposed), dequantize(weight, form))


SPECIAL: dict[str, Callable[[F32], None]] = {
    "zeros": lambda w: w.fill(0),
    "equal": lambda w: w.fill(-0.7),
    "denormal": lambda w: np.multiply(w, np.float32(1e-40), out=w),
    "tiny": lambda w: np.multiply(w, np.float32(2.0**-119), out=w),
    "huge": lambda w: np.multiply(w, np.float32(2.0**124), out=w),
    "one outlier": lambda w: w.__setitem__((slice(None), 5), 1000),
    "small groups": lambda w: w.__setitem__((slice(None), slice(32, None)), w[:, 32:] * np.float32(0.01)),
    "ties": lambda w: np.rint(w * 3, out=w),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_weights(form: str, name: str) -> None:
    weight = np.clip(random_array(3, 37, 90), -4, 4)
    SPECIAL[name](weight)
    for target in TARGETS:
        for transposed in (False, True):
            assert_same_bits(kernels.dequantized(target, weight, form, transposed=transposed), dequantize(weight, form))
            assert np.isfinite(kernels.dequantized(target, weight, form)).all()


@settings(max_examples=100)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 70)), elements=st.floats(width=32)),
    st.sampled_from(FORMATS),
)
def test_any_weights(weight: F32, form: str) -> None:
    for target in TARGETS:
        assert_same_bits(kernels.dequantized(target, weight, form), dequantize(weight, form))


@settings(max_examples=100)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 70)), elements=st.floats(width=32)))
def test_rows_of_activations(x: F32) -> None:
    """quantize_int8 and quantize_bfloat16 of any floats give the bytes and scales of the formula."""
    expected = to_int8(x)
    for target in TARGETS:
        words, scales = kernels.quantize(target, x, "int8")
        bytes_ = np.ascontiguousarray(words).view(np.int8).reshape(len(x), -1)
        np.testing.assert_array_equal(bytes_[:, : x.shape[1]], expected.values)
        np.testing.assert_array_equal(bytes_[:, x.shape[1] :], 0)
        assert_same_bits(scales, expected.scales)
        words, _ = kernels.quantize(target, x, "bfloat16")
        halves = np.ascontiguousarray(words).view(np.uint16).reshape(len(x), -1)[:, : x.shape[1]]
        found = (halves.astype(np.uint32) << 16).view(np.float32)
        denormal = np.abs(x) < tolerances.SMALLEST_NORMAL  # a target may treat them as 0
        assert_same_bits(np.where(denormal, 0, found), np.where(denormal, 0, to_bfloat16(x)))


@pytest.mark.parametrize("form", INTEGERS)
@pytest.mark.parametrize("m", [0, 1, 2, 6, 7, 13])
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("k", DEPTHS)
def test_integer_products_are_exact(form: str, m: int, n: int, k: int) -> None:
    a, weight = random_array(1, m, k), random_array(2, n, k)
    for target in TARGETS:
        assert_same_bits(kernels.linear(target, a, weight, format=form), integer_linear(a, weight, form))


@pytest.mark.parametrize("form", INTEGERS)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(400, 70, 40), (1, 256, 3072), (5, 64, 65536), (200, 17, 4000), (250, 70, 8300)]
)
def test_integer_products_of_real_sizes(form: str, m: int, n: int, k: int) -> None:
    """Whole row blocks, several blocks of k, and the largest k, whose sums come near 2^31."""
    a, weight = np.abs(random_array(1, m, k)) + np.float32(3), np.abs(random_array(2, n, k)) + np.float32(3)
    a[m // 2], weight[n // 2] = 1, -1  # all bytes have the largest magnitude
    expected = integer_linear(a, weight, form)
    for target in TARGETS:
        assert_same_bits(kernels.linear(target, a, weight, format=form), expected)


@pytest.mark.parametrize("form", INTEGERS)
def test_more_terms_than_fit_are_refused(form: str) -> None:
    weight = np.zeros((1, 65537), np.float32)
    for target in TARGETS:
        with pytest.raises(ConfigError, match="65536"):
            kernels.dequantized(target, weight, form)
    assert kernels.dequantized(TARGETS[0], weight, "bfloat16").shape == weight.shape


@pytest.mark.parametrize("m", [0, 1, 6, 7, 200])
@pytest.mark.parametrize("n", [1, 16, 65, 200])
@pytest.mark.parametrize("k", [1, 2, 17, 300, 2000])
def test_bfloat16_products(m: int, n: int, k: int) -> None:
    a, weight = random_array(1, m, k), random_array(2, n, k)
    reference, bound = bfloat16_bound(a, weight)
    for target in TARGETS:
        assert_within(kernels.linear(target, a, weight, format="bfloat16"), reference, bound)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("activation", ["none", "gelu_erf", "gelu_tanh", "relu"])
def test_epilogue(form: str, activation: str) -> None:
    """Activation and residual give the bits of the separate kernels; the bias gives those of the formula."""
    a, weight = random_array(1, 9, 70), random_array(2, 150, 70, scale=0.3)
    bias, residual = random_array(3, 150), random_array(4, 9, 150)
    for target in TARGETS:
        plain = kernels.linear(target, a, weight, bias=bias, format=form)
        if form == "bfloat16":
            assert_same_bits(plain, kernels.linear(target, a, weight, format=form) + bias)
        else:
            assert_same_bits(plain, integer_linear(a, weight, form, bias))
        activated = kernels.activation_f32(target, plain.ravel(), activation=activation, rough=True)
        found = kernels.linear(target, a, weight, bias=bias, residual=residual, activation=activation, format=form)
        assert_same_bits(found, residual + activated.reshape(plain.shape))


@pytest.mark.parametrize("m", [1, 6, 7, 400])
@pytest.mark.parametrize("n", [16, 64, 80, 192])
@pytest.mark.parametrize("activation", ["none", "gelu_erf"])
def test_bfloat16_output(m: int, n: int, activation: str) -> None:
    a, weight, bias = random_array(1, m, 70), random_array(2, n, 70), random_array(3, n)
    a[0, 0] = np.nan
    for target in TARGETS:
        exact = kernels.linear(target, a, weight, bias=bias, activation=activation, format="bfloat16")
        bits = kernels.linear(
            target, a, weight, bias=bias, activation=activation, format="bfloat16", bfloat16_output=True
        )
        np.testing.assert_array_equal(bits.astype(np.uint32) << 16, to_bfloat16(exact).view(np.uint32))


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_depends_on_itself_alone(form: str) -> None:
    a, weight = random_array(1, 400, 129), random_array(2, 97, 129)
    for target in TARGETS:
        together = kernels.linear(target, a, weight, format=form)
        for row in (0, 5, 6, 191, 192, 399):
            assert_same_bits(kernels.linear(target, a[row : row + 1], weight, format=form)[0], together[row])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("m", [1, 40])
def test_what_is_not_finite_stays_in_its_row_and_column(form: str, value: float, m: int) -> None:
    a, weight = random_array(1, m, 129), random_array(2, 97, 129)
    for target in TARGETS:
        clean = kernels.linear(target, a, weight, format=form)
        rows, columns = a.copy(), weight.copy()
        rows[m // 2, 128], columns[70, 0] = value, value
        found = kernels.linear(target, rows, weight, format=form)
        others = np.arange(m) != m // 2
        assert_same_bits(found[others], clean[others])
        assert not np.isfinite(found[m // 2]).any()
        found = kernels.linear(target, a, columns, format=form)
        others = np.arange(97) != 70
        assert_same_bits(found[:, others], clean[:, others])
        assert not np.isfinite(found[:, 70]).any()


def before_a_guard_page(values: F32) -> F32:
    """Copy the values to the end of a page; the next page cannot be read."""
    page = mmap.PAGESIZE
    used = -(-values.nbytes // page) * page
    pages = mmap.mmap(-1, used + page)
    libc = ctypes.CDLL(None)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    assert libc.mprotect(ctypes.c_void_p(address + used), page, 0) == 0
    copy = np.frombuffer(pages, np.float32, values.size, used - values.nbytes).reshape(values.shape)
    copy[...] = values
    return copy


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("k", [1, 15, 16, 17, 33, 100])
def test_no_read_past_the_last_activation(form: str, k: int) -> None:
    """A fault here ends the test run; weights before guard pages are tested in csrc/native_tests."""
    a, weight = random_array(1, 3, k), random_array(2, 20, k)
    guarded = before_a_guard_page(a)
    for target in TARGETS:
        expected = kernels.linear(target, a, weight, format=form)
        assert_same_bits(kernels.linear(target, guarded, weight, format=form), expected)
        words, scales = kernels.quantize(target, guarded, form)
        for found, again in zip((words, scales), kernels.quantize(target, a, form), strict=True):
            if form != "bfloat16":
                np.testing.assert_array_equal(found, again)
