"""The pipeline "zero-shot-classification": compares its results with transformers'."""

from __future__ import annotations

import logging
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import fastattn
from fastattn.errors import ContextLengthError, DTypeError, InputError
from tests.tasks.bounds import assert_as_good_as, assert_same_bits
from tests.tasks.test_pipelines import WORDS, reference
from tests.tasks.tiny import write_head

pytestmark = pytest.mark.torch
KINDS = {
    "Bert": ["contradiction", "neutral", "entailment"],
    "Roberta": ["ENTAILMENT", "neutral", "contradiction"],
    "DistilBert": ["not_entailment", "entailment"],
}
TEXTS = ["a good film", "the dogs, running unknown cats!", "bad"]
LABELS = ["good", "a bad dog", "cats", "film", "the running", "great", "un", "x, y"]


def write(folder: Path, family: str, names: list[str]) -> Path:
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return write_head(folder, f"{family}ForSequenceClassification", **labels)


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("m"), request.param, KINDS[request.param])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bert"), "Bert", KINDS["Bert"])


@cache
def transformers_pipeline(folder: Path, dtype: str) -> Any:
    return reference("zero-shot-classification", folder, dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"candidate_labels": LABELS},
        {"candidate_labels": LABELS, "multi_label": True},
        {"candidate_labels": "good, bad ,,cats"},
        {"candidate_labels": "good"},
        {"candidate_labels": LABELS, "hypothesis_template": "{} the cat"},
    ],
    ids=str,
)
def test_results_equal_transformers(folder: Path, device: str, options: dict[str, Any]) -> None:
    pipe: Any = fastattn.pipeline("zero-shot-classification", folder, device=device)
    for inputs in (TEXTS, TEXTS[0]):
        found = pipe(inputs, **options)
        expected = transformers_pipeline(folder, "float64")(inputs, **options)
        assert isinstance(found, list) == isinstance(expected, list)
        rows, truth = (value if isinstance(value, list) else [value] for value in (found, expected))
        for ours, theirs in zip(rows, truth, strict=True):
            assert list(ours) == list(theirs)
            assert (ours["sequence"], ours["labels"]) == (theirs["sequence"], theirs["labels"])


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_equal_transformers(folder: Path, multi_label: bool) -> None:
    """Of many texts, because errors are compared by their mean square."""
    texts = [f"{a} {b}" for a in WORDS for b in WORDS]
    options = {"candidate_labels": LABELS, "multi_label": multi_label}
    pipe: Any = fastattn.pipeline("zero-shot-classification", folder)
    results = (
        pipe(texts, **options),
        *(transformers_pipeline(folder, dtype)(texts, **options) for dtype in ("float64", "float32")),
    )
    tables = [[dict(zip(row["labels"], row["scores"], strict=True)) for row in rows] for rows in results]
    assert_as_good_as(*([[row[label] for label in LABELS] for row in table] for table in tables))


def test_results_do_not_depend_on_the_batch(bert: Path, device: str) -> None:
    pipe: Any = fastattn.pipeline("zero-shot-classification", bert, device=device, candidate_labels=LABELS)
    expected = [pipe(text) for text in TEXTS]
    for size in (1, 3, 32):
        found = pipe(TEXTS, batch_size=size)
        assert [row["labels"] for row in found] == [row["labels"] for row in expected]
        assert_same_bits([row["scores"] for row in found], [row["scores"] for row in expected], device)
    assert list(pipe(iter(TEXTS), LABELS))[1]["labels"] == expected[1]["labels"]
    assert pickle.loads(pickle.dumps(pipe))(TEXTS)[2]["labels"] == expected[2]["labels"]
    assert pipe([]) == []


def test_only_the_text_is_cut(bert: Path) -> None:
    pipe: Any = fastattn.pipeline("zero-shot-classification", bert)
    long = "a good film " * 40
    with pytest.raises(ContextLengthError, match="truncation=True"):
        pipe(long, LABELS)
    assert (
        pipe(long, LABELS, truncation=True)["labels"] == transformers_pipeline(bert, "float64")(long, LABELS)["labels"]
    )


def test_a_model_without_entailment_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, "Bert", ["no", "perhaps", "yes"])
    with caplog.at_level(logging.WARNING, "fastattn"):
        pipe: Any = fastattn.pipeline("zero-shot-classification", folder)
    assert "no name in label2id of config.json begins with 'entail'" in caplog.text
    expected = transformers_pipeline(folder, "float64")(TEXTS[0], LABELS)
    assert pipe(TEXTS[0], LABELS)["labels"] == expected["labels"]


def test_entailment_must_be_a_class(tmp_path: Path) -> None:
    folder = write(tmp_path, "Bert", ["no", "entailment"])
    with pytest.raises(InputError, match=r"label2id of config\.json: expected class numbers below 2, got 7"):
        fastattn.pipeline("zero-shot-classification", folder, model_kwargs={"label2id": {"entail": 7}})


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (None, {}, InputError, "candidate_labels: expected at least one label"),
        ([], {}, InputError, "candidate_labels: expected at least one label"),
        (" , ", {}, InputError, "candidate_labels: expected at least one label"),
        (3, {}, DTypeError, "candidate_labels"),
        ("a", {"hypothesis_template": "none"}, InputError, "hypothesis_template: expected a text with {}"),
        ("a", {"hypothesis_template": "{a} {"}, InputError, "hypothesis_template: expected a text with {}"),
        ("a", {"multi_label": 3}, DTypeError, "multi_label"),
        ("a", {"multi_class": True}, InputError, "multi_class"),
    ],
)
def test_wrong_options(bert: Path, labels: Any, options: dict[str, Any], error: Any, message: str) -> None:
    pipe: Any = fastattn.pipeline("zero-shot-classification", bert)
    with pytest.raises(error, match=message):
        pipe("a", labels, **options)


def test_errors_name_the_text(bert: Path) -> None:
    """Each text is a pair with every label, in batches; an error names the text."""
    with fastattn.pipeline("zero-shot-classification", bert) as pipe:
        long, full = "good " * 100, len(pipe.tokenizer("cats cat")["input_ids"]) + 1
        for options in ({}, {"batch_size": 2}):
            with pytest.raises(
                ContextLengthError, match=r"^sequences\[2\]: .*; truncation=True cuts the text"
            ) as caught:
                pipe(["good", "bad", long], LABELS, **options)
            assert caught.value.index == 2
            # The hypothesis leaves no room, so only an empty text fits.
            with pytest.raises(InputError, match=r"cannot make sequences\[1\] fit: .*; shorten the second text"):
                pipe(["", "bad"], "cats", truncation=True, max_length=full, hypothesis_template="{} cat", **options)
        with pytest.raises(ContextLengthError, match=r"^sequences: .*; use a max_length of at most \d+$"):
            pipe(long, LABELS, max_length=1000)
