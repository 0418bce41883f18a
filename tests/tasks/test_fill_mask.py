"""The pipeline "fill-mask": compares its results with transformers'."""

from __future__ import annotations

import copy
import logging
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import fastattn
from fastattn.errors import ContextLengthError, DTypeError, InputError
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.test_pipelines import reference
from tests.tasks.tiny import write_masked_lm

pytestmark = pytest.mark.torch
FAMILIES = ("Bert", "Roberta", "DistilBert", "Electra")
ONE = "the good {mask} runs"
SEVERAL = "{mask}, a bad {mask}!"


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masked_lm(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masked_lm(tmp_path_factory.mktemp("bert"), "Bert")


def masked(pipe: Any, texts: Any) -> Any:
    """Write the tokenizer's mask token into texts."""
    if isinstance(texts, str):
        return texts.format(mask=pipe.tokenizer.mask_token)
    return [masked(pipe, text) for text in texts]


def items_of(result: Any) -> list[dict[str, Any]]:
    return [result] if isinstance(result, dict) else [item for part in result for item in items_of(part)]


def without_scores(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: value for key, value in result.items() if key != "score"}
    return [without_scores(part) for part in result]


@cache
def transformers_pipeline(folder: Path, dtype: str) -> Any:
    return reference("fill-mask", folder, dtype)


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        (ONE, {}),
        (SEVERAL, {"top_k": 3}),
        ([ONE], {}),
        ([SEVERAL], {"top_k": 1}),
        ([ONE, SEVERAL, "{mask}"], {"top_k": 2}),
        (ONE, {"targets": ["a", "t", "zzz"]}),
        (ONE, {"targets": "a", "top_k": 9}),
        ([SEVERAL, ONE], {"targets": ["a", "b", "c", "d"], "top_k": 2}),
        ("{mask} " * 90, {"tokenizer_kwargs": {"truncation": True, "max_length": 20}, "top_k": 2}),
    ],
)
def test_results_equal_transformers(folder: Path, device: str, texts: Any, options: dict[str, Any]) -> None:
    pipe = fastattn.pipeline("fill-mask", folder, device=device, threads=1)
    inputs = masked(pipe, texts)
    found = pipe(inputs, **options)
    assert without_scores(found) == without_scores(transformers_pipeline(folder, "float64")(inputs, **options))
    everything = pipe(inputs, **{**options, "top_k": pipe.model.config.vocab_size, "targets": None})
    for row, whole in zip(rows_of(found), rows_of(everything), strict=True):
        assert {item["token"]: item["score"] for item in row}.items() <= {
            item["token"]: item["score"] for item in whole
        }.items()


def test_scores_equal_transformers(folder: Path, device: str) -> None:
    """Of all tokens, because errors are compared by their mean square."""
    pipe = fastattn.pipeline("fill-mask", folder, device=device, threads=1)
    inputs, top_k = masked(pipe, [ONE, SEVERAL, "{mask}"]), pipe.model.config.vocab_size
    results = [
        [sorted((item["token"], item["score"]) for item in row) for row in rows_of(fill(inputs, top_k=top_k))]
        for fill in (pipe, *(transformers_pipeline(folder, dtype) for dtype in ("float64", "float32")))
    ]
    assert_as_good_as(*([[score for _, score in row] for row in rows] for rows in results))


def rows_of(result: Any) -> list[list[dict[str, Any]]]:
    """Return the list of tokens of every mask."""
    if isinstance(result[0], dict):
        return [result]
    return [row for part in result for row in rows_of(part)]


def test_all_tokens_sum_to_one_and_are_sorted(bert: Path) -> None:
    pipe = fastattn.pipeline("fill-mask", bert)
    n_tokens = pipe.model.config.vocab_size
    scores = [item["score"] for item in items_of(pipe("the [MASK]", top_k=n_tokens))]
    assert len(scores) == n_tokens
    assert scores == sorted(scores, reverse=True)
    assert abs(sum(scores) - 1) < n_tokens * 2.0**-52


def test_results_do_not_depend_on_the_batch(bert: Path) -> None:
    pipe = fastattn.pipeline("fill-mask", bert, top_k=2)
    texts = masked(pipe, [ONE, SEVERAL, "{mask}"] * 3)
    expected = [pipe(text) for text in texts]
    for batch_size in (1, 2, 32):
        assert pipe(texts, batch_size=batch_size) == expected
    assert list(pipe(iter(texts))) == expected
    assert pickle.loads(pickle.dumps(pipe))(texts) == expected
    assert copy.copy(pipe)(texts) == expected
    assert fastattn.pipeline("fill-mask", pipe.model, top_k=2)(texts) == expected


def test_the_first_token_of_a_target_is_named(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = fastattn.pipeline("fill-mask", bert)
    with caplog.at_level(logging.WARNING, "fastattn"):
        found = pipe("a [MASK]", targets=["dogs", ""])
    assert [item["token_str"] for item in items_of(found)] == ["dog"]
    assert [record.getMessage() for record in caplog.records] == [
        "targets: 'dogs' is not a token; its first token 'dog' is used instead",
        "targets: '' has no tokens and is ignored",
    ]


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("no mask", {}, r"inputs: expected the mask token '\[MASK\]', found none"),
        (["[MASK]", "no mask"], {}, r"inputs\[1\]: expected the mask token"),
        ("", {}, "inputs: expected the mask token"),
        ("a a a a [MASK]", {"truncation": True, "max_length": 4}, "among the tokens that truncation leaves"),
        ("[MASK]", {"top_k": 0}, "top_k: expected"),
        ("[MASK]", {"top_k": 10**6}, "top_k: expected at most"),
        ("[MASK]", {"targets": []}, "targets: expected at least one word"),
        ("[MASK]", {"targets": [""]}, "targets: expected at least one word"),
        ("[MASK]", {"topk": 3}, "topk"),
        ("[MASK]", {"tokenizer_kwargs": {"trunc": True}}, "trunc"),
    ],
)
def test_wrong_inputs(bert: Path, inputs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fastattn.pipeline("fill-mask", bert)(inputs, **options)


def test_other_errors(bert: Path) -> None:
    pipe: Any = fastattn.pipeline("fill-mask", bert)
    with pytest.raises(ContextLengthError):
        pipe("a " * 80 + "[MASK]")
    with pytest.raises(DTypeError):
        pipe(3)
    with pytest.raises(DTypeError):
        pipe("[MASK]", targets=3)
    with pytest.raises(InputError, match="model: expected a folder, a hub id or a loaded model for fill-mask"):
        fastattn.pipeline("fill-mask")  # type: ignore[call-overload]
    with pytest.raises(DTypeError, match="MaskedLM"):
        fastattn.pipeline("fill-mask", fastattn.AutoModel.from_pretrained(bert))  # type: ignore[call-overload]
    pipe.tokenizer.mask_token = None
    with pytest.raises(InputError, match="mask_token"):
        pipe("[MASK]")
