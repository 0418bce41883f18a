"""The work that is measured: models, shapes, inputs, and what each piece costs at least.

`flops` counts multiply and add of every product and of attention (causal attention: the pairs that are seen), and
nothing else. `bytes` counts what a decode step has to read at least: every weight matrix once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the cost of a model depends on."""

    kind: Literal["gpt2", "bert"]
    n_layer: int
    width: int
    inner: int
    vocab_size: int
    n_classes: int = 2

    @property
    def layer_weights(self) -> int:
        """Elements of the weight matrices of all layers."""
        return self.n_layer * (4 * self.width**2 + 2 * self.width * self.inner)

    @property
    def head_weights(self) -> int:
        """Elements of the matrices behind the layers, used once a wanted row."""
        return self.width * self.vocab_size if self.kind == "gpt2" else self.width * (self.width + self.n_classes)

    def flops(self, lengths: list[int]) -> float:
        """Of one pass over whole sequences, with the head at one row a sequence."""
        causal = self.kind == "gpt2"
        pairs = sum(n * (n + 1) // 2 if causal else n * n for n in lengths)
        return float(
            2 * self.layer_weights * sum(lengths)
            + 4 * self.width * self.n_layer * pairs
            + 2 * self.head_weights * len(lengths)
        )

    def decode_bytes(self) -> int:
        return FLOAT_BYTES * (self.layer_weights + self.head_weights)


MODELS = {
    "gpt2": ModelShape("gpt2", 12, 768, 3072, 50257),
    "bert-base": ModelShape("bert", 12, 768, 3072, 30522),
    "minilm-l6": ModelShape("bert", 6, 384, 1536, 30522),
}


LINEARS = 48  # products of one sample, as many as GPT-2 and BERT-base have, each with weights of its own


@dataclass(frozen=True, slots=True)
class Work:
    """One row of the table.

    forward: one pass over sequences of `lengths`; decode: `n_new` tokens after a prompt; product: LINEARS times
    x [m, k] @ weight [n, k].T for lengths = (m, n, k).
    """

    name: str
    model: str
    kind: Literal["forward", "decode", "product"]
    lengths: tuple[int, ...]
    n_new: int = 0

    def inputs(self) -> list[list[int]]:
        """Token ids, the same for everyone. Low and high ids are left out: special tokens may be there."""
        rng = np.random.default_rng(0)
        vocab = MODELS[self.model].vocab_size
        return [rng.integers(1000, vocab - 1000, size=n).tolist() for n in self.lengths]

    @property
    def limit(self) -> Literal["read_gbps", "fma_gflops"]:
        return "read_gbps" if self.kind == "decode" else "fma_gflops"

    def cost(self) -> float:
        """Gigabytes of a decoded token, or billions of operations of a sample."""
        if self.kind == "product":
            return 2e-9 * LINEARS * math.prod(self.lengths)
        shape = MODELS[self.model]
        return (shape.decode_bytes() if self.kind == "decode" else shape.flops(list(self.lengths))) / 1e9


def ragged_lengths(count: int = 32, low: int = 5, high: int = 128) -> tuple[int, ...]:
    """Lengths of short texts: lognormal, the median near 24 tokens."""
    drawn = np.exp(np.random.default_rng(0).normal(math.log(24), 0.8, count))
    return tuple(int(n) for n in np.clip(drawn, low, high))


# n, k of the products in GPT-2 124M and BERT-base.
PRODUCTS = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
WORKS = {
    work.name: work
    for work in (
        Work("gpt2-decode", "gpt2", "decode", (32,), n_new=64),
        Work("gpt2-prefill-512", "gpt2", "forward", (512,)),
        Work("bert-1x128", "bert-base", "forward", (128,)),
        Work("bert-8x128", "bert-base", "forward", (128,) * 8),
        Work("bert-ragged", "bert-base", "forward", ragged_lengths()),
        Work("minilm-1x16", "minilm-l6", "forward", (16,)),
        *(
            Work(f"product-{m}x{n}x{k}", "product", "product", (m, n, k))
            for m in (64, 128, 512, 1024)
            for n, k in PRODUCTS
        ),
    )
}
