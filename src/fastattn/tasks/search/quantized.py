"""Search in vectors of int8, uint8 or single bits, with a second pass over the best ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn import ops
from fastattn.checks import check_choice, check_count, check_flag
from fastattn.errors import DTypeError
from fastattn.tasks.search.quantization import PRECISIONS, Precision, dequantize, quantize_embeddings, read_ranges
from fastattn.tasks.search.semantic import Chunks, Hit, check_scores, hits, read_tables, semantic_search
from fastattn.tasks.search.top_k import TopK
from fastattn.tasks.search.vectors import block_rows, blocks, check_width

Codes: TypeAlias = "NDArray[np.int8] | NDArray[np.uint8]"
_DTYPES = {"int8": np.int8, "uint8": np.uint8, "binary": np.int8, "ubinary": np.uint8}
# The float32 kernel is exact for sums below 2^24: this many products of codes.
_EXACT_TERMS = {"int8": 1024, "uint8": 256}
_BITS = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def semantic_search_quantized(
    query_embeddings: object,
    corpus_embeddings: object,
    corpus_precision: Precision = "float32",
    top_k: int = 10,
    ranges: object = None,
    calibration_embeddings: object = None,
    rescore: bool = True,
    rescore_multiplier: int = 2,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 500000,
) -> list[list[Hit]]:
    """Find the top_k vectors for each query in a corpus from `quantize_embeddings`, exactly and without an index.

    The arguments are those of sentence_transformers.quantization.semantic_search_faiss and semantic_search_usearch. The
    result is that of `semantic_search`. Queries of floats are quantized like the corpus; with int8 and uint8, pass the
    `ranges` or calibration_embeddings of the corpus. The first score is the dot product of the codes ("float32",
    "int8", "uint8"; exact for integers), or minus the number of different bits ("binary", "ubinary"). With `rescore`,
    the best top_k * rescore_multiplier vectors are then sorted by the dot product of the float query and the vector
    that the codes stand for (bits are 0 and 1), in float64. There is no second pass if the queries are already
    quantized or the corpus is float32. Equal scores are ordered by corpus_id. Chunks change no result.
    Raises DTypeError, InputError, NonFiniteError.
    """
    check_choice("corpus_precision", corpus_precision, PRECISIONS)
    again = check_flag("rescore", rescore)
    factor = check_count("rescore_multiplier", rescore_multiplier, low=1)
    count = check_count("top_k", top_k, low=1)
    if corpus_precision == "float32":
        return semantic_search(
            query_embeddings, corpus_embeddings, query_chunk_size, corpus_chunk_size, count, score_function="dot"
        )
    queries, corpus = read_tables(query_embeddings, corpus_embeddings)
    if corpus.dtype != _DTYPES[corpus_precision]:
        raise DTypeError(
            f"corpus_embeddings: expected {np.dtype(_DTYPES[corpus_precision])} vectors for corpus_precision="
            f'"{corpus_precision}", got {corpus.dtype}; quantize them with quantize_embeddings'
        )
    floats = queries if queries.dtype.kind == "f" else None
    if floats is None and queries.dtype != corpus.dtype:
        raise DTypeError(f"query_embeddings: expected floats or {corpus.dtype}, got {queries.dtype}")
    limits = None
    if floats is not None and corpus_precision in ("int8", "uint8"):
        limits = read_ranges(corpus_precision, None, ranges, calibration_embeddings)
        check_width(
            limits, "calibration_embeddings" if ranges is None else "ranges", queries.shape[1], "query_embeddings"
        )
    codes = queries if floats is None else quantize_embeddings(floats, corpus_precision, limits)
    check_width(corpus, "corpus_embeddings", codes.shape[1], "the quantized query_embeddings")
    search = _Search(codes, corpus, corpus_precision, Chunks.read(query_chunk_size, corpus_chunk_size))
    if floats is None or not again:
        return [hits(*found) for found in search.best(count)]
    return [
        _rescored(query.astype(np.float64), corpus[ids], ids, limits, count)
        for query, (_, ids) in zip(floats, search.best(count * factor), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Search:
    """The first pass: exact scores of codes."""

    queries: Codes
    corpus: Codes
    precision: str
    chunks: Chunks

    def best(self, k: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Yield the scores and ids of each query."""
        found = TopK(len(self.queries), k)
        scores: Callable[[Codes, Codes], NDArray[np.int64]] = _different_bits
        if self.precision in _EXACT_TERMS:
            terms = _EXACT_TERMS[self.precision]

            def scores(some: Codes, table: Codes) -> NDArray[np.int64]:
                return _integer_product(some, table, terms)

        size = block_rows(max(self.corpus.shape[1], min(len(self.queries), self.chunks.queries)), self.chunks.corpus)
        for rows in blocks(len(self.corpus), size):
            for some in blocks(len(self.queries), self.chunks.queries):
                found.add(some.start, rows.start, scores(self.queries[some], self.corpus[rows]))
        return (found.of(query) for query in range(len(self.queries)))


def _integer_product(queries: Codes, table: Codes, terms: int) -> NDArray[np.int64]:
    """Return queries @ table.T exactly. terms: how many products the float32 kernel adds exactly."""
    found = np.zeros((len(table), len(queries)), np.int64)
    for columns in blocks(table.shape[1], terms):
        parts = (np.ascontiguousarray(codes[:, columns], np.float32) for codes in (table, queries))
        found += ops.linear(*parts).astype(np.int64)
    return np.ascontiguousarray(found.T)


def _different_bits(queries: Codes, table: Codes) -> NDArray[np.int64]:
    """Return minus the number of different bits, [n_queries, n]."""
    some, rows = _words(queries), _words(table)
    return np.stack([-_count_bits(rows ^ query) for query in some]) if len(some) else np.zeros((0, len(rows)), np.int64)


def _words(codes: Codes) -> NDArray[np.uint64]:
    """Return bytes [n, d] as words of 8 bytes, with zeros at the end."""
    padded = np.pad(codes.view(np.uint8), ((0, 0), (0, -codes.shape[1] % 8)))
    return np.ascontiguousarray(padded).view(np.uint64)


def _count_bits(words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the number of ones in each row."""
    count = getattr(np, "bitwise_count", None)  # NumPy 2
    ones = _BITS[words.view(np.uint8)] if count is None else count(words)
    return cast("NDArray[np.int64]", ones.sum(axis=1, dtype=np.int64))


def _rescored(
    query: NDArray[np.float64], codes: Codes, ids: NDArray[np.int64], ranges: NDArray[np.float32] | None, top_k: int
) -> list[Hit]:
    """Return the best of the found vectors by their dot product with the float query [d]."""
    if ranges is None:
        offset = 128 if codes.dtype == np.int8 else 0
        stored = codes.view(np.uint8) ^ np.uint8(offset)
        vectors = np.unpackbits(stored, axis=-1)[:, : len(query)].astype(np.float64)
    else:
        vectors = dequantize(codes, ranges)
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (vectors * query).sum(axis=-1)
    check_scores(scores)
    best = np.lexsort((ids, -scores))[:top_k]
    return hits(scores[best], ids[best])
