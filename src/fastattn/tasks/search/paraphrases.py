"""Finds the most similar pairs in a table of vectors."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count
from fastattn.tasks.search.semantic import Chunks, ScoreFunction, score_blocks
from fastattn.tasks.search.similarity import cos_sim
from fastattn.tasks.search.top_k import TopK
from fastattn.tasks.search.vectors import blocks, read_matrix

_ROOM = 2**16  # pairs beyond those that are returned


class Encodes(Protocol):
    """A model that turns texts into vectors, such as `SentenceTransformer`."""

    encode: Any


def paraphrase_mining(
    model: Encodes,
    sentences: object,
    show_progress_bar: bool = False,
    batch_size: int = 32,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100000,
    max_pairs: int = 500000,
    top_k: int = 100,
    score_function: ScoreFunction = cos_sim,
    truncate_dim: int | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> list[list[float | int]]:
    """Encode texts and return the most similar pairs, [[score, i, j], ...] with i < j.

    show_progress_bar, batch_size, truncate_dim, prompt_name, prompt: as in `SentenceTransformer.encode`. The others: as
    in `paraphrase_mining_embeddings`. Raises what both raise.
    """
    vectors = model.encode(
        sentences,
        show_progress_bar=show_progress_bar,
        batch_size=batch_size,
        truncate_dim=truncate_dim,
        prompt_name=prompt_name,
        prompt=prompt,
    )
    return paraphrase_mining_embeddings(vectors, query_chunk_size, corpus_chunk_size, max_pairs, top_k, score_function)


def paraphrase_mining_embeddings(
    embeddings: object,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100000,
    max_pairs: int = 500000,
    top_k: int = 100,
    score_function: ScoreFunction = cos_sim,
) -> list[list[float | int]]:
    """Return the most similar pairs of vectors [n, d], [[score, i, j], ...] with i < j, the highest score first.

    A pair is found if one of its vectors is among the top_k neighbors of the other one. Equal scores are ordered by i,
    then j, including at the limits top_k and max_pairs. max_pairs: the maximum number of pairs. score_function must be
    symmetric. query_chunk_size, corpus_chunk_size, score_function: as in `semantic_search`.
    Raises DTypeError, InputError, and NonFiniteError if a score is NaN or infinite.
    """
    vectors = read_matrix(embeddings, "embeddings")
    chunks = Chunks.read(query_chunk_size, corpus_chunk_size)
    n = len(vectors)
    pairs = _Pairs(n, check_count("max_pairs", max_pairs, low=1))
    count = min(check_count("top_k", top_k, low=1), max(n - 1, 0))
    if not count:
        return []
    for some in blocks(n, chunks.queries):
        found = TopK(some.stop - some.start, count)
        for query, start, scores in score_blocks(vectors[some], vectors, chunks, score_function):
            found.add(query, start, _without_self(scores, some.start + query - start))
        for query in range(some.start, some.stop):
            pairs.add(query, *found.of(query - some.start))
    return pairs.result()


def _without_self(scores: NDArray[Any], offset: int) -> NDArray[Any]:
    """Return the scores with -infinity where row i meets column i + offset, the same vector."""
    rows = np.arange(len(scores))
    own = rows[(rows + offset >= 0) & (rows + offset < scores.shape[1])]
    if len(own):
        scores = scores.copy()
        scores[own, own + offset] = -np.inf
    return scores


class _Pairs:
    """Collects pairs without duplicates, and drops those that cannot be among the best."""

    def __init__(self, n: int, most: int) -> None:
        self._n, self._most = n, most
        self._scores: list[NDArray[Any]] = []
        self._keys: list[NDArray[np.int64]] = []  # i * n + j
        self._count = 0

    def add(self, query: int, scores: NDArray[Any], ids: NDArray[np.int64]) -> None:
        """Add the neighbors of a vector."""
        low, high = np.minimum(ids, query), np.maximum(ids, query)
        self._scores.append(scores)
        self._keys.append(low * self._n + high)
        self._count += len(ids)
        if self._count > 4 * self._most + _ROOM:
            self._cut()

    def _cut(self) -> None:
        scores, keys = np.concatenate(self._scores), np.concatenate(self._keys)
        keys, first = np.unique(keys, return_index=True)  # the score of a pair is that of its first vector
        scores = scores[first]
        best = np.argsort(-scores, kind="stable")[: self._most]
        self._scores, self._keys, self._count = [scores[best]], [keys[best]], len(best)

    def result(self) -> list[list[float | int]]:
        """Return the `most` best pairs, [[score, i, j], ...], the highest score first."""
        self._cut()
        scores, keys = self._scores[0].tolist(), self._keys[0].tolist()
        return [[float(score), *divmod(key, self._n)] for score, key in zip(scores, keys, strict=True)]
