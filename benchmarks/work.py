"""The rows of percent_of_limit.py: works of full-size models (`fastattn.bench.works`), and products on their own."""

from __future__ import annotations

import math
from dataclasses import dataclass

MODELS = ("gpt2", "bert-base", "minilm-l6")
LINEARS = 48  # products of one sample, as many as GPT-2 and BERT-base have, each with weights of its own


@dataclass(frozen=True, slots=True)
class Product:
    """LINEARS times x [m, k] @ weight [n, k].T."""

    m: int
    n: int
    k: int

    @property
    def name(self) -> str:
        return f"product-{self.m}x{self.n}x{self.k}"

    @property
    def operations(self) -> int:
        return 2 * LINEARS * math.prod((self.m, self.n, self.k))

    @property
    def weight_bytes(self) -> int:
        return 4 * LINEARS * self.n * self.k


# n, k of the products in GPT-2 124M and BERT-base.
SHAPES = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
PRODUCTS = {p.name: p for p in (Product(m, n, k) for m in (64, 128, 512, 1024) for n, k in SHAPES)}
