"""Faults 50 to 57: arrays of the wrong dtype, layout, shape or content, through fastattn.ops."""

from __future__ import annotations

import threading
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn import ops
from fastattn.errors import DTypeError, InputError

Call = Callable[[Any], NDArray[np.float32]]

# Every op as a function of one [8, 16] array.
OPS: dict[str, Call] = {
    "linear": lambda x: ops.linear(x, WEIGHT),
    "matmul": lambda x: ops.matmul(x, WEIGHT.T),
    "layer_norm": lambda x: ops.layer_norm(x, 16),
    "softmax": ops.softmax,
    "log_softmax": ops.log_softmax,
    "gelu": ops.gelu,
    "attention": lambda x: ops.scaled_dot_product_attention(x, x, x),
}
WEIGHT = np.random.default_rng(1).standard_normal((5, 16), dtype=np.float32)
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())


def example() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((8, 16), dtype=np.float32)


@every_op
@pytest.mark.parametrize(
    "dtype", ["float64", "float16", "int8", "int32", "int64", "object", "bool", "complex64", "complex128", ">f8", "U4"]
)
def test_50_a_dtype_other_than_float32_is_refused(op: Call, dtype: str) -> None:
    with pytest.raises(DTypeError, match="expected float32, got "):
        op(np.ones((8, 16)).astype(dtype))


@every_op
def test_50_structured_bfloat16_and_objects_that_are_not_arrays_are_refused(op: Call) -> None:
    structured = np.zeros((8, 16), np.dtype([("x", np.float32)]))
    for wrong in (structured, [[1.0] * 16] * 8, None, 3.0, "text", memoryview(example())):
        with pytest.raises(DTypeError, match="expected "):
            op(wrong)
    with pytest.raises(DTypeError, match="masked array"):
        op(np.ma.masked_array(example(), mask=example() > 0))


@every_op
def test_50_bfloat16_is_refused(op: Call) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(DTypeError, match="expected float32, got bfloat16"):
        op(example().astype(ml_dtypes.bfloat16))


@every_op
def test_50_the_other_byte_order_is_converted(op: Call) -> None:
    x = example()
    swapped = x.astype(x.dtype.newbyteorder())
    assert not swapped.dtype.isnative
    np.testing.assert_array_equal(op(swapped), op(x))
    np.testing.assert_array_equal(swapped, x)


def misaligned(x: NDArray[np.float32]) -> NDArray[np.float32]:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    view = raw[1:].view(np.float32).reshape(x.shape)
    view[...] = x
    assert not view.flags.aligned
    return view


LAYOUTS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "fortran": np.asfortranarray,
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "every other row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "negative strides": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "misaligned": misaligned,
}


@every_op
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_51_any_layout_gives_the_same_bits(op: Call, layout: Callable[[Any], NDArray[np.float32]]) -> None:
    x = example()
    np.testing.assert_array_equal(op(layout(x)), op(x))


@every_op
def test_51_stride_zero(op: Call) -> None:
    row = example()[:1]
    np.testing.assert_array_equal(op(np.broadcast_to(row, (8, 16))), op(np.repeat(row, 8, axis=0)))


@every_op
def test_52_read_only_input_is_accepted(op: Call) -> None:
    x = example()
    expected = op(x.copy())
    x.flags.writeable = False
    np.testing.assert_array_equal(op(x), expected)


@pytest.mark.parametrize("name", ["linear", "softmax"])
def test_52_read_only_out_is_refused(name: str) -> None:
    out = np.zeros((8, 5) if name == "linear" else (8, 16), np.float32)
    out.flags.writeable = False
    with pytest.raises(InputError, match="out: expected a writable array"):
        ops.linear(example(), WEIGHT, out=out) if name == "linear" else ops.softmax(example(), out=out)
    assert not out.any()


def test_53_out_that_is_or_overlaps_an_input_gives_the_right_result() -> None:
    square = np.random.default_rng(2).standard_normal((16, 16), dtype=np.float32)
    x = example()
    expected = ops.linear(x, square)
    assert ops.linear(x, square, out=x) is x
    np.testing.assert_array_equal(x, expected)

    room = np.zeros((9, 16), np.float32)
    room[:8] = example()
    expected = ops.linear(room[:8].copy(), square)
    np.testing.assert_array_equal(ops.linear(room[:8], square, out=room[1:]), expected)

    weight = square.copy()
    expected = ops.linear(square, weight)
    np.testing.assert_array_equal(ops.linear(square, weight, out=weight), expected)


def test_53_out_of_every_op() -> None:
    x = example()
    calls: list[tuple[Call, Any]] = [
        (OPS["linear"], lambda o: ops.linear(x, WEIGHT, out=o)),
        (OPS["matmul"], lambda o: ops.matmul(x, WEIGHT.T, out=o)),
        (OPS["layer_norm"], lambda o: ops.layer_norm(x, 16, out=o)),
        (OPS["softmax"], lambda o: ops.softmax(x, out=o)),
        (OPS["log_softmax"], lambda o: ops.log_softmax(x, out=o)),
        (OPS["gelu"], lambda o: ops.gelu(x, out=o)),
        (OPS["attention"], lambda o: ops.scaled_dot_product_attention(x, x, x, out=o)),
    ]
    for plain, with_out in calls:
        expected = plain(x)
        for layout in (np.ascontiguousarray, np.asfortranarray):
            out = layout(np.zeros(expected.shape, np.float32))
            assert with_out(out) is out
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((8, 6), np.float32), InputError, r"out: expected shape \(8, 5\), got \(8, 6\)"),
        (np.zeros((8, 5)), DTypeError, "out: expected float32, got float64"),
        (np.zeros((8, 5), ">f4"), DTypeError, "out: expected float32, got >f4"),
        ([[0.0] * 5] * 8, DTypeError, "out: expected a float32 numpy array, got list"),
    ],
)
def test_53_out_of_the_wrong_shape_or_dtype_is_refused(out: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.linear(example(), WEIGHT, out=out)


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def test_54_zero_size_axes_of_products() -> None:
    bias = np.arange(5, dtype=np.float32)
    assert ops.linear(zeros(0, 16), WEIGHT).shape == (0, 5)
    assert ops.linear(zeros(3, 16), zeros(0, 16)).shape == (3, 0)
    np.testing.assert_array_equal(ops.linear(zeros(2, 0), zeros(5, 0), bias), [bias, bias])
    assert ops.matmul(zeros(0, 4), zeros(4, 5)).shape == (0, 5)
    np.testing.assert_array_equal(ops.matmul(zeros(3, 0), zeros(0, 5)), zeros(3, 5))
    assert ops.matmul(zeros(0, 3, 4), zeros(4, 5)).shape == (0, 3, 5)


def test_54_zero_size_axes_of_row_ops() -> None:
    for shape in ((0,), (0, 4), (4, 0), (2, 0, 3)):
        assert ops.softmax(zeros(*shape)).shape == shape
        assert ops.log_softmax(zeros(*shape), 0).shape == shape
        assert ops.gelu(zeros(*shape)).shape == shape
        assert ops.layer_norm(zeros(*shape), shape[-1]).shape == shape


@pytest.mark.parametrize("causal", [False, True])
def test_54_zero_size_axes_of_attention(causal: bool) -> None:
    def call(q: tuple[int, ...], kv: tuple[int, ...]) -> NDArray[np.float32]:
        return ops.scaled_dot_product_attention(zeros(*q), zeros(*kv), zeros(*kv), is_causal=causal)

    assert call((0, 2, 3, 16), (0, 2, 5, 16)).shape == (0, 2, 3, 16)  # no batch
    assert call((1, 0, 3, 16), (1, 0, 5, 16)).shape == (1, 0, 3, 16)  # no head
    assert call((1, 2, 0, 16), (1, 2, 5, 16)).shape == (1, 2, 0, 16)  # no query
    np.testing.assert_array_equal(call((1, 2, 3, 16), (1, 2, 0, 16)), zeros(1, 2, 3, 16))  # no key
    assert call((1, 2, 3, 0), (1, 2, 5, 0)).shape == (1, 2, 3, 0)  # no feature


def test_54_attention_without_features_weighs_all_keys_alike() -> None:
    value = np.arange(8, dtype=np.float32).reshape(4, 2)
    found = ops.scaled_dot_product_attention(zeros(3, 0), zeros(4, 0), value)
    np.testing.assert_array_equal(found, np.broadcast_to(value.mean(0), (3, 2)))


@pytest.mark.parametrize(
    ("q", "k", "v", "gqa", "message"),
    [
        ((1, 2, 3, 16), (1, 2, 5, 8), (1, 2, 5, 16), False, r"key: expected head_dim 16"),
        ((1, 2, 3, 16), (1, 2, 5, 16), (1, 2, 4, 16), False, r"value: expected kv_len 5"),
        ((2, 2, 3, 16), (3, 2, 5, 16), (3, 2, 5, 16), False, r"key: expected leading axes that broadcast"),
        ((1, 2, 3, 16), (1, 2, 5, 16), (1, 3, 5, 16), False, r"value: expected leading axes that broadcast"),
        ((1, 4, 3, 16), (1, 2, 5, 16), (1, 2, 5, 16), False, r"key: expected leading axes that broadcast"),
        ((1, 5, 3, 16), (1, 2, 5, 16), (1, 2, 5, 16), True, r"key: expected a number of heads that divides query's 5"),
        ((1, 4, 3, 16), (1, 0, 5, 16), (1, 0, 5, 16), True, r"key: expected a number of heads that divides query's 4"),
        ((1, 4, 3, 16), (1, 2, 5, 16), (1, 4, 5, 16), True, r"value: expected 2 heads"),
        ((3, 16), (5, 16), (5, 16), True, r"enable_gqa: expected a head axis"),
        ((16,), (5, 16), (5, 16), False, r"query: expected at least 2 axes"),
    ],
)
def test_55_shapes_that_do_not_fit(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], gqa: bool, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ops.scaled_dot_product_attention(zeros(*q), zeros(*k), zeros(*v), enable_gqa=gqa)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_56_nan_and_infinity_stay_in_their_row_and_head(bad: float, which: str) -> None:
    rng = np.random.default_rng(3)
    arrays = {name: rng.standard_normal((2, 3, 70, 16), dtype=np.float32) for name in "qkv"}
    clean = ops.scaled_dot_product_attention(*arrays.values())
    arrays[which][1, 2, 5, 7] = bad
    found = ops.scaled_dot_product_attention(*arrays.values())
    touched = np.zeros(clean.shape, bool)
    touched[1, 2, 5 if which == "q" else slice(None)] = True
    np.testing.assert_array_equal(found[~touched], clean[~touched])
    if np.isnan(bad):
        assert np.isnan(found[1, 2, 5]).any()


@pytest.mark.parametrize("name", ["linear", "matmul", "layer_norm", "softmax", "log_softmax", "gelu"])
def test_56_nan_stays_in_its_row(name: str) -> None:
    x = example()
    clean = OPS[name](x)
    x[3, 4] = np.nan
    found = OPS[name](x)
    assert np.isnan(found[3]).any()
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(clean, 3, 0))


def test_57_arrays_changed_or_dropped_by_another_thread_do_no_harm() -> None:
    stop = threading.Event()
    shared = np.ones((64, 64), np.float32)
    failures: list[BaseException] = []

    def change() -> None:
        while not stop.is_set():
            shared[...] += 1
            if shared[0, 0] > 1000:
                shared[...] = 1

    def call() -> None:
        try:
            for _ in range(100):
                assert ops.linear(shared, shared).shape == (64, 64)
                # Only the call itself has a reference to these inputs.
                assert ops.scaled_dot_product_attention(*(shared.copy() for _ in range(3))).shape == (64, 64)
        except BaseException as error:  # reported by the test's own thread
            failures.append(error)

    changer = threading.Thread(target=change)
    callers = [threading.Thread(target=call) for _ in range(3)]
    for thread in (changer, *callers):
        thread.start()
    for thread in callers:
        thread.join()
    stop.set()
    changer.join()
    assert not failures


def test_57_an_array_that_is_being_read_cannot_be_resized() -> None:
    array = np.ones((64, 64), np.float32)
    view = array[1:]  # a running call holds a reference to the memory, like this view
    with pytest.raises(ValueError, match="resize"):
        array.resize((1, 1))
    assert ops.softmax(view).shape == (63, 64)


class TestArraysWithoutMemory:
    """Lengths are checked before anything is copied, allocated or iterated: each of these would take terabytes."""

    LONG = 2**40

    def broadcast(self, value: Any, *shape: int) -> NDArray[Any]:
        return np.broadcast_to(value, shape)

    @every_op
    def test_53_a_long_axis_is_refused(self, op: Call) -> None:
        with pytest.raises(InputError, match="expected axes of at most 2147483647, got shape"):
            op(self.broadcast(np.float32(1), self.LONG, 16))

    def test_53_shapes_are_compared_before_a_copy(self) -> None:
        x, wide = example(), self.broadcast(np.float32(1), 2**30, 2**30)
        calls: list[Callable[[], Any]] = [
            lambda: ops.linear(wide, x),
            lambda: ops.linear(x, wide),
            lambda: ops.matmul(wide, x),
            lambda: ops.layer_norm(wide, 16),
            lambda: ops.layer_norm(x, 16, wide),
            lambda: ops.softmax(wide, 2),
            lambda: ops.scaled_dot_product_attention(x, wide, wide),
            lambda: ops.scaled_dot_product_attention(x, x, x, wide),
            lambda: ops.scaled_dot_product_attention(x, x, x, self.broadcast(np.True_, self.LONG, 8)),
            lambda: ops.gelu(wide, out=x),
            lambda: ops.softmax(wide, out=x),
            lambda: ops.layer_norm(x, self.broadcast(np.int64(16), self.LONG)),
            lambda: ops.layer_norm(x, [16] * 65),
        ]
        for i, call in enumerate(calls):
            with pytest.raises(InputError) as caught:
                call()
            assert len(str(caught.value)) < 200, i

    @pytest.mark.parametrize("shape", [np.empty((2**25, 0), np.int64), np.zeros((1, 1), np.int64)])
    def test_53_normalized_shape_has_one_axis(self, shape: Any) -> None:
        with pytest.raises(DTypeError, match=r"^normalized_shape: expected int, got ndarray of int64 with shape"):
            ops.layer_norm(example(), shape)

    def test_53_a_result_that_no_array_can_hold(self) -> None:
        rows, columns = np.empty((2**31 - 1, 0), np.float32), np.empty((0, 2**31 - 1), np.float32)
        for call in (lambda: ops.matmul(rows, columns), lambda: ops.linear(rows, rows)):
            with pytest.raises(InputError, match="expected a result of at most"):
                call()

    def test_54_many_empty_rows(self) -> None:
        x = np.empty((2**25, 0), np.float32)
        assert ops.softmax(x).shape == x.shape
        assert ops.gelu(x).shape == x.shape
        assert ops.layer_norm(x, 0).shape == x.shape


@pytest.mark.skipif(int(np.__version__.split(".")[0]) < 2, reason="numpy 1 has at most 32 axes")
def test_51_arrays_of_many_axes() -> None:
    """numpy can broadcast shapes of at most 32 axes."""
    x = example()
    many = x.reshape(*(1,) * 30, 2, *(1,) * 30, 4, 16)
    for found, expected in [
        (ops.matmul(many, x.T), ops.matmul(x, x.T)),
        (ops.linear(many, x), ops.linear(x, x)),
        (ops.softmax(many), ops.softmax(x)),
        (ops.layer_norm(many, 16), ops.layer_norm(x, 16)),
    ]:
        np.testing.assert_array_equal(found, expected.reshape(found.shape))
    in_four = x.reshape(2, 1, 4, 16)
    mask = np.tri(4, dtype=bool).reshape(*(1,) * 60, 4, 4)
    np.testing.assert_array_equal(
        ops.scaled_dot_product_attention(many, many, many, mask).reshape(in_four.shape),
        ops.scaled_dot_product_attention(in_four, in_four, in_four, is_causal=True),
    )
    with pytest.raises(InputError, match=r"other: expected 16 rows, .* of 63 axes, got shape"):
        ops.matmul(many, many[..., :3])


def kind_of(value: Any) -> str:
    return type(value).__name__


FLAGS: list[Any] = ["1", "", 1, 0, None, 1.0, [], object(), np.array(True), np.array([True, False]), float("nan")]


@pytest.mark.parametrize("value", FLAGS, ids=kind_of)
@pytest.mark.parametrize("name", ["is_causal", "enable_gqa"])
def test_50_a_flag_is_true_or_false(name: str, value: Any) -> None:
    x = example()[np.newaxis]
    with pytest.raises(DTypeError, match=f"^{name}: expected True or False, got "):
        ops.scaled_dot_product_attention(x, x, x, **{name: value})
    for flag in (False, np.False_):
        plain = ops.scaled_dot_product_attention(x, x, x, **{name: flag})
        np.testing.assert_array_equal(plain, ops.scaled_dot_product_attention(x, x, x))


NO_NUMBERS: list[tuple[Any, type[Exception]]] = [
    *((value, DTypeError) for value in ("1e-5", Decimal(1), Fraction(1, 2), 1j, True, b"1", [0.5], object())),
    *((np.array(value), DTypeError) for value in ([0.5], "a", None, True)),
    *((value, InputError) for value in (10**400, -(10**400), float("nan"), float("inf"), 1e39, np.array(np.inf))),
]


@pytest.mark.parametrize(("value", "error"), NO_NUMBERS, ids=kind_of)
def test_50_scale_and_eps_are_numbers_of_float32(value: Any, error: type[Exception]) -> None:
    x = example()
    with pytest.raises(error, match=r"^scale: expected a (finite )?number") as of_scale:
        ops.scaled_dot_product_attention(x, x, x, scale=value)
    with pytest.raises(error, match=r"^eps: expected a (finite )?number") as of_eps:
        ops.layer_norm(x, 16, eps=value)
    with pytest.raises((DTypeError, InputError), match=r"^dropout_p: expected "):
        ops.scaled_dot_product_attention(x, x, x, dropout_p=value)
    assert max(len(str(of_scale.value)), len(str(of_eps.value))) < 200


@pytest.mark.parametrize("value", [0.5, np.float16(0.5), np.float64(0.5), np.longdouble(0.5), np.array(0.5)])
def test_50_numbers_of_any_type(value: Any) -> None:
    x = example()
    expected = ops.scaled_dot_product_attention(x, x, x, scale=0.5)
    np.testing.assert_array_equal(ops.scaled_dot_product_attention(x, x, x, scale=value), expected)
    np.testing.assert_array_equal(ops.layer_norm(x, 16, eps=value), ops.layer_norm(x, 16, eps=0.5))


@pytest.mark.parametrize("value", ["0", 0.0, None, True, [0], np.array([1]), np.array(0.0), object()], ids=kind_of)
def test_50_dim_is_an_integer(value: Any) -> None:
    with pytest.raises(DTypeError, match=r"^dim: expected int, got "):
        ops.softmax(example(), value)
    for dim in (1, np.int8(1), np.uint64(1), np.array(1)):
        np.testing.assert_array_equal(ops.softmax(example(), dim), ops.softmax(example()))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^dim: expected -2 to 1, got an integer of 1329 bits"):
        ops.softmax(example(), 10**400)


@pytest.mark.parametrize("value", [None, 1, [], {}, b"none", np.array("none"), np.array(["none", "tanh"])], ids=kind_of)
def test_50_approximate_is_a_name(value: Any) -> None:
    with pytest.raises(DTypeError, match=r"^approximate: expected one of 'none', 'tanh', got "):
        ops.gelu(example(), value)


def test_50_messages_are_bounded() -> None:
    record = np.dtype([(f"field{i}", np.float32) for i in range(5000)])
    bad: list[Callable[[], Any]] = [
        lambda: ops.gelu(np.zeros(2, record)),
        lambda: ops.gelu(example(), "x" * 10**6),  # type: ignore[arg-type]
        lambda: ops.softmax(example(), "x" * 10**6),  # type: ignore[arg-type]
        lambda: ops.gelu(example(), out=np.zeros(2, record)),  # type: ignore[arg-type]
        lambda: ops.layer_norm(example(), 10**400),
    ]
    for call in bad:
        with pytest.raises((DTypeError, InputError)) as caught:
            call()
        assert len(str(caught.value)) < 200


def test_52_a_masked_array_takes_no_result() -> None:
    with pytest.raises(DTypeError, match=r"^out: expected a float32 numpy array, got a masked array"):
        ops.gelu(example(), out=np.ma.zeros((8, 16), np.float32))
