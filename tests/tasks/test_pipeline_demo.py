"""Pipelines with the demo models and recorded results: only fastattn is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import InputError

GREEDY = "The sea-smaid, and the sun"


@pytest.fixture(scope="module")
def generator() -> Any:
    return fastattn.pipeline("text-generation", threads=1)


@pytest.fixture(scope="module")
def classifier() -> Any:
    return fastattn.pipeline("text-classification", threads=1)


def test_text_generation(generator: Any) -> None:
    options = {"do_sample": False, "max_new_tokens": 8}
    (record,) = generator("The sea", **options)
    assert record == {"generated_text": GREEDY}
    assert generator("The sea", return_full_text=False, **options) == [{"generated_text": GREEDY[7:]}]
    assert generator(["The sea"], max_length=11, do_sample=False)[0][0]["generated_text"].startswith("The sea")
    ids = generator("The sea", return_tensors=True, **options)[0]["generated_token_ids"]
    assert generator.tokenizer.decode(ids) == GREEDY
    assert len(generator("The sea", num_return_sequences=3, seed=1, max_new_tokens=2)) == 3
    beams = generator("The sea", num_beams=3, num_return_sequences=2, do_sample=False, max_new_tokens=4)
    assert len({found["generated_text"] for found in beams}) == 2
    with pytest.raises(InputError, match="guidance_scale"):
        generator("The sea", guidance_scale=3)


def test_text_classification(classifier: Any) -> None:
    good, bad = "A film that stays with you.", "The plot is a mess."
    assert [found["label"] for found in classifier([good, bad])] == ["POSITIVE", "NEGATIVE"]
    assert [found["label"] for found in classifier(good)] == ["POSITIVE"]
    assert [found["label"] for found in classifier(good, top_k=None)] == ["POSITIVE", "NEGATIVE"]
    assert [[found["label"] for found in row] for row in classifier([good, bad], top_k=1)] == [
        ["POSITIVE"],
        ["NEGATIVE"],
    ]
    assert classifier({"text": good})["label"] == "POSITIVE"
    assert classifier(good, truncation=True, max_length=512, padding=True) == classifier(good)
    cut = classifier(bad, truncation=True, max_length=3)
    assert cut != classifier(bad)


def test_feature_extraction() -> None:
    extract = fastattn.pipeline("feature-extraction", threads=1)
    array = extract("A film.", return_tensors=True)
    assert isinstance(array, np.ndarray)
    assert array.shape[:2] == (1, len(extract.tokenizer.encode("A film.")))
    assert array.tolist() == extract("A film.")
