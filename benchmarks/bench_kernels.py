"""pytest-benchmark of fastattn.ops, numpy and PyTorch: `make bench`.

Each library has its own threads here and all share one process. Use the results to compare a change with its parent,
not to compare libraries; percent_of_limit.py does that. `linear` packs its weight on every call, which a model does
once at load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn import ops

pytestmark = pytest.mark.bench
Array = NDArray[np.float32]


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def numpy_gelu(x: Array) -> Array:
    return np.float32(0.5) * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)))


def numpy_softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def numpy_layer_norm(x: Array) -> Array:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered * centered).mean(-1, keepdims=True) + np.float32(1e-5))


def numpy_attention(q: Array, k: Array, v: Array) -> Array:
    return np.matmul(numpy_softmax(np.matmul(q, k.swapaxes(-1, -2)) * np.float32(q.shape[-1] ** -0.5)), v)


Calls = dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], list[Array]]]


def calls() -> Calls:
    """Return fastattn, numpy and PyTorch calls on the same arrays."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    weight = normal(768, 768)
    qkv = [normal(1, 12, 512, 64) for _ in range(3)]
    sdpa = functional.scaled_dot_product_attention
    return {
        "linear 1x768x768": (ops.linear, lambda x, w: x @ w.T, functional.linear, [normal(1, 768), weight]),
        "linear 512x768x768": (ops.linear, lambda x, w: x @ w.T, functional.linear, [normal(512, 768), weight]),
        "attention 512": (ops.scaled_dot_product_attention, numpy_attention, sdpa, qkv),
        "layer_norm 512x768": (
            lambda x: ops.layer_norm(x, 768),
            numpy_layer_norm,
            lambda x: functional.layer_norm(x, (768,)),
            [normal(512, 768)],
        ),
        "softmax 512x512": (ops.softmax, numpy_softmax, lambda x: functional.softmax(x, -1), [normal(512, 512)]),
        "gelu_tanh 512x3072": (
            lambda x: ops.gelu(x, "tanh"),
            numpy_gelu,
            lambda x: functional.gelu(x, approximate="tanh"),
            [normal(512, 3072)],
        ),
    }


NAMES = [
    "linear 1x768x768",
    "linear 512x768x768",
    "attention 512",
    "layer_norm 512x768",
    "softmax 512x512",
    "gelu_tanh 512x3072",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("library", ["fastattn", "numpy", "torch"])
def bench_op(benchmark: Any, name: str, library: str) -> None:
    torch = pytest.importorskip("torch")
    mine, numpys, torchs, arrays = calls()[name]
    benchmark.group = name
    if library == "torch":
        tensors = [torch.from_numpy(a) for a in arrays]
        with torch.inference_mode():
            benchmark(torchs, *tensors)
    else:
        benchmark(mine if library == "fastattn" else numpys, *arrays)
