"""Vectors in int8, uint8 and single bits, as sentence_transformers.util.quantize_embeddings stores them."""

from __future__ import annotations

import logging
from typing import Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_choice
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.search.vectors import check_width, read_matrix, read_vectors

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
_FEW_VECTORS = 100
_log = logging.getLogger("fastattn")


@overload
def quantize_embeddings(
    embeddings: NDArray[Any], precision: Precision, ranges: object = ..., calibration_embeddings: object = ...
) -> NDArray[Any]: ...
@overload
def quantize_embeddings(
    embeddings: object, precision: Precision, ranges: object = ..., calibration_embeddings: object = ...
) -> Any: ...
def quantize_embeddings(
    embeddings: object, precision: Precision, ranges: object = None, calibration_embeddings: object = None
) -> Any:
    """Quantize vectors [n, d] or [d] of floats; a list of matrices gives a list of matrices.

    "binary" (int8) and "ubinary" (uint8) store the signs, 8 per byte: 1 for positive numbers. "int8" and "uint8" divide
    the range of each column into 255 steps. The range comes from `ranges` [2, d] (lowest and highest numbers), else
    from `calibration_embeddings` [n, d], else from the vectors themselves; then each row depends on all rows.
    Raises DTypeError, InputError.
    """
    check_choice("precision", precision, PRECISIONS)
    if isinstance(embeddings, (list, tuple)) and len(embeddings) and getattr(embeddings[0], "ndim", 0) == 2:
        matrices = [_floats(matrix, f"embeddings[{i}]") for i, matrix in enumerate(embeddings)]
        for i, matrix in enumerate(matrices):
            check_width(matrix, f"embeddings[{i}]", matrices[0].shape[1], "embeddings[0]")
        if precision in ("int8", "uint8") and any(matrix.size for matrix in matrices):
            ranges = read_ranges(precision, np.concatenate(matrices), ranges, calibration_embeddings)
        return [_quantized(matrix, precision, ranges, None) for matrix in matrices]
    if isinstance(embeddings, (list, tuple)) and not len(embeddings):
        return []
    return _quantized(_floats(embeddings, "embeddings"), precision, ranges, calibration_embeddings)


def quantize_vectors(vectors: NDArray[np.float32], precision: str | None) -> NDArray[Any]:
    """Quantize the result of `encode`; None is "float32". The ranges come from the vectors themselves."""
    return quantize_embeddings(vectors, cast(Precision, precision or "float32"))


def read_ranges(
    precision: str, vectors: NDArray[Any] | None, ranges: object, calibration_embeddings: object
) -> NDArray[np.float32]:
    """Return the lowest and highest number of each column, [2, d].

    vectors: used if neither ranges nor calibration_embeddings are given; None rejects that. Raises DTypeError,
    InputError.
    """
    if ranges is not None:
        return _check_ranges(ranges)
    if calibration_embeddings is not None:
        vectors = _floats(calibration_embeddings, "calibration_embeddings")
        if not vectors.size:
            raise InputError("calibration_embeddings: expected at least one vector, got none")
        vectors = np.atleast_2d(vectors)
    elif vectors is None:
        raise InputError(
            f"ranges: expected the ranges that the {precision} vectors were quantized with, or calibration_embeddings"
        )
    elif vectors.ndim == 1 or len(vectors) == 1:
        raise InputError(
            f"precision: {precision} needs the range of each column, and one vector has none; encode several texts, or "
            "call quantize_embeddings with ranges or calibration_embeddings"
        )
    elif len(vectors) < _FEW_VECTORS:
        _log.warning("precision: the ranges of %s come from %d vectors; more are better", precision, len(vectors))
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)]).astype(np.float32)


def dequantize(codes: NDArray[Any], ranges: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the lower ends of the steps that int8 or uint8 codes [..., d] stand for."""
    steps = _steps(ranges)
    wide = codes.astype(np.float64) + (128 if codes.dtype == np.int8 else 0)
    return cast("NDArray[np.float64]", wide * steps + ranges[0])


def _steps(ranges: NDArray[np.float32]) -> NDArray[np.float32]:
    steps = (ranges[1] - ranges[0]) / 255
    return cast("NDArray[np.float32]", np.where(steps == 0, 1, steps))


def _floats(vectors: object, name: str) -> NDArray[Any]:
    array = read_vectors(vectors, name)
    if array.dtype.kind != "f":
        raise DTypeError(f"{name}: expected vectors of floats to quantize, got {array.dtype}")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
    return array


def _check_ranges(ranges: object) -> NDArray[np.float32]:
    found = read_matrix(ranges, "ranges").astype(np.float32)
    if len(found) != 2:
        raise InputError(f"ranges: expected shape [2, d], got {list(found.shape)}")
    if not np.isfinite(found).all() or (found[0] > found[1]).any():
        raise InputError("ranges: expected the lowest and the highest number of each column, got other numbers")
    return found


def _quantized(vectors: NDArray[Any], precision: str, ranges: object, calibration_embeddings: object) -> NDArray[Any]:
    if precision == "float32":
        return vectors.astype(np.float32)
    signed = precision in ("int8", "binary")
    dtype = np.int8 if signed else np.uint8
    if precision in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=-1)
        return np.subtract(packed, 128, dtype=np.int16).astype(np.int8) if signed else packed
    if not vectors.size:
        return vectors.astype(dtype)
    found = read_ranges(precision, vectors, ranges, calibration_embeddings)
    check_width(found, "calibration_embeddings" if ranges is None else "ranges", vectors.shape[-1], "embeddings")
    values = np.clip(np.floor((vectors - found[0]) / _steps(found)), 0, 255) - (128 if signed else 0)
    return np.asarray(values, dtype)
