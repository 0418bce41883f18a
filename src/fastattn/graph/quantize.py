"""The number formats of weights and activations as formulas, equal to csrc/kernels/quantize.cpp and pack.cpp.

Every operation is in float32, rounded to nearest even, so the C++ gives identical bits on every target.

    bfloat16  float32 without the low 16 of its 24 mantissa bits, rounded to nearest even
    int8      one scale per row: the largest magnitude / 127
    int4      one scale per row, and one integer scale from -15 to 15 per group of 32 along k; values are
              scale * group scale * nibble, nibbles from -8 to 7

A row with NaN or infinity is stored as zeros with a NaN scale, so it gives NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.formats import FORMATS, INT4_GROUP, stored_dtype
from fastattn.graph.ir import Program

Float32 = NDArray[np.float32]

SMALL_MATRIX = 64  # rows of a panel; a smaller matrix is not quantized
MOST_INT4_SCALE = 15  # -8 * 15 fits in int8
INT4_REACH = 2  # integer scales to try on either side
_TINY = np.float32(2.0**-120)  # a row below this is 0, because the inverse of its scale would overflow


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Rows of integers with one scale per row: value [i, j] is values[i, j] * scales[i].

    values: int8 [rows, n]; for int4, the products of nibbles and group scales. scales: float32 [rows].
    """

    values: NDArray[np.int8]
    scales: Float32

    def floats(self) -> Float32:
        """Return the represented values [rows, n]."""
        with np.errstate(over="ignore"):  # the largest float32 may round up to infinity
            result: Float32 = self.values.astype(np.float32) * self.scales[:, None]
        return result


def to_bfloat16(x: Float32) -> Float32:
    """Round x to bfloat16, still stored as float32; NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    kept = np.where(np.isnan(x), bits | np.uint32(0x400000), rounded) & np.uint32(0xFFFF0000)
    result: Float32 = kept.view(np.float32)
    return result


def to_int8(x: Float32) -> QuantizedRows:
    """Quantize x [rows, n] to int8."""
    highest, finite = _highest(x)
    most = np.float32(127)
    scales = np.where(finite, highest / most, np.float32(np.nan))
    known = np.where(finite[:, None], x, np.float32(0))
    return QuantizedRows(np.rint(known * _inverse(highest, finite, most)[:, None]).astype(np.int8), scales)


def to_int4(x: Float32) -> QuantizedRows:
    """Quantize x [rows, n] to int4."""
    rows, n = x.shape
    highest, finite = _highest(x)
    most = np.float32(8 * MOST_INT4_SCALE)
    scales = np.where(finite, highest / most, np.float32(np.nan))
    column = np.where(finite, scales, np.float32(0))[:, None]
    inverse = _inverse(highest, finite, most)[:, None]
    groups = np.zeros((rows, -(-n // INT4_GROUP), INT4_GROUP), np.float32)
    groups.reshape(rows, -1)[:, :n] = np.where(finite[:, None], x, np.float32(0))
    best = _best_group_scales(groups, column, inverse)
    values = (_nibbles(groups, inverse / best) * best[..., None]).reshape(rows, -1)[:, :n]
    return QuantizedRows(values.astype(np.int8), scales)


def _best_group_scales(groups: Float32, column: Float32, inverse: Float32) -> Float32:
    """Return the integer scale of each group with the smallest squared error.

    Candidates are the scales around the one that fits the group's largest magnitude; the first of equal ones is used.
    The sign maps the largest magnitude to -8, because nibbles have no +8.
    """
    top = groups.max(axis=2, initial=0.0)
    bottom = (-groups).max(axis=2, initial=0.0)
    sign = np.where(top < bottom, np.float32(1), np.float32(-1))
    nearest = np.rint(np.maximum(top, bottom) * inverse * np.float32(0.125))
    best = np.clip(nearest, 1, MOST_INT4_SCALE).astype(np.float32) * sign
    least = np.full(best.shape, np.inf, np.float32)
    for offset in range(-INT4_REACH, INT4_REACH + 1):
        scale = np.clip(nearest + np.float32(offset), 1, MOST_INT4_SCALE).astype(np.float32) * sign
        error = np.zeros(best.shape, np.float32)
        differences = groups - _nibbles(groups, inverse / scale) * (column * scale)[..., None]
        with np.errstate(over="ignore"):
            for i in range(INT4_GROUP):
                error = error + differences[..., i] * differences[..., i]
        better = error < least
        least, best = np.where(better, error, least), np.where(better, scale, best)
    result: Float32 = best
    return result


def _nibbles(groups: Float32, factor: Float32) -> Float32:
    result: Float32 = np.clip(np.rint(groups * factor[..., None]), -8, 7).astype(np.float32)
    return result


def _highest(x: Float32) -> tuple[Float32, NDArray[np.bool_]]:
    """Return the largest magnitude of each row (0 if the row is not finite), and whether the row is finite."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(x).all(axis=1))
    highest = np.abs(np.where(finite[:, None], x, np.float32(0))).max(axis=1, initial=0.0)
    return highest.astype(np.float32), finite


def _inverse(highest: Float32, finite: NDArray[np.bool_], most: np.float32) -> Float32:
    """Return the factor that scales each row to magnitudes of at most `most`; 0 for a row that is 0 or too small."""
    usable = finite & (highest > _TINY)
    result: Float32 = np.where(usable, most / np.where(usable, highest, np.float32(1)), np.float32(0))
    return result


def dequantize(x: Float32, form: str) -> Float32:
    """Return weights [rows, n] rounded to a format, as floats."""
    if form == "float32":
        return np.asarray(x, np.float32)
    if form == "bfloat16":
        return to_bfloat16(x)
    return quantize(x, form).floats()


def quantize(x: Float32, form: str) -> QuantizedRows:
    """Quantize x [rows, n] to "int8" or "int4"."""
    return to_int8(x) if form == "int8" else to_int4(x)


def _floats(*hexadecimal: str) -> tuple[float, ...]:
    return tuple(float.fromhex(number) for number in hexadecimal)


# tools/fit_polynomials.py: kNormalTailRough, kTanhTailRough, kExp2Rough
_TAIL = {
    "gelu_erf": _floats("0x1.26a7e4p+0", "0x1.d6a194p-2", "0x1.ab223ap-5", "-0x1.d7910cp-8", "0x1.ff3ce4p-12"),
    "gelu_tanh": _floats("0x1.26778ep+0", "0x1.d8e8ap-2", "0x1.9ae8e4p-5", "-0x1.3d9d6cp-7", "0x1.1369d4p-9"),
}
_EXP2 = _floats("0x1.62f5fcp-1", "0x1.f00c4ep-3", "0x1.c2a1a4p-5")


def rough_gelu(activation: str, x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Compute gelu_erf or gelu_tanh as linears that are not float32 do: max(x, 0) - |x| tail(|x|), within 2.5e-5."""
    t = np.minimum(np.abs(x), 16).astype(x.dtype)
    exponent = np.clip(-t * polynomial(t, _TAIL[activation]), -160, 0)
    whole = np.where(np.isnan(x), 0, np.rint(exponent))
    part = exponent - whole
    power = np.ldexp(1 + part * polynomial(part, _EXP2), whole.astype(np.int32))
    result: NDArray[np.floating[Any]] = np.maximum(x, 0) - t / 2 * power
    return result


def polynomial(x: NDArray[np.floating[Any]], coefficients: tuple[float, ...]) -> NDArray[np.floating[Any]]:
    """Evaluate a polynomial by Horner's rule in the dtype of x; coefficients: of x^0, x^1, ..."""
    result = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + x.dtype.type(coefficient)
    return result


def tied_embeddings(program: Program) -> set[str]:
    """Return the names of the weights that are a matrix and are also read as a table."""
    return {name for name in embedding_tables(program) if program.weights[name].use == "matrix"}


def embedding_tables(program: Program) -> set[str]:
    """Return the names of the weights that are read as a table."""
    return {op.weights[0] for op in program.ops if op.kind == "embedding"}


def head_matrix(program: Program) -> set[str]:
    """Return the name of the matrix that computes the logits, before they are scaled or capped; empty if none does."""
    writers = {op.output: op for op in program.ops}
    op = writers.get(program.outputs.get("logits", -1))
    while op is not None and op.kind in ("scale", "activation"):
        op = writers.get(op.inputs[0])
    return {op.weights[0]} if op is not None and op.kind == "linear" else set()


def weight_formats(program: Program, dtype: str, head_dtype: str | None = None) -> dict[str, str]:
    """Return the format of each weight of a Program for a dtype.

    Vectors (biases, norms), matrices of fewer than 64 rows (classifier heads) and exact tables (rotary, attention) stay
    in float32; their cost is negligible. Other tables, and attention's position keys and queries, have no int4 and use
    int8 instead. head_dtype, if given, applies to the matrix that computes the logits and to token embeddings that are
    tied to a head, even in the Program of a task with another head or none. So each weight of a checkpoint has one
    format, whatever task it is loaded for.
    """
    head = head_matrix(program) | tied_embeddings(program)
    dtype = stored_dtype(dtype)
    positions = {name for op in program.ops if op.kind == "attention" for name in op.weights}
    formats = {}
    for name, weight in program.weights.items():
        wanted = head_dtype if head_dtype is not None and name in head else dtype
        # rows per part, so stacking q, k and v changes nothing
        small = weight.use == "matrix" and weight.shape[0] // len(weight.parts) < SMALL_MATRIX
        if weight.use == "vector" or small or weight.exact:
            wanted = "float32"
        elif weight.use == "table" or name in positions:
            wanted = FORMATS[wanted].table or wanted
        formats[name] = wanted
    return formats
