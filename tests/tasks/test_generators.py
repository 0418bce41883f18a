"""TextEmbedding and TextCrossEncoder: the calls of fastembed, lazily, with the results of the classes behind them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import DTypeError, FastattnError, InputError, NonFiniteError
from tests.tasks.cross_encoders import PAIRS, write_cross_encoder
from tests.tasks.sentence_folders import NORMALIZE, POOLING, TEXTS, WIDTH, write_model, write_static


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"prompts": {"query": "the ", "passage": "a "}}
    return write_model(tmp_path_factory.mktemp("generators") / "m", POOLING, NORMALIZE, settings=settings)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cross_encoder(tmp_path_factory.mktemp("generators") / "r")


def same(found: Any, expected: Any) -> bool:
    return np.stack(list(found)).tobytes() == np.asarray(expected).tobytes()


class Counted(Iterator[str]):
    """An endless iterator of texts that counts how many were taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __next__(self) -> str:
        self.taken += 1
        return TEXTS[self.taken % len(TEXTS)]


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_vectors(folder: Path, batch_size: int) -> None:
    pandas = pytest.importorskip("pandas")
    with fastattn.SentenceTransformer(folder, threads=1) as model, fastattn.TextEmbedding(folder, threads=1) as found:
        expected = model.encode(TEXTS)
        for texts in (TEXTS, tuple(TEXTS), iter(TEXTS), np.array(TEXTS), pandas.Series(TEXTS)):
            vectors = found.embed(texts, batch_size=batch_size)
            assert iter(vectors) is vectors
            assert same(vectors, expected)
        assert same(found.query_embed(TEXTS, batch_size=batch_size), model.encode_query(TEXTS))
        assert same(found.passage_embed(TEXTS, batch_size=batch_size, parallel=2), model.encode_document(TEXTS))
        assert not same(found.query_embed(TEXTS), expected)
        assert same(found.embed("a"), model.encode(["a"]))
        assert same(found.query_embed("a"), model.encode_query(["a"]))
        assert list(found.embed([])) == []
        assert found.embedding_size == WIDTH
        counts = [min(count, 64) for count in model.count_tokens(TEXTS)]
        assert found.token_count(TEXTS, batch_size=batch_size) == sum(counts)


def test_vectors_come_lazily_in_bounded_memory(folder: Path) -> None:
    texts = Counted()
    with fastattn.TextEmbedding(folder, threads=1) as model:
        vectors = model.embed(texts, batch_size=5)
        assert texts.taken == 0
        for i, vector in enumerate(itertools.islice(vectors, 23)):
            assert vector.shape == (WIDTH,)
            assert i < texts.taken <= i + 5


def test_an_error_of_the_iterable_follows_the_results_before_it(folder: Path, reranker: Path) -> None:
    def texts() -> Iterator[str]:
        yield from TEXTS[:3]
        raise OSError("the file is gone")

    with fastattn.TextEmbedding(folder, threads=1) as model:
        found: list[Any] = []
        with pytest.raises(OSError, match="the file is gone"):
            found.extend(model.embed(texts()))
        assert same(found, list(model.embed(TEXTS[:3])))
    with fastattn.TextCrossEncoder(reranker, threads=1) as scorer:
        scores: list[float] = []
        with pytest.raises(OSError, match="the file is gone"):
            scores.extend(scorer.rerank("a", texts(), batch_size=2))
        assert scores == list(scorer.rerank("a", TEXTS[:3]))


def test_scores(reranker: Path) -> None:
    documents = [second for _, second in PAIRS]
    with (
        fastattn.CrossEncoder(reranker, threads=1) as model,
        fastattn.TextCrossEncoder(str(reranker), threads=1) as found,
    ):
        expected = model.predict([("good film", text) for text in documents], activation_fn="Identity").tolist()
        for batch_size in (1, 3, 64):
            assert list(found.rerank("good film", iter(documents), batch_size=batch_size)) == expected
        pairs = model.predict(PAIRS, activation_fn="Identity").tolist()
        assert list(found.rerank_pairs(PAIRS, batch_size=2, parallel=0)) == pairs
        assert all(type(score) is float for score in pairs)
        texts = Counted()
        scores = found.rerank("good film", texts, batch_size=4)
        assert texts.taken == 0
        assert len(list(itertools.islice(scores, 6))) == 6
        assert 6 <= texts.taken <= 8
        assert found.token_count(PAIRS) == sum(min(count, 64) for count in model.count_tokens(PAIRS))


def test_loading(folder: Path, reranker: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "providers": ["CPUExecutionProvider"], "cuda": "auto", "device_ids": [0], "mmap": True,
        "enable_cpu_mem_arena": False, "local_files_only": True, "cache_dir": str(tmp_path), "dtype": "bfloat16",
    }  # fmt: skip
    with fastattn.TextEmbedding(specific_model_path=folder, **options) as model:
        assert (model.model_name, model.model.dtype) == ("BAAI/bge-small-en-v1.5", "bfloat16")
    lazy = fastattn.TextEmbedding(tmp_path / "later", lazy_load=True)
    with pytest.raises(FastattnError, match="no folder"):
        lazy.embed(["a"])
    write_static(tmp_path / "later")
    assert len(list(lazy.embed(["a"]))) == 1
    lazy.close()
    with pytest.raises(InputError, match="close"):
        list(lazy.embed(["a"]))
    unused = fastattn.TextCrossEncoder(reranker, lazy_load=True)
    with unused:
        pass
    with pytest.raises(InputError, match="close"):
        unused.rerank("a", ["b"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"providers": ["CUDAExecutionProvider"]}, InputError, "providers: .*use cuda=True"),
        ({"providers": "CPUExecutionProvider"}, DTypeError, "providers: expected a list"),
        ({"device_ids": [1]}, InputError, "device_ids: expected None or"),
        ({"cuda": "gpu"}, InputError, "cuda: expected True"),
        ({"lazy_load": 1}, DTypeError, "lazy_load"),
        ({"mmap": "yes"}, DTypeError, "mmap: expected True or False"),
        ({"lazy": True}, InputError, "TextEmbedding: unknown keyword 'lazy'"),
        ({"threads": 0}, InputError, "threads: expected 1"),
    ],
)
def test_refused_options(folder: Path, options: dict[str, Any], error: type[FastattnError], message: str) -> None:
    with pytest.raises(error, match=message):
        fastattn.TextEmbedding(folder, **options)


def test_refused_calls(folder: Path, reranker: Path) -> None:
    """Arguments are checked by the call, texts when they are read; messages count from the start of the iterable."""
    with fastattn.TextEmbedding(folder, threads=1) as model:
        for bad in (None, 3, b"a", {"a"}, {"text": "a"}):
            with pytest.raises(DTypeError, match=r"^documents: expected"):
                model.embed(bad)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="batch_size"):
            model.embed(["a"], batch_size=0)
        with pytest.raises(DTypeError, match="parallel"):
            model.embed(["a"], parallel="all")  # type: ignore[arg-type]
        vectors = model.embed(["a", "b", "c", None], batch_size=2)  # type: ignore[list-item]
        assert len(list(itertools.islice(vectors, 3))) == 3  # those before the wrong one, also of its window
        with pytest.raises(DTypeError, match=r"^documents\[3\]: expected str"):
            next(vectors)
    with fastattn.TextCrossEncoder(reranker, threads=1) as scorer:
        with pytest.raises(DTypeError, match=r"^query: expected str"):
            scorer.rerank(["a"], ["b"])  # type: ignore[arg-type]
        with pytest.raises(DTypeError, match=r"^pairs\[1\]: expected a pair"):
            list(scorer.rerank_pairs([("a", "b"), "c"]))  # type: ignore[list-item]


def test_vectors_before_one_that_is_not_finite(folder: Path) -> None:
    """The texts of a window before such a text have their vectors, and the error names the text."""
    with fastattn.TextEmbedding(folder, threads=1) as model:
        expected = model.model.encode(TEXTS)
        bad = len(TEXTS) - 2
        computed = model.model._stack.run

        def spoiled(encoded: Any, where: list[str], **options: Any) -> Any:
            if f"documents[{bad}]" in where:
                raise NonFiniteError(f"documents[{bad}]: expected finite numbers")
            return computed(encoded, where, **options)

        model.model._stack.run = spoiled  # type: ignore[method-assign]
        found: list[Any] = []
        with pytest.raises(NonFiniteError, match=rf"^documents\[{bad}\]: expected finite"):
            found.extend(model.embed(TEXTS, batch_size=2 * len(TEXTS)))
        assert same(found, expected[:bad])


def test_a_number_that_is_not_finite_names_its_text(reranker: Path) -> None:
    with fastattn.TextCrossEncoder(reranker, threads=1) as scorer:
        computed = scorer.model._scorer.logits

        def spoiled(encoded: Any, where: list[str], prompt: str) -> Any:
            found = computed(encoded, where, prompt)
            found[[name == "documents[4]" for name in where]] = np.nan
            return found

        scorer.model._scorer.logits = spoiled  # type: ignore[method-assign]
        for size in (1, 2, 16):
            found: list[float] = []
            with pytest.raises(NonFiniteError, match=r"^documents\[4\]: expected finite"):
                found.extend(scorer.rerank("a", list("abcdef"), batch_size=size))
            assert found == list(scorer.rerank("a", list("abcd")))
