"""Folders of model2vec without modules.json: the vectors of model2vec itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import ConfigError, InputError
from tests.reference import checkpoints
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.sentence_folders import random, write_json, write_static

TEXTS = ["good film", "the cat, a dog qqq running!", "", "bad " * 40, "qqq 日本", "日本"]


def write_model2vec(folder: Path, width: int = 12, **config: Any) -> Path:
    """Write a folder as older releases of model2vec save it."""
    write_static(folder)
    from tokenizers import Tokenizer

    n_tokens = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    tensors: dict[str, Any] = {"embeddings": random(n_tokens, width)}
    if config.pop("quantized", False):
        rng = np.random.default_rng(1)
        tensors = {
            "embeddings": random(9, width),
            "weights": rng.random(n_tokens).astype(np.float32),
            "mapping": rng.integers(0, 9, n_tokens).astype(np.int64),
        }
    (folder / "model.safetensors").write_bytes(checkpoints.safetensors(tensors))
    (folder / "modules.json").unlink()
    write_json(folder / "config.json", {"model_type": "model2vec", "apply_zipf": True, "hidden_dim": width, **config})
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"normalize": True},
        {"normalize": False, "max_length": None},
        {"normalize": True, "max_length": 3},
        {"quantized": True, "normalize": True},
    ],
)
def test_vectors_equal_model2vec(tmp_path: Path, config: dict[str, Any]) -> None:
    model2vec = pytest.importorskip("model2vec", reason="needs model2vec")
    folder = write_model2vec(tmp_path, **config)
    theirs = model2vec.StaticModel.from_pretrained(folder)
    with fa.SentenceTransformer(folder) as model:
        found = model.encode(TEXTS)
        rough = theirs.encode(TEXTS, max_length=theirs.max_length)
        theirs.embedding = theirs.embedding.astype(np.float64)
        exact = theirs.encode(TEXTS, max_length=theirs.max_length)
        assert_as_good_as(found, exact, rough)
        for i, text in enumerate(TEXTS):
            assert model.encode(text).tobytes() == found[i].tobytes()


def test_unknown_tokens_are_left_out(tmp_path: Path) -> None:
    with fa.SentenceTransformer(write_model2vec(tmp_path)) as model:
        assert model.encode("good 日本 film").tobytes() == model.encode("good film").tobytes()
        assert not model.encode("日本").any()


def test_long_texts_are_cut(tmp_path: Path) -> None:
    with fa.SentenceTransformer(write_model2vec(tmp_path, max_length=3)) as model:
        assert model.encode("good cat film dog").tobytes() == model.encode("good cat film").tobytes()


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="normalize: expected true or false"):
        fa.SentenceTransformer(write_model2vec(tmp_path / "a", normalize="yes"))
    with pytest.raises(ConfigError, match="max_length: expected an integer from 1"):
        fa.SentenceTransformer(write_model2vec(tmp_path / "b", max_length=0))
    with pytest.raises(InputError, match="dtype: expected float32"):
        fa.SentenceTransformer(write_model2vec(tmp_path / "c"), dtype="int8")
