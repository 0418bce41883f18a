"""The pipeline "token-classification": compares its results with transformers'."""

from __future__ import annotations

import pickle
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.tasks.entities import STRATEGIES
from tests.tasks.bounds import assert_as_good_as, assert_same_bits
from tests.tasks.test_pipelines import reference
from tests.tasks.tiny import write_head

pytestmark = pytest.mark.torch
FAMILIES = ("Bert", "Roberta", "DistilBert")
LABELS = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC"]))
TEXTS = [
    "good film",
    "the dogs, running unknown cats!",
    "A Great\tdog  runs\u2014the na\u00efve \u4f60\u597d bad.",
    "",
    " ! ",
]
LONG = "the good dogs running, a bad cat in unknown films! " * 12


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("m"), f"{request.param}ForTokenClassification", id2label=LABELS)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_head(tmp_path_factory.mktemp("bert"), "BertForTokenClassification", id2label=LABELS)


@cache
def transformers_pipeline(folder: Path, dtype: str) -> Any:
    pipe = reference("token-classification", folder, dtype)
    pipe.tokenizer.model_max_length = 60
    return pipe


def expected_of(folder: Path, dtype: str, inputs: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns of tokenizers without words
        return transformers_pipeline(folder, dtype)(inputs, **options)


def parts_of(results: Any) -> tuple[Any, list[float]]:
    """Return the results without scores, and the scores."""
    rows = [results] if not results or isinstance(results[0], dict) else results
    scores = [float(item["score"]) for row in rows for item in row]
    return [[{k: v for k, v in item.items() if k != "score"} for item in row] for row in rows], scores


def assert_equal(folder: Path, pipe: Any, inputs: Any, **options: Any) -> None:
    found, scores = parts_of(pipe(inputs, **options))
    expected, exact = parts_of(expected_of(folder, "float64", inputs, **options))
    rough = parts_of(expected_of(folder, "float32", inputs, **options))[1]
    assert found == expected
    assert_as_good_as(scores, exact, rough)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_equal_transformers(folder: Path, device: str, strategy: Any) -> None:
    pipe = fastattn.pipeline("ner", folder, device=device, threads=1)
    assert_equal(folder, pipe, TEXTS, aggregation_strategy=strategy, ignore_labels=[])
    found = pipe(TEXTS, aggregation_strategy=strategy)
    assert parts_of(found)[0] == parts_of(expected_of(folder, "float64", TEXTS, aggregation_strategy=strategy))[0]
    for text, entities in zip(TEXTS, found, strict=True):
        alone, scores = parts_of(pipe(text, aggregation_strategy=strategy))
        assert alone == parts_of(entities)[0]
        assert_same_bits(scores, parts_of(entities)[1], device)
        for entity in entities:
            assert 0 <= entity["start"] <= entity["end"] <= len(text)


@pytest.mark.parametrize("strategy", ["simple", "first", "average", "max"])
@pytest.mark.parametrize("stride", [0, 7])
def test_long_texts_equal_transformers(folder: Path, strategy: Any, stride: int) -> None:
    pipe = fastattn.pipeline("token-classification", folder, threads=1)
    pipe.tokenizer.model_max_length = 60
    assert_equal(folder, pipe, LONG, aggregation_strategy=strategy, stride=stride, ignore_labels=[])
    assert_equal(folder, pipe, [*TEXTS, LONG], aggregation_strategy=strategy, stride=stride)


def test_texts_of_any_words_equal_transformers(folder: Path, rng: np.random.Generator) -> None:
    """Many texts, so labels of all kinds follow each other."""
    words = ["good", "dogs", "running", "unknown", "!", "a", "cat,", "zebra", "the", "x.y"]
    texts = [" ".join(rng.choice(words, 6).tolist()) for _ in range(20)]
    pipe = fastattn.pipeline("token-classification", folder, threads=1)
    for strategy in STRATEGIES:
        assert_equal(folder, pipe, texts, aggregation_strategy=strategy, ignore_labels=["MISC"])


def test_a_cut_text_equals_transformers(folder: Path) -> None:
    """transformers cuts every text to model_max_length."""
    pipe = fastattn.pipeline("token-classification", folder, threads=1)
    pipe.tokenizer.model_max_length = 60
    found = parts_of(pipe(LONG, truncation=True, ignore_labels=[]))[0]
    assert found == parts_of(expected_of(folder, "float64", LONG, ignore_labels=[]))[0]
    assert len(found[0]) == 58


def test_results_do_not_depend_on_the_batch(bert: Path) -> None:
    pipe = fastattn.pipeline("ner", bert, aggregation_strategy="simple", stride=3)
    texts = [*TEXTS, LONG]
    expected = [pipe(text) for text in texts]
    for batch_size in (1, 2, 32):
        assert pipe(texts, batch_size=batch_size) == expected
    assert list(pickle.loads(pickle.dumps(pipe))(iter(texts))) == expected
    assert fastattn.pipeline("ner", pipe.model)(texts, aggregation_strategy="SIMPLE", stride=3) == expected
    assert pipe([]) == []


def test_long_texts_are_rejected_or_cut(bert: Path) -> None:
    pipe: Any = fastattn.pipeline("ner", bert, ignore_labels=[])
    with pytest.raises(ContextLengthError, match=r"inputs\[1\]: .*stride=.*truncation=True") as caught:
        pipe(["good", LONG])
    assert (caught.value.index, caught.value.context) == (1, 66)
    with pytest.raises(ContextLengthError, match=r"^inputs: \d+ tokens, .*; use a max_length of at most 66$"):
        pipe(LONG, max_length=1000)
    cut = pipe(LONG, truncation=True)
    assert len(cut) == 62  # model_max_length of the tokenizer is 64
    assert pipe(LONG, truncation=True, max_length=10) == pipe(LONG, max_length=10)
    assert len(pipe(LONG, max_length=10)) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 3}, "stride: expected None with aggregation_strategy 'none', got 3"),
        ({"stride": 64, "aggregation_strategy": "max"}, "stride: expected less than"),
        ({"stride": -1, "aggregation_strategy": "max"}, "stride: expected"),
        ({"aggregation_strategy": "last"}, "aggregation_strategy: expected"),
        ({"grouped_entities": True}, "grouped_entities"),
        ({"truncation": "only_second"}, "only_second"),
    ],
)
def test_wrong_options(bert: Path, options: dict[str, Any], message: str) -> None:
    pipe: Any = fastattn.pipeline("ner", bert)
    with pytest.raises(InputError, match=message):
        pipe(LONG, **options)


def test_wrong_types(bert: Path) -> None:
    pipe: Any = fastattn.pipeline("ner", bert)
    for inputs, options in ((3, {}), ("a", {"ignore_labels": 3}), ("a", {"ignore_labels": [3]}), ([["a"]], {})):
        with pytest.raises((DTypeError, InputError)):
            pipe(inputs, **options)
