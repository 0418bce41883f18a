"""The demo models that ship with the package, as a new user sees them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

import fastattn
from fastattn.errors import ConfigError
from fastattn.tasks.demo import demo_model


def need(task: Literal["text-generation", "text-classification"]) -> None:
    try:
        demo_model(task)
    except ConfigError:
        pytest.skip("the demo models are not in this installation")


def test_text_generation(device: str) -> None:
    need("text-generation")
    generator = fastattn.pipeline("text-generation", device=device)
    found = generator("Once upon a time", max_new_tokens=20, seed=0)
    assert list(found[0]) == ["generated_text"]
    assert found[0]["generated_text"].startswith("Once upon a time")
    assert found == generator("Once upon a time", max_new_tokens=20, seed=0)
    pieces = generator.model.stream("Once upon a time", max_new_tokens=20, do_sample=True, temperature=0.7, seed=0)
    assert "Once upon a time" + "".join(pieces) == found[0]["generated_text"]


def test_text_classification(device: str) -> None:
    need("text-classification")
    classifier = fastattn.pipeline("text-classification", device=device)
    good, bad = classifier(["a wonderful , moving film", "a dull and stupid mess"])
    assert good["label"] != bad["label"]
    assert good["score"] > 0.5 < bad["score"]


def test_feature_extraction(device: str) -> None:
    need("text-classification")
    states = np.array(fastattn.pipeline("feature-extraction", device=device)("a film"))
    assert states.ndim == 3
    assert states.shape[0] == 1


def test_without_them_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr("importlib.resources.files", lambda name: tmp_path)
    with pytest.raises(ConfigError, match=r"^model: expected a folder or a hub id, because there is no demo model"):
        demo_model("text-generation")
