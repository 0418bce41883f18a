"""Similarity functions of vectors, as sentence_transformers.util defines them.

A score depends only on its two vectors, bit for bit, and is symmetric. It does not depend on the other vectors of a
call. Products of float32 vectors use the kernel of `fastattn.ops.linear`. float64 vectors, distances, and the scores of
pairs are computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn import ops
from fastattn.checks import quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.search.vectors import (
    Float,
    block_rows,
    blocks,
    check_width,
    common_dtype,
    lengths,
    normalized,
    read_matrix,
    read_vectors,
)

Wide: TypeAlias = "NDArray[np.float64]"
Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]


def cos_sim(a: object, b: object) -> Float:
    """Return the cosines [n_a, n_b] of vectors [n_a, d] and [n_b, d]. Raises DTypeError, InputError."""
    return scores("cosine", a, b)


def dot_score(a: object, b: object) -> Float:
    """Return the dot products [n_a, n_b] of vectors [n_a, d] and [n_b, d]. Raises DTypeError, InputError."""
    return scores("dot", a, b)


def euclidean_sim(a: object, b: object) -> Float:
    """Return minus the Euclidean distances [n_a, n_b] of [n_a, d] and [n_b, d]. Raises DTypeError, InputError."""
    return scores("euclidean", a, b)


def manhattan_sim(a: object, b: object) -> Float:
    """Return minus the Manhattan distances [n_a, n_b] of [n_a, d] and [n_b, d]. Raises DTypeError, InputError."""
    return scores("manhattan", a, b)


def pairwise_cos_sim(a: object, b: object) -> Float:
    """Return the cosines [n] of vectors [n, d] and [n, d], row by row. Raises DTypeError, InputError."""
    return pair_scores("cosine", a, b)


def pairwise_dot_score(a: object, b: object) -> Float:
    """Return the dot products [n] of vectors [n, d] and [n, d], row by row. Raises DTypeError, InputError."""
    return pair_scores("dot", a, b)


def pairwise_euclidean_sim(a: object, b: object) -> Float:
    """Return minus the Euclidean distances [n] of [n, d] and [n, d], row by row. Raises DTypeError, InputError."""
    return pair_scores("euclidean", a, b)


def pairwise_manhattan_sim(a: object, b: object) -> Float:
    """Return minus the Manhattan distances [n] of [n, d] and [n, d], row by row. Raises DTypeError, InputError."""
    return pair_scores("manhattan", a, b)


def pairwise_angle_sim(x: object, y: object) -> Float:
    """Return the absolute AnglE similarities [n] of vectors [n, d] and [n, d] (Li and Li 2023).

    It is the cosine plus the sine of the angle between two vectors of complex numbers: numbers i and i + d / 2 are the
    parts of one complex number. A vector of odd length gets a zero at its end. Raises DTypeError, InputError.
    """
    first, second = read_matrix(x, "x"), read_matrix(y, "y")
    check_width(second, "y", first.shape[1], "x")
    odd = first.shape[1] % 2

    def angles(a: Wide, b: Wide) -> Wide:
        a, b = (_unit(np.pad(vectors, ((0, 0), (0, odd)))) for vectors in (a, b))
        half = a.shape[1] // 2
        sines = (a[:, half:] * b[:, :half] - a[:, :half] * b[:, half:]).sum(axis=-1)
        return cast(Wide, np.abs((a * b).sum(axis=-1) + sines))

    return _by_row(angles, first, second, ("x", "y"))


def check_similarity(value: object) -> Similarity | None:
    """Return the name of a similarity function, given as a str, a member of SimilarityFunction or None.

    Raises DTypeError, InputError.
    """
    name = value if value is None or isinstance(value, str) else getattr(value, "value", value)
    if name is not None and not isinstance(name, str):
        raise DTypeError(f"similarity_fn_name: expected one of {', '.join(MEASURES)}, got {type(value).__name__}")
    if name is not None and name not in MEASURES:
        raise InputError(f"similarity_fn_name: expected one of {', '.join(MEASURES)}, got {quote(name)}")
    return cast("Similarity | None", name)


@dataclass(frozen=True, slots=True)
class Measure:
    """How to compare two tables of vectors: prepare each once, then compute the scores of any of their rows.

    prepare: vectors [n, d] to vectors. table: prepared vectors [n_a, d] and [n_b, d] to scores [n_a, n_b]. pairs: rows
    of float64 [n, d] and [n, d] to scores [n].
    """

    prepare: Callable[[NDArray[Any]], NDArray[Any]]
    table: Callable[[Float, Float], Float]
    pairs: Callable[[Wide, Wide], Wide]


def scores(name: Similarity, a: object, b: object, names: tuple[str, str] = ("a", "b")) -> Float:
    """Return scores [n_a, n_b] of vectors [n_a, d] and [n_b, d]. names: the arguments in messages."""
    first, second = (read_matrix(value, argument) for value, argument in zip((a, b), names, strict=True))
    check_width(second, names[1], first.shape[1], names[0])
    dtype, measure = common_dtype(first, second), MEASURES[name]
    one, two = (measure.prepare(vectors.astype(dtype, copy=False)) for vectors in (first, second))
    return np.ascontiguousarray(measure.table(one, two))


def pair_scores(name: Similarity, a: object, b: object, names: tuple[str, str] = ("a", "b")) -> Float:
    """Return scores [n] of vectors [n, d] and [n, d], row by row; a 0-d array for two single vectors [d]."""
    first, second = (read_vectors(value, argument) for value, argument in zip((a, b), names, strict=True))
    return _by_row(MEASURES[name].pairs, first, second, names)


def product(a: Float, b: Float) -> Float:
    """Return a @ b.T for [n_a, d] and [n_b, d] of one float dtype, each score computed from its two rows alone."""
    if a.dtype == np.float32:
        # The kernel packs its second operand, so that is the smaller one. Both orders give the same bits.
        return ops.linear(a, b) if len(b) <= len(a) else cast(Float, ops.linear(b, a).T)
    return _slow_table(lambda rows, one: (rows * one).sum(axis=-1), a, b)


def _distances(order: Literal[1, 2], a: Float, b: Float) -> Float:
    return _slow_table(lambda rows, one: _negative_length(order, rows - one), a, b)


def _negative_length(order: Literal[1, 2], wide: Wide) -> Wide:
    """Return minus the norms of contiguous rows [n, d]."""
    return cast(Wide, -(np.abs(wide).sum(axis=-1) if order == 1 else lengths(wide)[..., 0]))


def _slow_table(score: Callable[[Wide, Wide], Wide], a: Float, b: Float) -> Float:
    """Return scores [n_a, n_b] in the dtype of a. score: rows [n, d] and one row [d] to scores [n], in float64."""
    if len(a) > len(b):  # few steps with many rows
        return cast(Float, _slow_table(score, b, a).T)
    found = np.empty((len(a), len(b)), a.dtype)
    for rows in blocks(len(b), block_rows(b.shape[1])):
        wide = np.ascontiguousarray(b[rows], np.float64)
        for i, one in enumerate(a):
            found[i, rows] = score(wide, one.astype(np.float64))
    return found


def _by_row(
    score: Callable[[Wide, Wide], Wide], first: NDArray[Any], second: NDArray[Any], names: tuple[str, str]
) -> Float:
    """Return the scores of rows in blocks; one vector is compared with each row of the other argument."""
    rows = {len(x) for x in (first, second) if x.ndim == 2}
    if first.shape[-1] != second.shape[-1] or len(rows - {1}) > 1:
        raise InputError(
            f"{names[1]}: expected shape {list(first.shape)} to match {names[0]}, got {list(second.shape)}"
        )
    n = max(rows, default=1) if 0 not in rows else 0
    found = np.empty(n, common_dtype(first, second))
    one, two = (np.broadcast_to(np.atleast_2d(x), (n, x.shape[-1])) for x in (first, second))
    for part in blocks(n, block_rows(first.shape[-1])):
        found[part] = score(*(np.ascontiguousarray(x[part], np.float64) for x in (one, two)))
    return found if rows else found.reshape(())


def _unit(x: Wide) -> Wide:
    return x / np.maximum(lengths(x), 1e-12)


def _same(x: NDArray[Any]) -> NDArray[Any]:
    return x


MEASURES: Mapping[str, Measure] = {
    "cosine": Measure(normalized, product, lambda a, b: (_unit(a) * _unit(b)).sum(axis=-1)),
    "dot": Measure(_same, product, lambda a, b: (a * b).sum(axis=-1)),
    "euclidean": Measure(_same, lambda a, b: _distances(2, a, b), lambda a, b: _negative_length(2, a - b)),
    "manhattan": Measure(_same, lambda a, b: _distances(1, a, b), lambda a, b: _negative_length(1, a - b)),
}
