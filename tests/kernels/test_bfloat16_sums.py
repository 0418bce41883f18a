"""The order of bfloat16 sums (docs/numerics.md): linears compared with numpy, and attention on all targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.graph.quantize import to_bfloat16
from tests.kernels.support import (
    F32,
    PORTABLE,
    TARGETS,
    assert_same_bits,
    kernels,
    kv_blocks,
    on_every_target,
    random_array,
)
from tests.reference.float32 import flushing_add, flushing_fma
from tests.reference.float_mode import FLUSHING, caller_mode, mode_of_caller

ROWS = (*range(1, 19), 30, 31, 32, 33, 34, 47, 48, 49, 62, 63, 64, 65, 66, 70)
COLUMNS = (1, 15, 16, 17, 33, 63, 64, 65, 130)
DEPTHS = (1, 2, 3, 30, 31, 32, 33, 34, 63, 64, 65, 100, 191, 193, 200)
HEAD_DIMS = (16, 20, 32, 64, 80, 128)
BLOCK = 32  # numbers of k in two chains

Generator = np.random.Generator


def product(a: F32, weight: F32) -> F32:
    """Return a [m, k] times weight [n, k] of bfloat16 numbers, in the order of docs/numerics.md."""
    padding = ((0, 0), (0, -a.shape[1] % BLOCK))
    a, weight = np.pad(a, padding), np.pad(weight, padding)
    total = np.zeros((len(a), len(weight)), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, a.shape[1], BLOCK):
            even, odd = np.zeros_like(total), np.zeros_like(total)
            for i in range(begin, begin + BLOCK, 2):
                even = flushing_fma(a[:, None, i], weight[None, :, i], even)
                odd = flushing_fma(a[:, None, i + 1], weight[None, :, i + 1], odd)
            total = flushing_add(total, flushing_add(even, odd))
        return flushing_add(total, np.zeros_like(total))  # the bias


def scaled(rng: Generator, shape: tuple[int, ...], low: int, high: int) -> F32:
    """Return random numbers with exponents in a range."""
    return np.ldexp(rng.standard_normal(shape), rng.integers(low, high, shape)).astype(np.float32)


def around_the_smallest(rng: Generator, shape: tuple[int, ...]) -> F32:
    """Return powers of 2 whose products are 2^-126, the halves of its last bits, and denormals."""
    exponents = rng.choice([-63, -63, -63, -64, -62, -75, -76, -87, -88], shape)
    return np.ldexp(rng.choice([-1.0, 0.0, 1.0, 1.0, 1.0 + 2.0**-7], shape), exponents).astype(np.float32)


def with_some_not_finite(rng: Generator, shape: tuple[int, ...]) -> F32:
    x = scaled(rng, shape, -2, 2)
    return np.where(rng.random(shape) < 0.005, rng.choice([np.nan, np.inf, -np.inf], shape), x).astype(np.float32)


INPUTS: dict[str, Callable[[Generator, tuple[int, ...]], F32]] = {
    "normal": lambda rng, shape: scaled(rng, shape, 0, 1),
    "spread": lambda rng, shape: scaled(rng, shape, -40, 40),
    "products near 2^-126": lambda rng, shape: scaled(rng, shape, -66, -60),
    "sums near 2^-126": around_the_smallest,
    "denormal": lambda rng, shape: scaled(rng, shape, -132, -122),
    "zeros": lambda rng, shape: rng.choice([0.0, -0.0, 1.0, -1.0, 2.0**-64, -(2.0**-64)], shape).astype(np.float32),
    "huge": lambda rng, shape: scaled(rng, shape, 58, 63),
    "not finite": with_some_not_finite,
}


def weights_of(name: str, rng: Generator, shape: tuple[int, ...]) -> F32:
    """Return weights that give results of every size with inputs of that name."""
    if name == "denormal":
        return scaled(rng, shape, 0, 12)
    return INPUTS[name](rng, shape)


def linear(a: F32, weight: F32, **options: Any) -> F32:
    """Run the linear on every portable target and assert equal bits."""
    return on_every_target(lambda target: kernels.linear(target, a, weight, format="bfloat16", **options), PORTABLE)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("m", ROWS)
def test_linear_in_the_order_of_the_contract(m: int, name: str) -> None:
    rng = np.random.default_rng([m, list(INPUTS).index(name)])
    n, k = int(rng.choice(COLUMNS)), int(rng.choice(DEPTHS))
    a, weight = to_bfloat16(INPUTS[name](rng, (m, k))), to_bfloat16(weights_of(name, rng, (n, k)))
    assert_same_bits(linear(a, weight), product(a, weight))


@pytest.mark.parametrize("name", ["normal", "spread"])
@pytest.mark.parametrize(("m", "k"), [(1, 1536), (3, 1537), (17, 2047), (40, 3100), (250, 3110)])
def test_deep_linear_in_the_order_of_the_contract(m: int, k: int, name: str) -> None:
    """More words than a block of k or a slice of tiles."""
    rng = np.random.default_rng(k)
    a, weight = to_bfloat16(INPUTS[name](rng, (m, k))), to_bfloat16(INPUTS[name](rng, (66, k)))
    assert_same_bits(linear(a, weight), product(a, weight))


@pytest.mark.parametrize("m", [1, 17, 33, 200, 400])
@pytest.mark.parametrize("activation", ["none", "gelu_erf", "gelu_tanh", "relu"])
def test_epilogue_on_every_target(m: int, activation: str) -> None:
    """Floats that are not bfloat16 yet, with bias, activation and residual; some results are denormal."""
    rng = np.random.default_rng(m)
    a, weight = scaled(rng, (m, 100), -4, 4), scaled(rng, (150, 100), -4, 4)
    bias, residual = random_array(3, 150), random_array(4, m, 150)
    a[::3], bias[::2], residual[:, ::2] = 0, 1e-40, -1e-39
    found = linear(a, weight, bias=bias, activation=activation, residual=residual)
    assert not found[::3, ::2].any()
    linear(a, weight, bias=bias, activation=activation)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("flushing", [False, True])
def test_the_float_mode_of_the_caller(target: str, flushing: bool) -> None:
    """A kernel changes neither the caller's mode nor its bits with it."""
    rng = np.random.default_rng(7)
    a, weight = scaled(rng, (20, 80), -66, -60), scaled(rng, (70, 80), -66, -60)
    q, k, v = (scaled(rng, (20, 64), -2, 2) for _ in range(3))
    v *= np.float32(2.0**-126)
    blocks = kv_blocks(k, v, format="bfloat16")

    def run() -> Iterator[F32]:
        yield kernels.linear(target, a, weight, format="bfloat16")
        yield kernels.attention(target, q, blocks, kv_len=20, causal=True, format="bfloat16")
        yield kernels.attention_probs(target, q, blocks, kv_len=20, causal=True, format="bfloat16")

    expected = list(run())
    with caller_mode(FLUSHING if flushing else 0):
        before = mode_of_caller()
        found = list(run())
        after = mode_of_caller()
    assert before == after
    assert (before & FLUSHING != 0) == flushing
    for x, y in zip(found, expected, strict=True):
        assert_same_bits(x, y)


def attend(q: F32, k: F32, v: F32, *, kv_len: int, **options: Any) -> F32:
    """Run the attention on every portable target, assert equal bits, also those of the probabilities."""

    def run(target: str) -> F32:
        blocks = kv_blocks(k, v, target=target, format="bfloat16")
        out = kernels.attention(target, q, blocks, kv_len=kv_len, format="bfloat16", **options)
        probs = kernels.attention_probs(target, q, blocks, kv_len=kv_len, format="bfloat16", **options)
        return np.concatenate([out, probs], axis=1)

    found: F32 = on_every_target(run, PORTABLE)[:, : q.shape[1]]
    return np.ascontiguousarray(found)


def keys_and_values(rng: Generator, kv_len: int, head_dim: int) -> tuple[F32, F32]:
    """Return keys, and values of different sizes; some of their products are denormal."""
    k, v = scaled(rng, (kv_len, head_dim), 0, 1), scaled(rng, (kv_len, head_dim), -3, 3)
    v[:, rng.random(head_dim) < 0.3] *= np.float32(2.0**-125)
    return k, v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_attention_on_every_target(head_dim: int, causal: bool) -> None:
    rng = np.random.default_rng(head_dim)
    for q_len in ROWS:
        kv_len = q_len + int(rng.choice([0, 1, 17, 63, 64, 100]))
        q = scaled(rng, (q_len, head_dim), -1, 2)
        k, v = keys_and_values(rng, kv_len, head_dim)
        out = attend(q, k, v, kv_len=kv_len, q_position=kv_len - q_len, causal=causal, scale=head_dim**-0.5)
        assert np.isfinite(out).all()


@pytest.mark.parametrize("which", [1, 2], ids=["keys", "values"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_attention_next_to_keys_and_values_that_are_not_finite(head_dim: int, which: int) -> None:
    """In the middle of a block, at its end and in its first and last word; rows before it do not see it."""
    rng = np.random.default_rng(head_dim)
    for position, poison in ((0, np.nan), (37, np.inf), (62, np.nan), (63, -np.inf), (64, np.nan), (69, np.inf)):
        q = scaled(rng, (70, head_dim), -1, 2)
        k, v = keys_and_values(rng, 70, head_dim)
        clean = attend(q, k, v, kv_len=70, causal=True)
        (k, v)[which - 1][position, 5] = poison
        for first, rows in ((0, 70), (30, 40), (position, 70 - position), (60, 6)):
            part = slice(first, first + rows)
            found = attend(q[part], k, v, kv_len=70, q_position=first, causal=True)
            blind = np.arange(first, first + rows) < position
            assert_same_bits(found[blind], clean[part][blind])
            if np.isnan(poison):
                assert np.isnan(found[~blind][:, 5]).all()
        attend(q, k, v, kv_len=70, causal=False)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_heads_of_one_position_on_every_target(head_dim: int) -> None:
    """A decode step: the rows are heads."""
    rng = np.random.default_rng(head_dim)
    for kv_len, rows_per_head in ((1, 1), (63, 2), (70, 1), (130, 3)):
        q = scaled(rng, (12, head_dim), -1, 2)
        pairs = [keys_and_values(rng, kv_len, head_dim) for _ in range(len(q) // rows_per_head)]
        heads: list[NDArray[np.uint8]] = [kv_blocks(k, v, format="bfloat16") for k, v in pairs]
        blocks = np.ascontiguousarray(np.concatenate(heads, axis=1))
        options: dict[str, Any] = {"kv_len": kv_len, "q_position": kv_len - 1, "causal": True, "format": "bfloat16"}
        options["rows_per_head"] = rows_per_head
        on_every_target(partial(kernels.attention, q=q, blocks=blocks, **options), PORTABLE)
