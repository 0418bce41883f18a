"""Similarity functions of vectors and low-precision vectors, as sentence-transformers defines them."""

from __future__ import annotations

import logging
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.sentence.features import Float
from fastattn.tasks.sentence.folder import SIMILARITIES

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
_FEW_VECTORS = 100
_log = logging.getLogger("fastattn")


def check_similarity(value: object) -> Similarity | None:
    """Return the name of a similarity function, given as a str, a member of SimilarityFunction or None.

    Raises DTypeError, InputError.
    """
    name = value if value is None or isinstance(value, str) else getattr(value, "value", value)
    if name is not None and not isinstance(name, str):
        raise DTypeError(f"similarity_fn_name: expected one of {', '.join(SIMILARITIES)}, got {type(value).__name__}")
    if name is not None and name not in SIMILARITIES:
        raise InputError(f"similarity_fn_name: expected one of {', '.join(SIMILARITIES)}, got {quote(name)}")
    return cast("Similarity | None", name)


def similarity(name: Similarity, a: object, b: object) -> Float:
    """Return scores [n_a, n_b] of vectors [n_a, d] and [n_b, d]; distances are negative.

    Raises DTypeError, InputError.
    """
    first, second, dtype = _two(a, b, matrix=True)
    if first.shape[1] != second.shape[1]:
        raise InputError(f"b: expected shape [n, {first.shape[-1]}] to match a, got {list(second.shape)}")
    if name in ("cosine", "dot"):
        if name == "cosine":
            first, second = _unit(first), _unit(second)
        return cast(Float, (first @ second.T).astype(dtype))
    scores = np.empty((len(first), len(second)), dtype)
    for i, row in enumerate(first):
        scores[i] = _negative_distance(name, second - row)
    return scores


def similarity_pairwise(name: Similarity, a: object, b: object) -> Float:
    """Return scores [n] of vectors [n, d] and [n, d], row by row; a 0-d array for two single vectors [d]."""
    first, second, dtype = _two(a, b, matrix=False)
    rows = {len(x) for x in (first, second) if x.ndim == 2}
    if first.shape[-1] != second.shape[-1] or len(rows - {1}) > 1:
        raise InputError(f"b: expected shape {list(first.shape)} to match a, got {list(second.shape)}")
    if name == "cosine":
        first, second = _unit(first), _unit(second)
    found = (first * second).sum(axis=-1) if name in ("cosine", "dot") else _negative_distance(name, first - second)
    return np.asarray(found, dtype)


def quantize_vectors(vectors: NDArray[np.float32], precision: str | None) -> NDArray[Any]:
    """Quantize float32 vectors [n, d]; None and "float32" return them unchanged.

    "binary" and "ubinary" store the signs, 8 per byte. "int8" and "uint8" divide the range of each column of these
    vectors into 256 steps, so each row depends on all rows. Raises InputError for a single vector with "int8" or
    "uint8".
    """
    if precision in (None, "float32"):
        return vectors
    signed = precision in ("int8", "binary")
    if precision in ("binary", "ubinary"):
        packed = np.packbits(vectors > 0, axis=-1)
        return np.subtract(packed, 128, dtype=np.int16).astype(np.int8) if signed else packed
    if not len(vectors):
        return vectors.astype(np.int8 if signed else np.uint8)
    if len(vectors) == 1:
        raise InputError(
            f"precision: {precision} needs the range of each column, and one vector has none; encode several texts"
        )
    if len(vectors) < _FEW_VECTORS:
        _log.warning("precision: the ranges of %s come from %d vectors; more are better", precision, len(vectors))
    starts = vectors.min(axis=0)
    steps = (vectors.max(axis=0) - starts) / 255
    steps = np.where(steps == 0, 1, steps)
    values = np.clip(np.floor((vectors - starts) / steps), 0, 255) - (128 if signed else 0)
    return np.asarray(values, np.int8 if signed else np.uint8)


def _two(a: object, b: object, *, matrix: bool) -> tuple[NDArray[np.float64], NDArray[np.float64], np.dtype[Any]]:
    """Return both arguments in float64, and the dtype of the scores: float64 if both are float64, else float32."""
    first, second = _vectors(a, "a"), _vectors(b, "b")
    wide = first.dtype == np.float64 and second.dtype == np.float64
    if matrix:
        first, second = np.atleast_2d(first), np.atleast_2d(second)
    return first.astype(np.float64), second.astype(np.float64), np.dtype(np.float64 if wide else np.float32)


def _vectors(vectors: object, name: str) -> NDArray[Any]:
    """Return vectors [n, d], or one vector [d], from an array, a CPU tensor, or lists of numbers (as float32)."""
    try:
        array = np.asarray(vectors)
    except ValueError:
        raise InputError(f"{name}: expected vectors of one length, got several lengths") from None
    except (TypeError, RuntimeError) as error:
        raise DTypeError(f"{name}: expected an array or a tensor on the CPU, got {type(vectors).__name__}") from error
    if array.dtype.kind not in "fiu":
        raise DTypeError(f"{name}: expected vectors of numbers, got {type(vectors).__name__} of {array.dtype}")
    if array.ndim not in (1, 2):
        raise InputError(f"{name}: expected shape [n, d] or [d], got {list(array.shape)}")
    items = vectors if isinstance(vectors, (list, tuple)) else ()
    plain = bool(items) and not all(hasattr(item, "dtype") for item in items)
    return array.astype(np.float32) if plain else array


def _unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return cast("NDArray[np.float64]", x / np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), 1e-12))


def _negative_distance(name: Similarity, difference: NDArray[np.float64]) -> NDArray[np.float64]:
    return cast("NDArray[np.float64]", -np.linalg.norm(difference, ord=2 if name == "euclidean" else 1, axis=-1))
