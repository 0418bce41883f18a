"""fastattn.util: the results of sentence_transformers.util, equal bits in any chunks, and typed errors."""

from __future__ import annotations

import inspect
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn
from fastattn import util
from fastattn.errors import DTypeError, FastattnError, InputError, NonFiniteError
from tests.tasks.bounds import assert_as_good_as

SCORES = ("cos_sim", "dot_score", "euclidean_sim", "manhattan_sim")
PAIRS = (*(f"pairwise_{name}" for name in SCORES), "pairwise_angle_sim")
WIDTHS = (1, 7, 33, 385)
Chunked = list[dict[str, int]]
CHUNKS: Chunked = [
    {}, {"corpus_chunk_size": 7}, {"query_chunk_size": 3}, {"query_chunk_size": 1, "corpus_chunk_size": 1},
]  # fmt: skip


def theirs() -> Any:
    pytest.importorskip("torch")
    return pytest.importorskip("sentence_transformers").util


def vectors(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def with_ties(n: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Return vectors of small integers, some of them equal, so their dot products are exact and often equal."""
    return np.random.default_rng(seed).integers(-1, 2, (n, width)).astype(np.float32)


def ids(results: Any) -> list[list[int]]:
    return [[hit["corpus_id"] for hit in row] for row in results]


def exact_ranking(scores: NDArray[Any]) -> list[list[int]]:
    """Return the order that the documentation promises: by score, equal scores by row."""
    return [sorted(range(len(row)), key=lambda i: (-row[i], i)) for row in scores]


@pytest.mark.torch
@pytest.mark.parametrize("name", [*SCORES, *PAIRS])
@pytest.mark.parametrize("width", WIDTHS)
def test_scores_equal_sentence_transformers(name: str, width: int) -> None:
    a, b = vectors(9, width), vectors(9, width, seed=1)
    b[2] = 0
    reference, ours = getattr(theirs(), name), getattr(util, name)
    exact = reference(a.astype(np.float64), b.astype(np.float64)).numpy()
    found = ours(a, b)
    assert found.dtype == np.float32
    assert_as_good_as(found, exact, reference(a, b).numpy())
    assert ours(a.astype(np.float64), b.astype(np.float64)).dtype == np.float64
    for given in (a.tolist(), list(a), np.asfortranarray(a)):
        assert ours(given, b).tobytes() == found.tobytes()
    if not name.startswith("pairwise"):
        assert ours(a[0], b).tobytes() == found[:1].tobytes()


@pytest.mark.torch
def test_tensors_and_half_precision() -> None:
    torch = pytest.importorskip("torch")
    a = vectors(5, 8)
    assert util.cos_sim(torch.from_numpy(a), list(torch.from_numpy(a))).tobytes() == util.cos_sim(a, a).tobytes()
    half = torch.from_numpy(a).half()
    assert util.dot_score(half, half).tobytes() == util.dot_score(half.float(), half.float()).tobytes()
    for bad in (torch.from_numpy(a).bfloat16(), torch.from_numpy(a).to_sparse()):
        with pytest.raises(DTypeError, match=r"^b: expected an array or a tensor on the CPU"):
            util.cos_sim(a, bad)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_score_depends_only_on_its_vectors(name: str, width: int, dtype: Any) -> None:
    a, b, score = vectors(40, width).astype(dtype), vectors(131, width, seed=1).astype(dtype), getattr(util, name)
    found = score(a, b)
    assert score(b, a).tobytes() == np.ascontiguousarray(found.T).tobytes()
    for rows, columns in ((slice(0, 1), slice(0, 1)), (slice(3, 20), slice(5, 6)), (slice(39, 40), slice(2, 131))):
        assert score(a[rows], b[columns]).tobytes() == np.ascontiguousarray(found[rows, columns]).tobytes()


@pytest.mark.torch
@pytest.mark.parametrize("name", SCORES)
def test_semantic_search_equals_sentence_transformers(name: str) -> None:
    module, queries, corpus = theirs(), vectors(5, 24), vectors(300, 24, seed=1)
    expected = module.semantic_search(queries, corpus, top_k=12, score_function=getattr(module, name))
    function = getattr(util, name)
    found = util.semantic_search(queries, corpus, top_k=12, score_function=function)
    assert ids(found) == ids(expected)
    scores = function(queries, corpus)
    for query, row in enumerate(found):
        assert [hit["score"] for hit in row] == [float(scores[query, hit["corpus_id"]]) for hit in row]
        assert all(type(hit["score"]) is float and type(hit["corpus_id"]) is int for hit in row)
    assert util.semantic_search(queries[0], corpus, top_k=12, score_function=function) == found[:1]
    own = util.semantic_search(queries, corpus, top_k=12, score_function=getattr(module, name))
    assert ids(own) == ids(found)


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("name", SCORES)
def test_search_does_not_depend_on_chunks(name: str, chunks: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal scores are ordered by row, also across chunks, and small blocks change nothing."""
    queries, corpus, function = with_ties(5, 5), with_ties(60, 5, seed=1), getattr(util, name)
    ranking = exact_ranking(function(queries, corpus))
    for top_k in (1, 20, 1000):
        found = util.semantic_search(queries, corpus, top_k=top_k, score_function=function, **chunks)
        assert ids(found) == [row[:top_k] for row in ranking]
        assert found == util.semantic_search(queries, corpus, top_k=top_k, score_function=function)
    monkeypatch.setattr("fastattn.tasks.search.vectors.BLOCK_ELEMENTS", 64)
    assert found == util.semantic_search(queries, corpus, top_k=top_k, score_function=function, **chunks)


def test_search_in_unusual_tables(tmp_path: Any) -> None:
    queries, corpus = vectors(3, 16), vectors(50, 16, seed=1)
    expected = util.semantic_search(queries, corpus, top_k=4)
    np.save(tmp_path / "corpus.npy", corpus)
    mapped = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    for table in (mapped, np.asfortranarray(corpus), corpus.astype(">f4"), corpus.tolist()):
        assert util.semantic_search(queries, table, top_k=4) == expected
    assert util.semantic_search(queries, corpus.astype(np.float64), top_k=4) == expected
    assert util.semantic_search(queries, corpus[:0]) == [[], [], []]
    assert util.semantic_search(queries[:0], corpus) == []
    assert util.semantic_search(queries, corpus, top_k=4, score_function="cosine") == expected
    wide = util.semantic_search(queries.astype(np.float64), corpus.astype(np.float64), top_k=4)
    assert ids(wide) == ids(expected)
    assert any(float(np.float32(hit["score"])) != hit["score"] for row in wide for hit in row)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"top_k": 0}, InputError, "top_k: expected 1"),
        ({"top_k": 2.0}, DTypeError, "top_k: expected int"),
        ({"query_chunk_size": 0}, InputError, "query_chunk_size: expected 1"),
        ({"corpus_chunk_size": -1}, InputError, "corpus_chunk_size: expected 1"),
        ({"score_function": "cos"}, InputError, "score_function: expected one of"),
        ({"score_function": None}, DTypeError, "score_function: expected one of"),
        ({"score_function": lambda a, b: a}, InputError, "score_function: expected a result of shape"),
        ({"score_function": lambda a, b: np.full((len(a), len(b)), np.nan)}, NonFiniteError, "scores: expected finite"),
        ({"corpus_embeddings": vectors(3, 4)}, InputError, "corpus_embeddings: expected shape"),
        ({"corpus_embeddings": ["a"]}, DTypeError, "corpus_embeddings: expected vectors of numbers"),
        ({"corpus_embeddings": np.full((2, 16), np.inf)}, NonFiniteError, "scores: expected finite"),
        ({"query_embeddings": np.ma.masked_array(np.ones((2, 16)))}, DTypeError, "query_embeddings: .*masked"),
    ],
)
def test_refused_searches(arguments: dict[str, Any], error: type[FastattnError], message: str) -> None:
    given = {"query_embeddings": vectors(2, 16), "corpus_embeddings": vectors(5, 16), **arguments}
    with pytest.raises(error, match=message):
        util.semantic_search(**given)


@pytest.mark.torch
@pytest.mark.parametrize(("top_k", "max_pairs"), [(100, 500000), (3, 500000), (3, 40), (50, 1)])
def test_paraphrases_equal_sentence_transformers(top_k: int, max_pairs: int) -> None:
    table = vectors(70, 20)
    expected = theirs().paraphrase_mining_embeddings(table_tensor(table), top_k=top_k, max_pairs=max_pairs)
    found = util.paraphrase_mining_embeddings(table, top_k=top_k, max_pairs=max_pairs)
    assert [pair[1:] for pair in found] == [pair[1:] for pair in expected]
    scores = util.cos_sim(table, table)
    assert all(score == float(scores[i, j]) for score, i, j in found)  # type: ignore[index]


def table_tensor(table: NDArray[np.float32]) -> Any:
    return pytest.importorskip("torch").from_numpy(table)


@pytest.mark.parametrize("max_pairs", [1, 17, 5000])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_paraphrases_do_not_depend_on_chunks(
    chunks: dict[str, int], max_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, top_k = with_ties(30, 4), 5
    scores = util.dot_score(table, table)
    pairs = set()
    for i, row in enumerate(exact_ranking(scores)):
        pairs |= {(min(i, j), max(i, j)) for j in [j for j in row if j != i][:top_k]}
    expected = sorted([float(scores[i, j]), i, j] for i, j in pairs)
    expected = sorted(expected, key=lambda pair: (-pair[0], pair[1], pair[2]))[:max_pairs]
    given: Any = {"top_k": top_k, "max_pairs": max_pairs, "score_function": util.dot_score, **chunks}
    assert util.paraphrase_mining_embeddings(table, **given) == expected
    monkeypatch.setattr("fastattn.tasks.search.paraphrases._ROOM", 1)
    assert util.paraphrase_mining_embeddings(table, **given) == expected


def test_paraphrases_of_few_vectors() -> None:
    assert util.paraphrase_mining_embeddings(vectors(0, 4)) == util.paraphrase_mining_embeddings(vectors(1, 4)) == []
    ((score, i, j),) = util.paraphrase_mining_embeddings(vectors(2, 4))
    assert (i, j, type(score)) == (0, 1, float)
    with pytest.raises(InputError, match="max_pairs"):
        util.paraphrase_mining_embeddings(vectors(2, 4), max_pairs=0)


def test_paraphrases_of_texts() -> None:
    with fastattn.SentenceTransformer(fastattn.pipeline("text-classification").model.path, threads=1) as model:
        texts = ["a fine film", "a dull film", "great fun", "a fine film", "dull and long"]
        found = util.paraphrase_mining(model, texts, batch_size=2, prompt="so: ", truncate_dim=40)
        expected = util.paraphrase_mining_embeddings(model.encode(texts, prompt="so: ", truncate_dim=40))
        assert found == expected
        assert found[0][1:] == [0, 3]


def clusters(seed: int) -> NDArray[np.float32]:
    """Return noisy copies of some centers, in random order, and vectors near none of them."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((5, 16))
    rows = np.concatenate([np.repeat(centers, (30, 22, 14, 9, 3), axis=0), rng.standard_normal((30, 16))])
    return rng.permutation(rows + 0.3 * rng.standard_normal(rows.shape)).astype(np.float32)


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("threshold", "least"), [(0.75, 10), (0.6, 2), (0.9, 1), (0.0, 5), (1.5, 1)])
def test_communities_equal_sentence_transformers(seed: int, threshold: float, least: int) -> None:
    table = clusters(seed)
    expected = theirs().community_detection(table, threshold, least)
    assert util.community_detection(table, threshold, least) == expected


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_communities_do_not_depend_on_chunks(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.concatenate([with_ties(80, 3), np.zeros((4, 3), np.float32)])
    scores = util.cos_sim(table, table)
    near = scores >= np.float32(0.7)
    taken: set[int] = set()
    expected = []
    for center in sorted(range(len(table)), key=lambda i: (-near[i].sum(), i)):
        members = [i for i in np.flatnonzero(near[center]).tolist() if i not in taken]
        if center in taken or len(members) < 2:
            continue
        expected.append([center, *sorted((i for i in members if i != center), key=lambda i: (-scores[center, i], i))])
        taken.update(expected[-1])
    expected = sorted(expected, key=len, reverse=True)
    assert len(expected) > 5
    assert util.community_detection(table, 0.7, 2, batch_size) == expected
    for module in ("vectors", "communities"):
        monkeypatch.setattr(f"fastattn.tasks.search.{module}.BLOCK_ELEMENTS", 300)
    assert util.community_detection(table, 0.7, 2, batch_size) == expected


def test_communities_of_few_vectors(capsys: pytest.CaptureFixture[str]) -> None:
    assert util.community_detection(vectors(0, 4)) == util.community_detection(vectors(9, 4)) == []
    assert util.community_detection(np.ones((3, 2)), min_community_size=3, show_progress_bar=True) == [[0, 1, 2]]
    assert "Finding clusters: 100%" in capsys.readouterr().err
    with pytest.raises(NonFiniteError, match=r"^embeddings: expected finite"):
        util.community_detection(np.full((3, 2), np.nan), min_community_size=1)
    with pytest.raises(DTypeError, match="threshold"):
        util.community_detection(vectors(9, 4), threshold="0.5")  # type: ignore[arg-type]


@pytest.mark.torch
def test_small_functions_equal_sentence_transformers() -> None:
    torch, module, a = pytest.importorskip("torch"), theirs(), vectors(6, 10)
    a[3] = 0
    exact = module.normalize_embeddings(torch.from_numpy(a.astype(np.float64))).numpy()
    rough = module.normalize_embeddings(torch.from_numpy(a)).numpy()
    assert_as_good_as(util.normalize_embeddings(a), exact, rough)
    assert util.normalize_embeddings(a[1]).tobytes() == util.normalize_embeddings(a)[1].tobytes()
    assert util.normalize_embeddings(a.astype(np.float64)).dtype == np.float64
    for size in (None, 1, 4, 10, 99):
        for given in (a, a[0]):
            assert np.array_equal(util.truncate_embeddings(given, size), module.truncate_embeddings(given, size))
    with pytest.raises(InputError, match="truncate_dim"):
        util.truncate_embeddings(a, 0)


def test_every_function_of_the_list_has_the_arguments_of_sentence_transformers() -> None:
    module = theirs()
    for name in util.__all__:
        if name == "semantic_search_quantized" or "maxsim" in name:  # ours takes lists of texts, so it needs no masks
            continue
        function: Callable[..., Any] = getattr(util, name)
        expected = inspect.signature(getattr(module, name)).parameters
        found = inspect.signature(function).parameters
        assert [(p.name, p.kind) for p in found.values()] == [(p.name, p.kind) for p in expected.values()]
        for parameter in found.values():
            default = expected[parameter.name].default
            assert callable(default) or parameter.default == default


def test_a_search_needs_memory_only_for_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All arrays of a search in a table of 16 MB, stored in a file, need less than 2 MB at a time."""
    np.save(tmp_path / "table.npy", vectors(65536, 64))
    table = np.load(tmp_path / "table.npy", mmap_mode="r")
    ranges = [[-5.0] * 64, [5.0] * 64]
    codes = util.quantize_embeddings(table, "int8", ranges)
    monkeypatch.setattr("fastattn.tasks.search.vectors.BLOCK_ELEMENTS", 2**15)
    calls: list[Callable[[], Any]] = [
        lambda: util.semantic_search(table[:3], table),
        lambda: util.semantic_search(table[:3], table, score_function=util.euclidean_sim),
        lambda: util.semantic_search_quantized(table[:3], codes, "int8", ranges=ranges),
        lambda: util.semantic_search(table[:3].astype(np.float64), table),
    ]
    for call in calls:
        tracemalloc.start()
        found = call()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert [row[0]["corpus_id"] for row in found] == [0, 1, 2]
        assert peak < 2**21
