"""Error bounds for the tests, derived from the number of roundings in each formula; no test defines its own.

U is the unit roundoff of float32. gamma(k) = k U / (1 - k U) bounds the relative error of k successive roundings
(Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). So an inner product of length k differs from the
exact one by at most gamma(k) |a| |b|. All bounds are float64 arrays, elementwise, for float64 references.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

U = 2.0**-24
SMALLEST = 2.0**-149  # spacing of the denormal numbers
SMALLEST_NORMAL = 2.0**-126
LANES = 16
BLOCK_LEN = 64

# Largest relative errors of the fits, as printed by tools/fit_polynomials.py.
EXP_FIT = 3.12e-9
TANH_FIT = 4.53e-9
NORMAL_TAIL_FIT = 3.53e-8
EXP2_ROUGH_FIT = 1.02e-4
GELU_ROUGH_FIT = {"gelu_erf": 5.4e-7, "gelu_tanh": 5.3e-6}
# exp2_rough: its fit and three roundings.
EXP2_ROUGH = EXP2_ROUGH_FIT + 3 * U
BF16 = 2.0**-8  # unit roundoff of bfloat16
# exp: its fit, two roundings of the remainder of its argument (below ln(2) / 2), two of the polynomial, one of the sum.
EXP = EXP_FIT + 3 * U


def gamma(roundings: float) -> float:
    return roundings * U / (1 - roundings * U)


def ulp(x: F64) -> F64:
    """Return the spacing of float32 numbers at x."""
    return np.spacing(np.abs(x).astype(np.float32)).astype(np.float64)


def product(a: F64, weight: F64, *, extra_roundings: int = 0) -> F64:
    """Bound a @ weight.T, accumulated in any order."""
    return gamma(a.shape[-1] + extra_roundings) * (np.abs(a) @ np.abs(weight).T) + SMALLEST


def fused(reference: F64, naive: NDArray[np.float32], *, floor: F64 | float) -> F64:
    """Return twice the largest error of the plain float32 formula in the row, and at least `floor`."""
    naive_error = np.abs(naive.astype(np.float64) - reference).max(axis=-1, keepdims=True, initial=0.0)
    return np.broadcast_to(2 * naive_error + floor, reference.shape)


def tree_sum_roundings(n: int) -> int:
    """Count the additions per term of a row sum: one chain per lane, then two levels of chains and four of lanes."""
    return -(-n // LANES) + 6


def activation(name: str, x: F64, reference: F64) -> F64:
    """Return the bounds of csrc/kernels/math.h, formula by formula."""
    if name in ("none", "relu"):
        return np.zeros_like(x)
    if name == "tanh":
        # below 0.625 three roundings of a cubic term and one of the sum; above, 1 - 2 / (e + 1) with a last term < 0.45
        return (TANH_FIT + 0.45 * (EXP + 2 * U) / 0.55 + 2 * U) * np.abs(reference) + SMALLEST
    if name == "silu":
        # where e^-x overflows (beyond 88.7) the result is 0: the error is less than 2^-120
        return (EXP + 3 * U) * np.abs(reference) + 2.0**-120
    if name == "sigmoid":
        return (EXP + 3 * U) * np.abs(reference) + 2.0**-120
    if name == "gelu_tanh":
        # the exponent has three roundings and two rounded constants; x / (1 + e^y) does not enlarge this error
        y = math.sqrt(8 / math.pi) * (np.abs(x) + 0.044715 * np.abs(x) ** 3)
        share = 1 / (1 + np.exp(np.clip(2 * x, -700, 700)))
        return (gamma(5) * y * np.maximum(share, np.exp(-np.abs(y))) + EXP + 3 * U) * np.abs(reference) + 2.0**-120
    if name == "gelu_erf":
        # x Phi(x) = max(x, 0) - |x| tail, with tail = 2^-exponent. The relative error of the tail is that of the fit,
        # divided by the weight of the fit, and ln(2) times the roundings of the exponent.
        tail = np.array([math.erfc(abs(t) / math.sqrt(2)) / 2 for t in x.tolist()])
        exponent = -np.log2(np.maximum(tail, 2.0**-160))
        relative = NORMAL_TAIL_FIT / (np.sqrt(tail) + 1e-5) + math.log(2) * gamma(4) * exponent + EXP + 2 * U
        return np.abs(x) * tail * np.expm1(relative) + ulp(reference) + (1 + np.abs(x)) * SMALLEST
    raise ValueError(name)


def gelu_rough(name: str, x: F64, reference: F64) -> F64:
    """Bound gelu for formats that round: the fit of the tail, the roundings of its exponent, and exp2_rough."""
    tail = np.abs(reference - np.maximum(x, 0))  # |x| P(X > |x|)
    exponent = -np.log2(np.maximum(tail / np.maximum(np.abs(x), 1e-30), 2.0**-160))
    return GELU_ROUGH_FIT[name] + tail * (EXP2_ROUGH + gamma(6) * exponent) + ulp(reference)


def softmax(x: F64, reference: F64) -> F64:
    """Bound exp(x - max) / sum: x - max is rounded before exp, in the term itself and in the terms of the sum."""
    span = x.max(axis=-1, keepdims=True) - x.min(axis=-1, keepdims=True)
    relative = 2 * (U * span + EXP) + gamma(tree_sum_roundings(x.shape[-1]) + 1)
    return relative * reference + SMALLEST


def log_softmax(x: F64, reference: F64) -> F64:
    """Bound (x - max) - log(sum): the sum's relative error, the rounding of log and of both differences."""
    shifted = x - x.max(axis=-1, keepdims=True)
    log_sum = np.abs(shifted - reference)
    span = -shifted.min(axis=-1, keepdims=True)
    relative_sum = U * span + EXP + gamma(tree_sum_roundings(x.shape[-1]))
    return U * np.abs(shifted) + relative_sum + 3 * U * log_sum + U * np.abs(reference)


def l2_normalize(n: int, reference: F64) -> F64:
    """Bound half the relative error of the sum of squares, a square root and a division."""
    return gamma(tree_sum_roundings(n) / 2 + 2) * np.abs(reference) + SMALLEST


def rms_norm(n: int, reference: F64) -> F64:
    """Bound x * (1 / sqrt(sum / n + eps)) * weight: half the relative error of the radicand, and four roundings."""
    return gamma((tree_sum_roundings(n) + 2) / 2 + 4) * np.abs(reference) + SMALLEST


def lora(x: F64, down: F64, up: F64, y: F64) -> F64:
    """Bound y + (x down^T) up: k roundings of an inner value at most, one per rank of the output."""
    inner = np.abs(x) @ np.abs(down).T
    rank, k = down.shape
    return gamma(k + rank) * (inner @ np.abs(up)) + gamma(rank) * np.abs(y) + (rank + 1) * SMALLEST


def rotary(x: F64, other: F64, cosine: F64, sine: F64) -> F64:
    """Bound fma(x, cosine, other * sine) for a given table: a rounding of one product, and one of the sum."""
    return gamma(2) * (np.abs(x * cosine) + np.abs(other * sine)) + 2 * SMALLEST


def rotary_table(angle: F64, reference: F64, factor: float) -> F64:
    """Bound an element of the table: rounded once to float32, from an angle in two parts that are rounded to float64.

    The cosines and sines of both parts, and the products and sums that join them, add less than 2^-49.
    """
    return U * np.abs(reference) + factor * (2 * 2.0**-53 * np.abs(angle) + 2.0**-49) + SMALLEST


def pool(x: F64, *, kind: str) -> F64:
    rows = max(x.shape[0], 1)
    if kind == "max":
        return np.zeros(x.shape[1])
    return gamma(rows + 2) * np.abs(x).sum(axis=0) / (rows if kind == "mean" else math.sqrt(rows))


def attention(q: F64, k: F64, probs: F64, v: F64, scale: float, mask: F64 | None = None) -> F64:
    """Bound attention: a score's error changes its probability and the sum by as much.

    The sums over positions and blocks add their roundings.
    """
    scores = np.abs(q) @ np.abs(k).T * abs(scale)
    if mask is not None:
        scores = scores + np.where(np.isfinite(mask), np.abs(mask), 0.0)
    relative = 2 * np.expm1(gamma(q.shape[-1] + 4) * scores.max(axis=-1, keepdims=True, initial=0.0) * 2 + EXP)
    blocks = -(-k.shape[0] // BLOCK_LEN)
    return (relative + gamma(BLOCK_LEN + 6 * blocks + 12)) * (probs @ np.abs(v)) + SMALLEST


def attention_rough(q: F64, k: F64, scale: float, bias: F64 | None = None) -> F64:
    """Return a relative bound of bfloat16 and int8 probabilities against those of the same operands: [q_len, 1].

    Scores are sums of exact products (for integers the sums are exact too) with at most six roundings, including those
    of the scale. A bias adds one: fma(bias, log2 e, score). The bias itself has three: of log2 e, of this sum and of
    the difference from the maximum. An error of a score affects its own probability and those of its neighbors; so does
    an error of exp2_rough.
    """
    errors = gamma(2 * q.shape[-1] + (6 if bias is None else 7)) * (np.abs(q) @ np.abs(k).T * abs(scale))
    if bias is not None:
        errors = errors + gamma(3) * np.abs(bias)
    blocks = -(-k.shape[0] // BLOCK_LEN)
    most = errors.max(axis=-1, keepdims=True, initial=0.0)
    return 2 * np.expm1(2 * most) + 4 * EXP2_ROUGH + gamma(BLOCK_LEN + 6 * blocks + 12)


def attention_bfloat16(q: F64, k: F64, probs: F64, v: F64, scale: float, bias: F64 | None = None) -> F64:
    """Bound attention with bfloat16 q, k, v: weights and sums of products are rounded. Denormals may count as 0."""
    relative = attention_rough(q, k, scale, bias) + BF16 + gamma(2 * BLOCK_LEN)
    return relative * (probs @ np.abs(v)) + k.shape[0] * 2.0**-125


def attention_int8(q: F64, k: F64, probs: F64, v: F64, v_scales: F64, scale: float, bias: F64 | None = None) -> F64:
    """Bound attention with int8 q, k, v. A weight times its value's scale is off by half a step of its block."""
    relative = attention_rough(q, k, scale, bias)
    bound = relative * (probs @ np.abs(v))
    for begin in range(0, k.shape[0], BLOCK_LEN):
        block = slice(begin, begin + BLOCK_LEN)
        weights = probs[:, block] * v_scales[block]
        step = weights.max(axis=-1, keepdims=True) / 127 * (1 + relative)
        with np.errstate(invalid="ignore", divide="ignore"):
            bytes_ = np.where(v_scales[block, None] > 0, np.abs(v[block]) / v_scales[block, None], 0.0)
        bound = bound + (0.5 + gamma(4) * 127) * step * ((weights > 0).astype(np.float64) @ bytes_)
    return bound


def attention_probs(q: F64, k: F64, probs: F64, scale: float, mask: F64 | None = None) -> F64:
    return attention(q, k, probs, np.eye(k.shape[0]), scale, mask)
