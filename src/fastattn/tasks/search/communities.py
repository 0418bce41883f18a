"""Groups vectors into communities: vectors that are similar to a central one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count, check_flag, check_number
from fastattn.errors import NonFiniteError
from fastattn.tasks.progress import progress_bar
from fastattn.tasks.search.similarity import product
from fastattn.tasks.search.vectors import BLOCK_ELEMENTS, Float, block_rows, blocks, normalized, read_matrix


def community_detection(
    embeddings: object,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    show_progress_bar: bool = False,
) -> list[list[int]]:
    """Return communities of vectors [n, d], the largest first, as lists of rows.

    A community is a central row, which comes first, and all rows whose cosine with it is at least `threshold`, the most
    similar first; at least min_community_size rows in total. A row belongs to at most one community: communities
    are formed in order of size, and each takes only rows that no earlier one has. Equal similarities and sizes are
    ordered by row. batch_size: the maximum number of rows in one product; results do not depend on it. Memory does not
    grow with the sizes of communities. Raises DTypeError, InputError, and NonFiniteError if a vector has NaN or
    infinity.
    """
    limit = np.float32(check_number("threshold", threshold))
    least = check_count("min_community_size", min_community_size, low=1)
    size = check_count("batch_size", batch_size, low=1)
    show = check_flag("show_progress_bar", show_progress_bar)
    vectors = read_matrix(embeddings, "embeddings")
    if len(vectors) < least or not vectors.size:
        return []
    table = _unit_rows(vectors)
    counts = np.zeros(len(table), np.int64)
    size = min(size, block_rows(table.shape[1]))
    starts = range(0, len(table), size)
    with progress_bar(show, len(starts), title="Finding clusters") as done:
        for start in starts:
            some = table[start : start + size]
            for rows in blocks(len(table), block_rows(max(table.shape[1], len(some)))):
                counts[start : start + size] += (product(some, table[rows]) >= limit).sum(axis=1)
            done(1)
    order = np.argsort(-counts, kind="stable")
    return _apart(table, order[counts[order] >= least], limit, least)


def _unit_rows(vectors: NDArray[Any]) -> Float:
    with np.errstate(over="ignore", invalid="ignore"):
        found = normalized(vectors)
    if not np.isfinite(found).all():
        raise NonFiniteError("embeddings: expected finite numbers, got NaN or infinity")
    return found


def _apart(table: Float, centers: NDArray[np.int64], limit: np.float32, least: int) -> list[list[int]]:
    """Return communities without common rows. centers: rows with a large community, the largest first.

    The communities are computed again in this order, so that only one at a time needs memory.
    """
    used = np.zeros(len(table), bool)
    found: list[list[int]] = []
    at_once = max(1, min(64, BLOCK_ELEMENTS // len(table)))
    place = 0
    while place < len(centers):
        free = np.flatnonzero(~used[centers[place:]])[:at_once] + place
        if not len(free):
            break
        place = int(free[-1]) + 1
        some = centers[free]
        for center, scores in zip(some.tolist(), product(table[some], table), strict=True):
            if used[center]:
                continue
            members = np.flatnonzero((scores >= limit) & ~used)
            if len(members) < least:
                continue
            members = members[np.argsort(-scores[members], kind="stable")]
            community = [center, *members[members != center].tolist()]
            used[community] = True
            found.append(community)
    return sorted(found, key=len, reverse=True)
