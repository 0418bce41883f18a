"""Weights that a checkpoint stores in another form: q, k and v interleaved by head, and constants of norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.source import ComputedSource, WeightSource, place_of, read_rows, require_weight_dtype
from fastattn.errors import ConfigError
from fastattn.models.names import ModelNames

QKV = ("query", "key", "value")


@dataclass(frozen=True, slots=True, kw_only=True)
class InterleavedQkv:
    """The linear `fused` of a layer, [n_head, 3, head_dim] by rows, as GPT-NeoX and BLOOM store q, k and v.

    The model reads three linears instead: `place`.query, .key and .value.
    """

    place: str
    fused: str
    n_head: int
    head_dim: int
    in_features: int
    bias: bool

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors of the checkpoint by name."""
        rows = 3 * self.n_head * self.head_dim
        weight: dict[str, tuple[int, ...]] = {f"{self.fused}.weight": (rows, self.in_features)}
        return {**weight, f"{self.fused}.bias": (rows,)} if self.bias else weight

    def sources(self, names: ModelNames) -> Iterator[WeightSource]:
        """Yield the sources of the three linears. Raises ConfigError for a tensor of another shape or dtype."""
        rows = self.n_head * self.head_dim
        for i, part in enumerate(QKV):
            for name, shape in self.shapes().items():
                own = f"{self.place}.{part}.{name.rpartition('.')[2]}"
                stored = _stored(names, name, shape, own)
                yield ComputedSource(own, (rows, *shape[1:]), _Part(stored, i, self.head_dim).rows)


def _stored(names: ModelNames, name: str, shape: tuple[int, ...], own: str) -> WeightSource:
    """Return a checked tensor of the checkpoint, or the tensor `own` that a quantized folder has instead.

    In such a folder, the computed source is not used (`ModelNames.with_computed`).
    """
    if names.has(own):
        return names.get(own)
    stored = names.get(name)
    if stored.shape != shape:
        raise ConfigError(
            f"{name}: expected shape {list(shape)} from config.json, got {list(stored.shape)} in {place_of(stored)}"
        )
    require_weight_dtype(stored)
    return stored


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of q, k or v (number `part`) of an interleaved tensor."""

    stored: WeightSource
    part: int
    head_dim: int

    def rows(self, begin: int, end: int) -> NDArray[np.float32]:
        found = []
        while begin < end:
            head, first = divmod(begin, self.head_dim)
            count = min(self.head_dim - first, end - begin)
            start = (3 * head + self.part) * self.head_dim + first
            found.append(read_rows(self.stored, start, start + count))
            begin += count
        return np.concatenate(found) if found else read_rows(self.stored, 0, 0)


def plus_one(names: ModelNames, place: str, size: int) -> ComputedSource:
    """Return the source of `place`.plus_one.weight: 1 + the vector `place`.weight (the norms of Gemma)."""
    own = f"{place}.plus_one.weight"
    stored = _stored(names, f"{place}.weight", (size,), own)
    return ComputedSource(own, (size,), lambda begin, end: 1 + read_rows(stored, begin, end))


def constant(name: str, size: int, value: float) -> ComputedSource:
    """Return the source of a vector of equal numbers."""
    return ComputedSource(name, (size,), lambda begin, end: np.full(end - begin, value, np.float32))
