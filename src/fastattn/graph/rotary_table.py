"""The table of `rotary`: the cosines and sines of position * frequency, with the same bits on every machine.

numpy's and libm's cosines differ between machines in their last bits, so this computes them from float64 additions and
multiplications alone. A cosine of a float32 angle would be wrong by 0.004 at position 131,072.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError
from fastattn.graph.kinds.rotary import pairs
from fastattn.graph.quantize import polynomial

Float64 = NDArray[np.float64]
# A position is a multiple of _STRIDE plus an offset, so only a few angles need a polynomial.
_STRIDE = 256
# pi / 2 in two parts. The first has 33 bits, so its product with an integer below 2^20 is exact.
_HALF_PI = float.fromhex("0x1.921fb544p+0")
_HALF_PI_REST = float.fromhex("0x1.0b4611a626331p-34")
# The Taylor series up to x^17; the next terms are below 2^-58 for |x| <= pi / 4.
_SINE = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(9))
_COSINE = tuple((-1) ** k / math.factorial(2 * k) for k in range(10))
MAX_ANGLE = 2.0**20


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryTable:
    """The weight [positions, 2 * len(frequencies)] of a model's rotary ops, computed on demand.

    frequencies: radians per position, one for each pair of a head. factor: multiplies all cosines and sines (YaRN's
    attention factor). interleaved: as in `rotary`.
    """

    frequencies: tuple[float, ...]
    positions: int
    factor: float = 1.0
    interleaved: bool = False

    def __post_init__(self) -> None:
        angle = self.positions * max((abs(f) for f in self.frequencies), default=0.0)
        if not angle <= MAX_ANGLE:
            raise ConfigError(
                f"rotary: expected angles up to 2^20 radians, got {angle:.0f} for {self.positions} positions; lower "
                "max_position_embeddings in config.json"
            )

    @property
    def shape(self) -> tuple[int, int]:
        return self.positions, 2 * len(self.frequencies)

    def rows(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return the rows of the positions `begin` to `end` - 1; each row depends only on its own position."""
        result = np.empty((end - begin, self.shape[1]), np.float32)
        first, second = pairs(self.shape[1], interleaved=self.interleaved)
        near = self._turns(np.arange(_STRIDE))
        for start in range(begin // _STRIDE * _STRIDE, end, _STRIDE):
            low, high = max(start, begin), min(start + _STRIDE, end)
            cosine, sine = (part[low - start : high - start] for part in near)
            far_cosine, far_sine = self._turns(np.array([start]))
            block = result[low - begin : high - begin]
            block[:, first] = (far_cosine * cosine - far_sine * sine) * self.factor
            block[:, second] = (far_sine * cosine + far_cosine * sine) * self.factor
        return result

    def _turns(self, positions: NDArray[np.intp]) -> tuple[Float64, Float64]:
        """Return the cosines and sines of positions * frequencies: [len(positions), len(frequencies)]."""
        return cosine_and_sine(positions.astype(np.float64)[:, None] * np.array(self.frequencies))


def cosine_and_sine(angles: Float64) -> tuple[Float64, Float64]:
    """Compute cos and sin of angles up to MAX_ANGLE, within 2^-51, with additions and multiplications of float64."""
    quarters = np.rint(angles * (2 / math.pi))
    x = (angles - quarters * _HALF_PI) - quarters * _HALF_PI_REST
    sine, cosine = x * polynomial(x * x, _SINE), polynomial(x * x, _COSINE)
    quadrant = quarters.astype(np.int64) % 4
    odd = quadrant % 2 == 1
    cosine, sine = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    return np.where((quadrant == 1) | (quadrant == 2), -cosine, cosine), np.where(quadrant >= 2, -sine, sine)
