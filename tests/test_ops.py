"""fastattn.ops against the float64 formulas and against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn import ops
from fastattn.errors import DTypeError, InputError
from tests.reference import op_formulas as ref

SIZES = [1, 2, 15, 16, 17, 33, 64, 65, 130]


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("m", [1, 5, 64])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("k", [1, 17, 64, 100])
def test_linear(m: int, n: int, k: int) -> None:
    x, w, b = normal(m, k), normal(n, k, seed=1), normal(n, seed=2)
    ref.assert_product(ops.linear(x, w), x, w.T)
    ref.assert_product(ops.linear(x, w, b), x, w.T, b)


def test_linear_takes_any_number_of_leading_axes_and_a_vector_of_weights() -> None:
    x, w, b = normal(2, 3, 20), normal(7, 20), normal(7)
    flat = ops.linear(x.reshape(6, 20), w, b)
    np.testing.assert_array_equal(ops.linear(x, w, b), flat.reshape(2, 3, 7))
    np.testing.assert_array_equal(ops.linear(x[0, 0], w, b), flat[0])
    np.testing.assert_array_equal(ops.linear(x, w[0], b[0:1].reshape(())), flat[:, 0].reshape(2, 3))
    np.testing.assert_array_equal(ops.linear(input=x, weight=w, bias=b), flat.reshape(2, 3, 7))


def test_a_row_of_linear_does_not_depend_on_the_other_rows() -> None:
    x, w = normal(65, 96), normal(130, 96)
    together = ops.linear(x, w)
    for i in (0, 1, 63, 64):
        np.testing.assert_array_equal(ops.linear(x[i], w), together[i])


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (7, 4, 5)),
        ((2, 3, 4), (2, 4)[1:]),
        ((1, 3, 4), (1, 4, 5)),
        ((65, 130), (130, 65)),
    ],
)
def test_matmul_broadcasts_as_numpy_does(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, y = normal(*a), normal(*b, seed=1)
    found = ops.matmul(x, y)
    assert found.dtype == np.float32
    ref.assert_product(found, x, y)


@pytest.mark.parametrize("n", [*SIZES, 768])
def test_layer_norm(n: int) -> None:
    x, w, b = normal(5, n) + np.float32(3), normal(n, seed=1), normal(n, seed=2)
    for weight, bias in ((w, b), (w, None), (None, b), (None, None)):
        ref.assert_as_good_as_naive(ops.layer_norm(x, n, weight, bias), ref.layer_norm, x, weight, bias, eps=1e-5)


@pytest.mark.parametrize("shape", [np.int64(16), [np.int32(16)], np.array([16]), (16,)])
def test_layer_norm_over_axes_of_any_integer_type(shape: Any) -> None:
    x = normal(3, 16)
    expected = ops.layer_norm(x, 16, eps=0.5)
    for eps in (0.5, np.float32(0.5), np.float64(0.5)):
        np.testing.assert_array_equal(ops.layer_norm(x, shape, eps=eps), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalized_shape": 3.0}, "normalized_shape: expected int, got float 3.0"),
        ({"normalized_shape": None}, "normalized_shape: expected int, got NoneType"),
        ({"normalized_shape": "3"}, "normalized_shape: expected int, got str '3'"),
        ({"normalized_shape": [True]}, "normalized_shape: expected int, got bool"),
        ({"normalized_shape": np.array([[3]])}, r"normalized_shape: expected int, got ndarray of int64 .*"),
        ({"normalized_shape": 3, "eps": "a"}, "eps: expected a number, got str 'a'"),
        ({"normalized_shape": 3, "eps": None}, "eps: expected a number, got NoneType"),
        ({"normalized_shape": 3, "eps": True}, "eps: expected a number, got bool True"),
    ],
)
def test_layer_norm_refuses_other_types(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DTypeError, match=f"^{message}$"):
        ops.layer_norm(normal(2, 3), **arguments)


def test_layer_norm_over_several_axes_is_that_over_one() -> None:
    x, w = normal(2, 3, 4, 5), normal(4, 5)
    flat = ops.layer_norm(x.reshape(2, 3, 20), [20], w.reshape(20), eps=1e-12)
    np.testing.assert_array_equal(ops.layer_norm(x, (4, 5), w, eps=1e-12), flat.reshape(x.shape))


@pytest.mark.parametrize("n", [*SIZES, 1000])
def test_softmax(n: int) -> None:
    x = normal(4, n) * np.float32(5)
    ref.assert_as_good_as_naive(ops.softmax(x), ref.softmax, x)
    ref.assert_as_good_as_naive(ops.log_softmax(x), ref.log_softmax, x)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_softmax_along_any_axis(dim: int) -> None:
    x = normal(3, 4, 5)
    ref.assert_as_good_as_naive(ops.softmax(x, dim), ref.softmax, x, axis=dim)
    ref.assert_as_good_as_naive(ops.log_softmax(x, dim=dim), ref.log_softmax, x, axis=dim)


def test_softmax_of_large_numbers_and_of_a_scalar() -> None:
    np.testing.assert_array_equal(ops.softmax(np.array([1e38, 1e38, -1e38], np.float32)), np.float32([0.5, 0.5, 0]))
    assert ops.softmax(np.array(3.0, np.float32), 0) == 1
    assert ops.softmax(np.array(3.0, np.float32)).shape == ()


def test_gelu() -> None:
    x = np.concatenate([normal(1001) * 3, np.float32([0, -0.0, 20, -20, 1e-30])]).astype(np.float32)
    ref.assert_as_good_as_naive(ops.gelu(x), ref.gelu_none, x)
    ref.assert_as_good_as_naive(ops.gelu(x, approximate="tanh"), ref.gelu_tanh, x)
    assert ops.gelu(x.reshape(2, 503)).shape == (2, 503)


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 256])
@pytest.mark.parametrize(("q_len", "kv_len"), [(1, 1), (1, 130), (7, 64), (65, 65), (64, 129)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_attention(head_dim: int, q_len: int, kv_len: int, is_causal: bool) -> None:
    q, k, v = normal(2, 3, q_len, head_dim), normal(2, 3, kv_len, head_dim, seed=1), normal(2, 3, kv_len, head_dim)
    found = ops.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    added = ref.causal_mask(q_len, kv_len) if is_causal else None
    ref.assert_as_good_as_naive(found, ref.attention, q, k, v, added, scale=head_dim**-0.5)


@pytest.mark.parametrize("mask_shape", [(9, 33), (1, 33), (33,), (3, 9, 33), (3, 1, 33), (2, 1, 9, 33), (2, 3, 9, 33)])
def test_attention_masks_broadcast(mask_shape: tuple[int, ...]) -> None:
    q, k, v = normal(2, 3, 9, 16), normal(2, 3, 33, 16, seed=1), normal(2, 3, 33, 16, seed=2)
    added = normal(*mask_shape)
    found = ops.scaled_dot_product_attention(q, k, v, attn_mask=added)
    ref.assert_as_good_as_naive(found, ref.attention, q, k, v, added, scale=0.25)
    seen = added > 0
    found = ops.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    as_added = np.where(seen, np.float32(0), np.float32(-np.inf))
    np.testing.assert_array_equal(found, ops.scaled_dot_product_attention(q, k, v, attn_mask=as_added))
    ref.assert_as_good_as_naive(found, ref.attention, q, k, v, as_added, scale=0.25)


def test_a_query_that_sees_no_key_gives_zeros() -> None:
    q = normal(1, 2, 4, 16)
    seen = np.ones((4, 4), bool)
    seen[2] = False
    found = ops.scaled_dot_product_attention(q, q, q, attn_mask=seen)
    assert not found[:, :, 2].any()
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, :, [0, 1, 3]], ops.scaled_dot_product_attention(q, q, q)[:, :, [0, 1, 3]])


def test_grouped_query_attention_is_attention_with_repeated_keys() -> None:
    q, k, v = normal(2, 6, 5, 16), normal(2, 2, 9, 16, seed=1), normal(2, 2, 9, 16, seed=2)
    found = ops.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    repeated = ops.scaled_dot_product_attention(q, k.repeat(3, 1), v.repeat(3, 1))
    np.testing.assert_array_equal(found, repeated)


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((5, 16), (9, 16), (9, 16)),
        ((3, 5, 16), (3, 9, 16), (3, 9, 16)),
        ((2, 3, 5, 16), (1, 3, 9, 16), (3, 9, 16)),
        ((2, 3, 5, 16), (2, 1, 9, 16), (2, 1, 9, 16)),
        ((4, 2, 3, 5, 16), (2, 3, 9, 16), (4, 1, 3, 9, 16)),
        ((1, 1, 5, 16), (1, 1, 9, 16), (1, 1, 9, 40)),
        ((1, 1, 5, 40), (1, 1, 9, 40), (1, 1, 9, 16)),
    ],
)
def test_attention_axes_broadcast(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    arrays = normal(*q), normal(*k, seed=1), normal(*v, seed=2)
    found = ops.scaled_dot_product_attention(*arrays)
    ref.assert_as_good_as_naive(found, ref.attention, *arrays, None, scale=q[-1] ** -0.5)


def test_scale() -> None:
    q = normal(1, 2, 4, 16)
    default = ops.scaled_dot_product_attention(q, q, q)
    np.testing.assert_array_equal(default, ops.scaled_dot_product_attention(q, q, q, scale=0.25))
    with pytest.raises(InputError, match=r"scale: expected a finite number from .*, got nan"):
        ops.scaled_dot_product_attention(q, q, q, scale=float("nan"))
    with pytest.raises(DTypeError, match="scale"):
        ops.scaled_dot_product_attention(q, q, q, scale="1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.linear(x, normal(5, 4)), r"weight: expected in_features 3.*got shape \(5, 4\)"),
        (lambda x: ops.linear(x, normal(2, 5, 3)), r"weight: expected \[out_features, in_features\]"),
        (lambda x: ops.linear(x, normal(5, 3), normal(4)), r"bias: expected shape \(5,\), got \(4,\)"),
        (lambda x: ops.matmul(x, normal(4, 5)), r"other: expected 3 rows"),
        (lambda x: ops.matmul(normal(2, 2, 3), normal(3, 3, 5)), r"other: expected leading axes that broadcast"),
        (lambda x: ops.layer_norm(x, 4), r"normalized_shape: expected the last axes of input \(2, 3\), got \(4,\)"),
        (lambda x: ops.layer_norm(x, ()), r"normalized_shape"),
        (lambda x: ops.layer_norm(x, 3, normal(2)), r"weight: expected shape \(3,\), got \(2,\)"),
        (lambda x: ops.layer_norm(x, 3, eps=-1.0), r"eps: expected a finite number from 0 to .*, got -1.0"),
        (lambda x: ops.softmax(x, 2), r"dim: expected -2 to 1, got 2"),
        (lambda x: ops.gelu(x, "exact"), "approximate: expected one of 'none', 'tanh', got 'exact'"),
        (lambda x: ops.scaled_dot_product_attention(x, x, x, dropout_p=0.1), r"dropout_p: expected 0"),
        (lambda x: ops.scaled_dot_product_attention(x, x, x, x @ x.T, is_causal=True), r"attn_mask: expected None"),
        (lambda x: ops.scaled_dot_product_attention(x, x, x, normal(3, 3)), r"attn_mask: expected a shape that"),
        (lambda x: ops.scaled_dot_product_attention(*[normal(2, 257)] * 3), r"query: expected a last axis of at most"),
    ],
)
def test_errors_name_the_argument_what_was_expected_and_what_was_found(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(normal(2, 3))


@pytest.mark.torch
class TestAgainstTorch:
    """The same arguments with the same names give the same result, within float32 rounding of float64."""

    def check(self, found: NDArray[np.float32], in_float64: Any, in_float32: Any) -> None:
        exact, theirs = in_float64.numpy(), in_float32.numpy()
        assert found.shape == exact.shape
        rounding = ref.UNIT_ROUNDOFF * np.abs(exact).max()
        assert np.abs(found - exact).max() <= 2 * np.abs(theirs - exact).max() + 2 * rounding

    @pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}, {"enable_gqa": True}])
    def test_attention(self, options: dict[str, Any]) -> None:
        torch = pytest.importorskip("torch")
        sdpa = torch.nn.functional.scaled_dot_product_attention
        heads = 2 if "enable_gqa" in options else 6
        q, k, v = normal(2, 6, 40, 64), normal(2, heads, 70, 64, seed=1), normal(2, heads, 70, 64, seed=2)
        tensors = [torch.from_numpy(x) for x in (q, k, v)]
        found = ops.scaled_dot_product_attention(q, k, v, **options)
        self.check(found, sdpa(*(t.double() for t in tensors), **options), sdpa(*tensors, **options))

    @pytest.mark.parametrize("mask_shape", [(40, 70), (2, 1, 1, 70), (2, 6, 40, 70)])
    def test_attention_with_a_bool_mask_with_an_empty_row(self, mask_shape: tuple[int, ...]) -> None:
        torch = pytest.importorskip("torch")
        sdpa = torch.nn.functional.scaled_dot_product_attention
        q, k = normal(2, 6, 40, 64), normal(2, 6, 70, 64, seed=1)
        mask = normal(*mask_shape) > 0
        mask[..., 0, :] = False
        tensors = [torch.from_numpy(x) for x in (q, k, k)]
        seen = torch.from_numpy(mask)
        found = ops.scaled_dot_product_attention(q, k, k, attn_mask=mask)
        self.check(found, sdpa(*(t.double() for t in tensors), attn_mask=seen), sdpa(*tensors, attn_mask=seen))

    def test_the_others(self) -> None:
        torch = pytest.importorskip("torch")
        functional = torch.nn.functional
        x, w, b = normal(3, 5, 70), normal(70, seed=1), normal(70, seed=2)
        t, tw, tb = (torch.from_numpy(a) for a in (x, w, b))
        d, dw, db = t.double(), tw.double(), tb.double()
        pairs = [
            (ops.softmax(x, dim=1), functional.softmax(d, dim=1), functional.softmax(t, dim=1)),
            (ops.log_softmax(x, dim=-1), functional.log_softmax(d, dim=-1), functional.log_softmax(t, dim=-1)),
            (ops.gelu(x), functional.gelu(d), functional.gelu(t)),
            (ops.gelu(x, approximate="tanh"), *(functional.gelu(a, approximate="tanh") for a in (d, t))),
            (
                ops.layer_norm(x, (70,), w, b, eps=1e-12),
                functional.layer_norm(d, (70,), dw, db, eps=1e-12),
                functional.layer_norm(t, (70,), tw, tb, eps=1e-12),
            ),
        ]
        for found, exact, theirs in pairs:
            self.check(found, exact, theirs)
