"""The rows of percent_of_limit.py: workloads of full-size models (`fastattn.bench.works`), and separate products."""

from __future__ import annotations

import math
from dataclasses import dataclass

MODELS = ("gpt2", "bert-base", "minilm-l6")
LINEARS = 48  # products per sample, as many as GPT-2 and BERT-base have
CACHED_BYTES = 10 << 20  # size of the weights that stay in a cache, in addition to the activations


@dataclass(frozen=True, slots=True)
class Product:
    """LINEARS times x [m, k] @ weight [n, k].T.

    Either each has its own weights, which then come from memory, or they cycle through as many weights as fit the
    cache.
    """

    m: int
    n: int
    k: int
    cached: bool

    @property
    def name(self) -> str:
        return f"product-{self.m}x{self.n}x{self.k}" + ("-cached" if self.cached else "")

    @property
    def weights(self) -> int:
        """Return the number of weights."""
        return max(1, CACHED_BYTES // (4 * self.n * self.k)) if self.cached else LINEARS

    @property
    def operations(self) -> int:
        return 2 * LINEARS * math.prod((self.m, self.n, self.k))

    @property
    def weight_bytes(self) -> int:
        """Return the minimum number of bytes read from memory."""
        return 0 if self.cached else 4 * LINEARS * self.n * self.k


# n, k of the products in GPT-2 124M and BERT-base.
SHAPES = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
PRODUCTS = {
    p.name: p
    for p in (Product(m, n, k, cached) for cached in (False, True) for m in (64, 128, 512, 1024) for n, k in SHAPES)
}
