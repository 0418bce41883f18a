"""Vectors of int8, uint8 and bits: equal to those of sentence-transformers, and an exact search in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn
from fastattn import util
from fastattn.errors import DTypeError, FastattnError, InputError, NonFiniteError
from tests.tasks.sentence_folders import POOLING, TEXTS, write_model
from tests.tasks.test_util import ids, vectors

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
CHUNKS: list[dict[str, int]] = [
    {}, {"corpus_chunk_size": 7}, {"query_chunk_size": 3}, {"query_chunk_size": 1, "corpus_chunk_size": 1}
]  # fmt: skip


def theirs() -> Any:
    pytest.importorskip("torch")
    return pytest.importorskip("sentence_transformers").util


def same(found: Any, expected: Any) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@pytest.mark.torch
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [1, 8, 13])
def test_quantized_vectors_equal_sentence_transformers(precision: Any, width: int) -> None:
    """With the ranges of the vectors, given ranges, and calibration vectors; for tables, one vector and matrices."""
    torch, module, a = pytest.importorskip("torch"), theirs(), vectors(130, width)
    a[:, 0] = 0.5
    ranges = np.stack([a.min(axis=0), a.max(axis=0) + 0.2])
    for options in ({}, {"ranges": ranges}, {"calibration_embeddings": a[:50]}):
        for given in (a, a.astype(np.float64), torch.from_numpy(a), list(a), a[:0], a * 2):
            expected = module.quantize_embeddings(given, precision=precision, **options)
            assert same(util.quantize_embeddings(given, precision, **options), expected)
        matrices = [a[:3], a[3:4], a[4:40], a[:0]]
        expected = module.quantize_embeddings(matrices, precision=precision, **options)
        found = util.quantize_embeddings(matrices, precision, **options)
        assert all(same(ours, other) for ours, other in zip(found, expected, strict=True))
        if options or precision not in ("int8", "uint8"):
            expected = module.quantize_embeddings(a[5], precision=precision, **options)
            assert same(util.quantize_embeddings(a[5], precision, **options), expected)
    assert util.quantize_embeddings([], precision) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"precision": "int4"}, InputError, "precision: expected one of"),
        ({"embeddings": np.ones((2, 3), np.int8)}, DTypeError, "embeddings: expected vectors of floats"),
        ({"embeddings": np.full((2, 3), np.nan)}, InputError, "embeddings: expected finite numbers"),
        ({"embeddings": vectors(1, 3)}, InputError, "one vector has none"),
        ({"embeddings": vectors(3)}, InputError, "one vector has none"),
        ({"embeddings": [vectors(2, 3), vectors(2, 4)]}, InputError, r"embeddings\[1\]: expected shape"),
        ({"ranges": vectors(3, 3)}, InputError, r"ranges: expected shape \[2, d\]"),
        ({"ranges": np.float32([[0, 0], [1, 1]])}, InputError, "ranges: expected shape"),
        ({"ranges": np.float32([[1, 1, 1], [0, 0, 0]])}, InputError, "ranges: expected the lowest"),
        ({"calibration_embeddings": vectors(4, 2)}, InputError, "calibration_embeddings: expected shape"),
        ({"calibration_embeddings": vectors(0, 3)}, InputError, "calibration_embeddings: expected at least one"),
    ],
)
def test_refused_quantization(arguments: dict[str, Any], error: type[FastattnError], message: str) -> None:
    with pytest.raises(error, match=message):
        util.quantize_embeddings(**{"embeddings": vectors(4, 3), "precision": "int8", **arguments})


@pytest.mark.torch
@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_token_embeddings_in_low_precision(tmp_path: Path, precision: Any) -> None:
    module = theirs()
    with fastattn.SentenceTransformer(write_model(tmp_path / "m", POOLING), threads=1) as model:
        rows = model.encode(TEXTS, output_value="token_embeddings")
        found = model.encode(TEXTS, output_value="token_embeddings", precision=precision)
        expected = module.quantize_embeddings(rows, precision=precision)
        assert all(same(ours, other) for ours, other in zip(found, expected, strict=True))
        alone = model.encode(TEXTS[1], output_value="token_embeddings", precision=precision)
        assert same(alone, module.quantize_embeddings([rows[1]], precision=precision)[0])
        assert model.encode([], output_value="token_embeddings", precision=precision) == []


def first_scores(queries: NDArray[Any], corpus: NDArray[Any], precision: str) -> NDArray[np.int64]:
    """Compute the scores of codes from their definition, in exact integers."""
    if precision in ("int8", "uint8"):
        return queries.astype(np.int64) @ corpus.astype(np.int64).T
    bits = [np.unpackbits(codes.view(np.uint8), axis=-1).astype(np.int64) for codes in (queries, corpus)]
    return -np.abs(bits[0][:, None] - bits[1][None]).sum(axis=-1)


def values(codes: NDArray[Any], precision: str, ranges: NDArray[np.float32], width: int) -> NDArray[np.float64]:
    """Return the numbers that codes stand for: the lower end of a step, or bits."""
    if precision in ("binary", "ubinary"):
        plain = codes if precision == "ubinary" else (codes.astype(np.int16) + 128).astype(np.uint8)
        return np.unpackbits(plain, axis=-1)[:, :width].astype(np.float64)
    steps = (ranges[1] - ranges[0]) / 255
    return (codes.astype(np.int64) + (128 if precision == "int8" else 0)) * steps.astype(np.float64) + ranges[0]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("width", [5, 70, 1100])
@pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
def test_quantized_search(precision: Any, width: int, chunks: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both passes rank as their formulas do, equal scores by row; also for many columns, and in small blocks."""
    queries, table = vectors(5, width), vectors(40, width, seed=1)
    table[30:33] = table[3]
    ranges = np.stack([table.min(axis=0), table.max(axis=0)])
    corpus = util.quantize_embeddings(table, precision, ranges)
    codes = util.quantize_embeddings(queries, precision, ranges)
    scores = first_scores(codes, corpus, precision)
    order = [sorted(range(40), key=lambda i: (-row[i], i)) for row in scores]
    options: dict[str, Any] = {"corpus_precision": precision, "top_k": 6, **chunks}
    for given in (codes, queries):
        found = util.semantic_search_quantized(given, corpus, ranges=ranges, rescore=False, **options)
        assert ids(found) == [row[:6] for row in order]
        assert [[hit["score"] for hit in row] for row in found] == [
            [float(scores[i, j]) for j in row[:6]] for i, row in enumerate(order)
        ]
    assert util.semantic_search_quantized(codes, corpus, **options) == found
    meant = values(corpus, precision, ranges, width)
    final = (queries.astype(np.float64)[:, None] * meant[None]).sum(axis=-1)
    expected = [sorted(row[:18], key=lambda j: (-final[i, j], j))[:6] for i, row in enumerate(order)]
    options |= {"ranges": ranges, "rescore_multiplier": 3}
    found = util.semantic_search_quantized(queries, corpus, **options)
    assert ids(found) == expected
    assert [[hit["score"] for hit in row] for row in found] == [
        [float(final[i, j]) for j in row] for i, row in enumerate(expected)
    ]
    assert util.semantic_search_quantized(queries[0], corpus, **options) == found[:1]
    monkeypatch.setattr("fastattn.tasks.search.vectors.BLOCK_ELEMENTS", 500)
    assert util.semantic_search_quantized(queries, corpus, **options) == found


def test_quantized_search_in_other_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, table = vectors(3, 12), vectors(20, 12, seed=1)
    expected = util.semantic_search(queries, table, score_function=util.dot_score)
    assert util.semantic_search_quantized(queries, table) == expected
    bits = util.quantize_embeddings(table, "ubinary")
    found = util.semantic_search_quantized(queries, bits, "ubinary", top_k=50)
    assert [sorted(row) for row in ids(found)] == [list(range(20))] * 3
    monkeypatch.delattr(np, "bitwise_count", raising=False)  # as in NumPy 1
    assert util.semantic_search_quantized(queries, bits, "ubinary", top_k=50) == found
    assert util.semantic_search_quantized(queries, bits[:0], "ubinary") == [[], [], []]
    assert util.semantic_search_quantized(queries[:0], bits, "ubinary") == []
    calibrated = util.quantize_embeddings(table, "int8", calibration_embeddings=table)
    ranges = np.stack([table.min(axis=0), table.max(axis=0)])
    assert util.semantic_search_quantized(
        queries, calibrated, "int8", calibration_embeddings=table
    ) == util.semantic_search_quantized(queries, calibrated, "int8", ranges=ranges)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"corpus_precision": "int4"}, InputError, "corpus_precision: expected one of"),
        ({"corpus_precision": "uint8"}, DTypeError, "corpus_embeddings: expected uint8 vectors"),
        ({"query_embeddings": np.ones((2, 12), np.uint8)}, DTypeError, "query_embeddings: expected floats or int8"),
        ({}, InputError, "ranges: expected the ranges that the int8 vectors"),
        ({"ranges": np.zeros((2, 5))}, InputError, "ranges: expected shape"),
        ({"corpus_embeddings": np.ones((2, 5), np.int8), "ranges": np.ones((2, 12))}, InputError, "^corpus_embeddings"),
        ({"rescore": 1}, DTypeError, "rescore: expected True or False"),
        ({"rescore_multiplier": 0}, InputError, "rescore_multiplier: expected 1"),
        ({"top_k": 0}, InputError, "top_k: expected 1"),
        ({"query_embeddings": np.full((2, 12), np.nan), "ranges": np.ones((2, 12))}, InputError, "finite"),
    ],
)
def test_refused_quantized_searches(arguments: dict[str, Any], error: type[FastattnError], message: str) -> None:
    given = {"query_embeddings": vectors(2, 12), "corpus_embeddings": np.ones((5, 12), np.int8)}
    with pytest.raises(error, match=message):
        util.semantic_search_quantized(**{**given, "corpus_precision": "int8", **arguments})


def test_a_score_beyond_float64_is_refused() -> None:
    queries = np.full((1, 8), 1e308)
    with pytest.raises(NonFiniteError, match="infinity"):
        util.semantic_search_quantized(queries, np.full((2, 1), 255, np.uint8), "ubinary")
