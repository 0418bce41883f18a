"""Tables of attention biases that depend on the relative position: the key's position minus the query's.

A table is float32, with one row per head. Its columns are the relative positions 1 - positions to 0 if causal, else to
positions - 1. `attention` adds a row's numbers to the scaled scores of that head.
"""

from __future__ import annotations

import decimal
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.source import WeightSource, read_tensor
from fastattn.errors import ConfigError

Ints = NDArray[np.intp]


def bias_columns(positions: int, *, causal: bool) -> int:
    """Return the number of relative positions in the table for sequences of up to `positions`."""
    return positions if causal else 2 * positions - 1


def relative_positions(positions: int, *, causal: bool) -> Ints:
    """Return the relative position of each column of the table."""
    return np.arange(1 - positions, 1 if causal else positions)


def alibi_slopes(n_head: int, *, most: float = 8.0) -> tuple[float, ...]:
    """Return the slope of each head (Press et al. 2021).

    They are 2^(-most i / n) for i from 1 to n, if the number of heads n is a power of two. Otherwise they are those of
    the next lower power of two, then every second of the next higher one, as in BLOOM and MPT. most: `alibi_bias_max`
    of MPT. Raises ConfigError.
    """
    if n_head < 1:
        raise ConfigError(f"n_head: expected at least 1, got {n_head}")
    low = 1 << (n_head.bit_length() - 1)
    exponents = [(i, low) for i in range(1, low + 1)]
    exponents += [(i, 2 * low) for i in range(1, 2 * low, 2)]
    # The last bit of `pow` may differ between the C libraries of two machines.
    context = decimal.Context(prec=40)
    two, factor = decimal.Decimal(2), decimal.Decimal(most)
    return tuple(
        float(context.power(two, -context.divide(context.multiply(factor, i), n))) for i, n in exponents[:n_head]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AlibiBias:
    """-slope * distance, for one slope per head. If not causal, positions after the query count like those before it.

    BLOOM adds slope * position instead. In a row of scores, the difference is a constant, so the softmax is the same.
    """

    slopes: tuple[float, ...]
    positions: int
    causal: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.slopes), bias_columns(self.positions, causal=self.causal)

    def rows(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return the rows of heads `begin` to `end` - 1, each number rounded once."""
        distances = np.abs(relative_positions(self.positions, causal=self.causal))
        return (np.array(self.slopes[begin:end])[:, None] * -distances).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class T5Buckets:
    """The buckets of T5 and MPNet, in which relative positions share a bias (Raffel et al. 2020).

    Half of the buckets of each direction hold a single distance. The others hold ranges that grow logarithmically up to
    max_distance; the last one also holds all larger distances. bidirectional: positions after the query use the second
    half of the buckets. Otherwise they use the bucket of distance 0.
    """

    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True

    def __post_init__(self) -> None:
        if self._exact < 1 or self.max_distance <= self._exact:
            raise ConfigError(
                f"relative attention: expected at least {4 if self.bidirectional else 2} buckets and a max_distance "
                f"above {self._exact}, got {self.num_buckets} and {self.max_distance}"
            )

    @property
    def _one_way(self) -> int:
        return self.num_buckets // 2 if self.bidirectional else self.num_buckets

    @property
    def _exact(self) -> int:
        return self._one_way // 2

    def of(self, relative: Ints) -> Ints:
        """Return the bucket of each relative position."""
        distances = np.abs(relative) if self.bidirectional else -np.minimum(relative, 0)
        wide = self._exact + np.searchsorted(self._bounds(), distances, side="right")
        found = np.where(distances < self._exact, distances, wide)
        return found + np.where(relative > 0, self._one_way, 0) if self.bidirectional else found

    def _bounds(self) -> Ints:
        """Return the smallest distance of each bucket that holds several, except the first of these buckets.

        Distance d has bucket exact + floor(log(d / exact) / log(max_distance / exact) * steps). So bucket exact + k
        begins at the smallest d with d^steps >= max_distance^k * exact^(steps - k), in integers.
        """
        steps = self._one_way - self._exact
        bounds, d = [], self._exact
        for k in range(1, steps):
            least = self.max_distance**k * self._exact ** (steps - k)
            while d**steps < least:
                d += 1
            bounds.append(d)
        return np.array(bounds, np.intp)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeBias:
    """One learned number per bucket of relative positions and head.

    weight: `relative_attention_bias` of the checkpoint, [num_buckets, n_head].
    """

    weight: WeightSource
    buckets: T5Buckets
    positions: int
    causal: bool = False

    def __post_init__(self) -> None:
        if len(self.weight.shape) != 2 or self.weight.shape[0] != self.buckets.num_buckets:
            raise ConfigError(
                f"{self.weight.name}: expected shape [{self.buckets.num_buckets}, n_head], got "
                f"{list(self.weight.shape)}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[1], bias_columns(self.positions, causal=self.causal)

    def rows(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return the rows of heads `begin` to `end` - 1. Raises what `read_tensor` raises."""
        buckets = self.buckets.of(relative_positions(self.positions, causal=self.causal))
        return np.ascontiguousarray(read_tensor(self.weight)[buckets, begin:end].T)
