"""Reads vectors from arrays, tensors and lists, and splits large tables into blocks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import is_masked_array
from fastattn.errors import DTypeError, InputError

Float = NDArray[np.floating[Any]]
Rows = NDArray[np.float32]
BLOCK_ELEMENTS = 2**22  # of a temporary array: 16 MB in float32


def read_vectors(vectors: object, name: str) -> NDArray[Any]:
    """Return vectors [n, d], or one vector [d], from an array, a CPU tensor, or lists of numbers (as float32).

    Raises DTypeError, InputError.
    """
    if is_masked_array(vectors):
        raise DTypeError(f"{name}: expected an array, got a masked array; call .filled() first")
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


def read_matrix(vectors: object, name: str) -> NDArray[Any]:
    """Return vectors as [n, d]; one vector [d] is [1, d]. Raises DTypeError, InputError."""
    return np.atleast_2d(read_vectors(vectors, name))


def check_width(matrix: NDArray[Any], name: str, width: int, other: str) -> None:
    """Reject vectors that are not as long as those of the argument `other`. Raises InputError."""
    if matrix.shape[-1] != width:
        raise InputError(f"{name}: expected shape [n, {width}] to match {other}, got {list(matrix.shape)}")


def common_dtype(first: NDArray[Any], second: NDArray[Any]) -> type[np.float32 | np.float64]:
    """Return the dtype of the scores of two arguments: float64 if both are float64, else float32."""
    both = first.dtype == np.float64 and second.dtype == np.float64
    return np.float64 if both else np.float32


def block_rows(width: int, limit: int | None = None) -> int:
    """Return the number of rows of `width` elements in a block, at most `limit` and at least 1."""
    rows = max(1, BLOCK_ELEMENTS // max(width, 1))
    return rows if limit is None else min(rows, limit)


def blocks(n: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size` of n rows, in order."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def lengths(wide: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Euclidean lengths of contiguous rows [..., d], as [..., 1]."""
    return cast("NDArray[np.float64]", np.sqrt((wide * wide).sum(axis=-1, keepdims=True)))


def normalized(vectors: NDArray[Any]) -> Float:
    """Return rows of length 1; a row of zeros is unchanged (as in torch's normalize with eps 1e-12).

    float64 stays float64, every other dtype gives float32.
    """
    dtype = np.float64 if vectors.dtype == np.float64 else np.float32
    found = np.empty(vectors.shape, dtype)
    if vectors.ndim == 1:
        wide = np.ascontiguousarray(vectors, np.float64)
        return cast(Float, (wide / np.maximum(lengths(wide), 1e-12)).astype(dtype))
    for rows in blocks(len(vectors), block_rows(vectors.shape[-1])):
        wide = np.ascontiguousarray(vectors[rows], np.float64)
        found[rows] = wide / np.maximum(lengths(wide), 1e-12)
    return cast(Float, found)
