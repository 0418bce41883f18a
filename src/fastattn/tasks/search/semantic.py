"""Search in a table of vectors that is compared block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_choice, check_count
from fastattn.errors import DTypeError, InputError, NonFiniteError
from fastattn.tasks.search.similarity import (
    MEASURES,
    Measure,
    Similarity,
    cos_sim,
    dot_score,
    euclidean_sim,
    manhattan_sim,
)
from fastattn.tasks.search.top_k import TopK
from fastattn.tasks.search.vectors import Float, block_rows, blocks, check_width, common_dtype, read_matrix

ScoreFunction: TypeAlias = "Similarity | Callable[[Any, Any], Any]"
_NAMES: dict[object, Similarity] = {
    cos_sim: "cosine", dot_score: "dot", euclidean_sim: "euclidean", manhattan_sim: "manhattan"
}  # fmt: skip
_MAX_QUERIES = 1024  # of a block


class Hit(TypedDict):
    """A found vector: its row in the corpus, and its score."""

    corpus_id: int
    score: float


@dataclass(frozen=True, slots=True)
class Chunks:
    """The largest numbers of queries and of corpus vectors in one product."""

    queries: int
    corpus: int

    @classmethod
    def read(cls, query_chunk_size: object, corpus_chunk_size: object) -> Chunks:
        """Check the arguments of a search. Raises DTypeError, InputError."""
        return cls(
            min(check_count("query_chunk_size", query_chunk_size, low=1), _MAX_QUERIES),
            check_count("corpus_chunk_size", corpus_chunk_size, low=1),
        )


def semantic_search(
    query_embeddings: object,
    corpus_embeddings: object,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500000,
    top_k: int = 10,
    score_function: ScoreFunction = cos_sim,
) -> list[list[Hit]]:
    """Find the top_k vectors of the corpus [n, d] for each query [n_queries, d] or [d], the highest score first.

    Equal scores are ordered by corpus_id. score_function: cos_sim, dot_score, euclidean_sim or manhattan_sim, their
    names ("cosine", "dot", ...), or any function of [n_a, d] and [n_b, d] that returns scores [n_a, n_b].
    query_chunk_size and corpus_chunk_size: the maximum number of vectors in one product. Memory is bounded: blocks
    are smaller if these sizes would need more than about 16 MB. With the functions above, scores do not depend on them.
    The corpus may be a memory map. Raises DTypeError, InputError, and NonFiniteError if a score is NaN or infinite.
    """
    queries, corpus = read_tables(query_embeddings, corpus_embeddings)
    check_width(corpus, "corpus_embeddings", queries.shape[1], "query_embeddings")
    chunks = Chunks.read(query_chunk_size, corpus_chunk_size)
    found = TopK(len(queries), check_count("top_k", top_k, low=1))
    for query, start, block in score_blocks(queries, corpus, chunks, score_function):
        found.add(query, start, block)
    return [hits(*found.of(query)) for query in range(len(queries))]


def read_tables(query_embeddings: object, corpus_embeddings: object) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return both arguments of a search as [n, d]. Raises DTypeError, InputError."""
    return read_matrix(query_embeddings, "query_embeddings"), read_matrix(corpus_embeddings, "corpus_embeddings")


def hits(scores: NDArray[Any], ids: NDArray[np.int64]) -> list[Hit]:
    """Return the results of one query."""
    return [{"corpus_id": i, "score": float(score)} for score, i in zip(scores.tolist(), ids.tolist(), strict=True)]


def score_blocks(
    queries: NDArray[Any], corpus: NDArray[Any], chunks: Chunks, score_function: ScoreFunction
) -> Iterator[tuple[int, int, Float]]:
    """Yield (first query, first row of the corpus, scores) of all blocks; the rows of each query come in order.

    Raises DTypeError, InputError, NonFiniteError.
    """
    name = _name_of(score_function)
    dtype = common_dtype(queries, corpus)
    measure = None if name is None else MEASURES[name]
    size = block_rows(max(corpus.shape[1], min(chunks.queries, len(queries))), chunks.corpus)
    for rows in blocks(len(corpus), size):
        table: NDArray[Any] = np.ascontiguousarray(corpus[rows])
        if measure is not None:
            table = _prepared(measure, table, dtype)
        for some in blocks(len(queries), chunks.queries):
            if measure is None:
                found = _call(score_function, queries[some], table)
            else:
                part = _prepared(measure, queries[some], dtype)
                with np.errstate(over="ignore", invalid="ignore"):
                    found = measure.table(part, table)
            check_scores(found)
            yield some.start, rows.start, np.ascontiguousarray(found)


def _prepared(measure: Measure, vectors: NDArray[Any], dtype: type[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):  # the scores are checked
        return measure.prepare(vectors.astype(dtype, copy=False))


def check_scores(scores: NDArray[Any]) -> None:
    """Raise NonFiniteError if a score is NaN or infinite."""
    if not np.isfinite(scores).all():
        raise NonFiniteError("scores: expected finite numbers, got NaN or infinity; check the vectors")


def _name_of(score_function: object) -> Similarity | None:
    """Return the name of a similarity function; None for any other function."""
    if isinstance(score_function, str):
        check_choice("score_function", score_function, MEASURES)
        return cast("Similarity", score_function)
    if not callable(score_function):
        raise DTypeError(
            f"score_function: expected one of {', '.join(MEASURES)} or a function, got {type(score_function).__name__}"
        )
    return _NAMES.get(score_function)


def _call(score_function: Any, queries: NDArray[Any], table: NDArray[Any]) -> Float:
    """Call a function that is not ours, and check its result."""
    found = read_matrix(score_function(queries, table), "score_function: result")
    if found.shape != (len(queries), len(table)):
        raise InputError(
            f"score_function: expected a result of shape {[len(queries), len(table)]}, got {list(found.shape)}"
        )
    return found
