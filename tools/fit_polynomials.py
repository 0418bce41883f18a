"""Computes the polynomial coefficients in csrc/kernels/math.h and prints them with their errors.

    python tools/fit_polynomials.py

Each fit minimizes the largest weighted error over an interval (Lawson's iteration on Chebyshev points; reference values
from mpmath at 40 digits). Coefficients are rounded to float32 one at a time, from the lowest power up. After each
rounding, the remaining ones are fitted again. The printed error is that of the float32 coefficients. Needs numpy and
mpmath; not needed to build fastattn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mpmath
import numpy as np
from numpy.typing import NDArray

mpmath.mp.dps = 40
Function = Callable[[mpmath.mpf], mpmath.mpf]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fit target(x) by sum of c_i * x^powers[i] on [low, high], minimizing error * weight(x)."""

    name: str
    target: Function
    weight: Function
    low: float
    high: float
    powers: tuple[int, ...]


def _minimax(basis: NDArray, y: NDArray, weight: NDArray, rounds: int = 60) -> NDArray:
    lawson = np.full(len(y), 1.0 / len(y))
    best, best_error = np.zeros(basis.shape[1]), np.inf
    column_scale = np.abs(basis * weight[:, None]).max(axis=0)
    for _ in range(rounds):
        root = np.sqrt(lawson) * weight
        scaled = (basis / column_scale) * root[:, None]
        solution, *_ = np.linalg.lstsq(scaled, y * root, rcond=None)
        coefficients = solution / column_scale
        error = np.abs(basis @ coefficients - y) * weight
        if error.max() < best_error:
            best, best_error = coefficients, error.max()
        lawson = lawson * (error + 1e-300)
        lawson /= lawson.sum()
    return best


def solve(fit: Fit, points: int = 1500) -> tuple[list[np.float32], float]:
    nodes = np.cos(np.pi * (np.arange(points) + 0.5) / points)
    x = 0.5 * (fit.low + fit.high) + 0.5 * (fit.high - fit.low) * nodes
    y = np.array([float(fit.target(mpmath.mpf(float(p)))) for p in x])
    weight = np.array([float(fit.weight(mpmath.mpf(float(p)))) for p in x])
    basis = np.stack([x**power for power in fit.powers], axis=1)
    fixed: list[np.float32] = []
    rest = y.copy()
    for i in range(len(fit.powers)):
        free = _minimax(basis[:, i:], rest, weight)
        fixed.append(np.float32(free[0]))
        rest = rest - basis[:, i] * float(fixed[-1])
    return fixed, float((np.abs(rest) * weight).max())


def _literal(c: np.float32) -> str:
    mantissa, exponent = float.hex(float(c)).split("p")
    return f"{mantissa.rstrip('0').rstrip('.')}p{exponent}f"


def _upper_tail(t: mpmath.mpf) -> mpmath.mpf:
    """Return Prob(X > t) for a standard normal X."""
    return mpmath.erfc(t / mpmath.sqrt(2)) / 2


def _tanh_tail(t: mpmath.mpf) -> mpmath.mpf:
    """Return the same tail for gelu's tanh approximation."""
    return 1 / (1 + mpmath.exp(mpmath.sqrt(8 / mpmath.pi) * (t + mpmath.mpf("0.044715") * t**3)))


def _exponent(tail: Function) -> Function:
    return lambda t: (-mpmath.log(tail(t), 2) - 1) / t


def _rough_weight(tail: Function) -> Function:
    # Weighs the error of t tail(t). The second term keeps the approximated tail decreasing for large t.
    return lambda t: t * mpmath.log(2) * (t * tail(t) + mpmath.mpf("1e-4") * mpmath.power(tail(t), 0.25))


def _tail_weight(t: mpmath.mpf) -> mpmath.mpf:
    # An error e of the exponent is a relative error ln(2) * e of the tail. gelu needs a small relative error only where
    # the tail is large. The square root allows relative errors of about 1e-3 in the far tail (1e-10 and below), which
    # halves the degree.
    return mpmath.log(2) * (mpmath.sqrt(_upper_tail(t)) + mpmath.mpf("1e-5"))


FITS = (
    # exp(r) = 1 + r + r^2 P(r), relative error
    Fit(
        name="kExp",
        target=lambda r: (mpmath.exp(r) - 1 - r) / r**2,
        weight=lambda r: r**2 / mpmath.exp(r),
        low=-0.3467,
        high=0.3467,
        powers=(0, 1, 2, 3, 4),
    ),
    # 2^r = 1 + r P(r), relative error
    Fit(
        name="kExp2",
        target=lambda r: (mpmath.power(2, r) - 1) / r,
        weight=lambda r: abs(r) / mpmath.power(2, r),
        low=-0.5,
        high=0.5,
        powers=(0, 1, 2, 3, 4, 5),
    ),
    # The same for probabilities that are rounded to bfloat16 or int8
    Fit(
        name="kExp2Rough",
        target=lambda r: (mpmath.power(2, r) - 1) / r,
        weight=lambda r: abs(r) / mpmath.power(2, r),
        low=-0.5,
        high=0.5,
        powers=(0, 1, 2),
    ),
    # tanh(x) = x + x^3 P(x^2), relative error
    Fit(
        name="kTanh",
        target=lambda z: (mpmath.tanh(mpmath.sqrt(z)) / mpmath.sqrt(z) - 1) / z,
        weight=lambda z: z * mpmath.sqrt(z) / mpmath.tanh(mpmath.sqrt(z)),
        low=0.0,
        high=0.625**2,
        powers=(0, 1, 2, 3, 4),
    ),
    # log(1 + f) = f - f^2 / 2 + f^3 P(f), relative error
    Fit(
        name="kLog",
        target=lambda f: (mpmath.log(1 + f) - f + f**2 / 2) / f**3,
        weight=lambda f: abs(f**3 / mpmath.log(1 + f)),
        low=2**-0.5 - 1,
        high=2**0.5 - 1,
        powers=tuple(range(9)),
    ),
    # Prob(X > t) = 2^-(1 + t P(t)) for a normal X
    Fit(
        name="kNormalTail",
        target=_exponent(_upper_tail),
        weight=lambda t: t * _tail_weight(t),
        low=0.0,
        high=14.5,
        powers=tuple(range(12)),
    ),
    # The same, and its tanh approximation, for results that are rounded to bfloat16 or int8
    Fit(
        name="kNormalTailRough",
        target=_exponent(_upper_tail),
        weight=_rough_weight(_upper_tail),
        low=0.0,
        high=14.5,
        powers=tuple(range(5)),
    ),
    Fit(
        name="kTanhTailRough",
        target=_exponent(_tanh_tail),
        weight=_rough_weight(_tanh_tail),
        low=0.0,
        high=9.0,
        powers=tuple(range(5)),
    ),
)


def main() -> None:
    for fit in FITS:
        coefficients, error = solve(fit)
        print(f"// {fit.name}: weighted error {error:.2e} ({error * 2**24:.3f} half ulp)")
        print(f"constexpr float {fit.name}[] = {{{', '.join(_literal(c) for c in coefficients)}}};")


if __name__ == "__main__":
    main()
