"""The best scores of each query, collected block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[Any]
Ids = NDArray[np.int64]


class TopK:
    """Collects the k highest scores of each query, the highest first; ties go to the lowest ids.

    So the result does not depend on how the scores are split into blocks.
    """

    def __init__(self, n_queries: int, k: int) -> None:
        self._k = k
        self._found: list[tuple[Scores, Ids] | None] = [None] * n_queries

    def add(self, first_query: int, first_id: int, block: Scores) -> None:
        """Add scores [n_queries, n_ids] of consecutive queries and ids. The ids of a query must come in order."""
        for query, scores in enumerate(block, first_query):
            known = self._found[query]
            found, places = _best(scores, self._k, None if known is None else known[0])
            if known is None:
                self._found[query] = found, places + first_id
            elif len(places):
                values = np.concatenate([known[0], found])
                order = np.argsort(-values, kind="stable")[: self._k]  # the earlier ids come first
                self._found[query] = values[order], np.concatenate([known[1], places + first_id])[order]

    def of(self, query: int) -> tuple[Scores, Ids]:
        """Return the scores and ids of a query."""
        found = self._found[query]
        return (np.zeros(0, np.float32), np.zeros(0, np.int64)) if found is None else found


def _best(scores: Scores, k: int, known: Scores | None) -> tuple[Scores, Ids]:
    """Return the k highest of these scores and their places in order, without those that cannot enter `known`."""
    if known is not None and len(known) == k:
        places = np.flatnonzero(scores > known[-1])
        found = scores[places]
    else:
        places, found = np.arange(len(scores)), scores
    if len(found) > k:
        kept = np.flatnonzero(found >= np.partition(found, len(found) - k)[len(found) - k])
        places, found = places[kept], found[kept]
    order = np.argsort(-found, kind="stable")[:k]
    return found[order], places[order]
