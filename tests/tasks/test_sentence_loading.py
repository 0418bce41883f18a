"""Loading a SentenceTransformer: the source of its files, what it owns, and cleanup after a failure."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.api.encoders import Encoder
from fastattn.errors import ConfigError, InputError, ModelFormatError
from fastattn.tasks.sentence import names
from fastattn.tasks.sentence.files import find_weights, read_integers
from tests.models.test_hub import COMMIT
from tests.reference import checkpoints
from tests.tasks.sentence_folders import (
    POOLING,
    WIDTH,
    change_json,
    dense,
    write_model,
    write_static,
    write_transformer,
)

HUB_KEYS = ("cache_dir", "local_files_only", "revision", "token", "use_auth_token")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("loading") / "m", POOLING)


@pytest.mark.parametrize("keyword", ["model_kwargs", "processor_kwargs", "tokenizer_kwargs", "config_kwargs"])
def test_keywords_of_the_hub_are_those_of_the_class(folder: Path, keyword: str) -> None:
    """Inside a dictionary they would be ignored, and the wrong revision would be loaded."""
    neutral: Any = {keyword: dict.fromkeys(HUB_KEYS) | {"force_download": False, "proxies": None}}
    fastattn.SentenceTransformer(folder, threads=1, **neutral).close()
    for key, value in zip(HUB_KEYS, ("cache", True, "v2", "hf_secret", True), strict=True):
        given: Any = {keyword: {key: value}}
        with pytest.raises(
            InputError, match=f"{key}: expected None; pass {key} to SentenceTransformer itself"
        ) as found:
            fastattn.SentenceTransformer(folder, threads=1, **given)
        assert "hf_secret" not in str(found.value)


def test_a_tokenizer_that_is_set_belongs_to_the_model_alone(folder: Path) -> None:
    tokenizer = fastattn.AutoTokenizer.from_pretrained(folder)
    before = tokenizer.model_max_length
    model = fastattn.SentenceTransformer(folder, threads=1)
    model.tokenizer = tokenizer
    model.max_seq_length = 7
    assert (model.max_seq_length, tokenizer.model_max_length) == (7, before)
    tokenizer.model_max_length = 5
    assert model.max_seq_length == 7


def test_do_lower_case_is_for_any_tokenizer(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", POOLING)
    cased = fastattn.AutoTokenizer.from_pretrained(folder, do_lower_case=False)
    change_json(folder / "sentence_bert_config.json", do_lower_case=True)
    model = fastattn.SentenceTransformer(folder, threads=1)
    lower, upper = cased("a good film")["input_ids"], cased("A Good FILM")["input_ids"]
    assert lower != upper
    model.tokenizer = cased
    for found in (model, copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert found.preprocess(["A Good FILM"])["input_ids"].tolist() == [lower]
    assert cased("A Good FILM")["input_ids"] == upper


def test_a_folder_without_modules_says_which_pooling_is_used(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fastattn.SentenceTransformer(folder, threads=1).close()
    assert "pooling is used" not in caplog.text
    plain = write_transformer(tmp_path / "snapshots" / COMMIT)
    fastattn.SentenceTransformer(plain, threads=1).close()
    assert "there is no modules.json: mean pooling is used; this copy of a hub repository may be inco" in caplog.text
    caplog.clear()
    plain.rename(tmp_path / "plain")
    fastattn.SentenceTransformer(tmp_path / "plain", threads=1).close()
    assert caplog.text.rstrip().endswith("there is no modules.json: mean pooling is used")


def test_both_requests_to_the_hub_are_for_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = write_model(tmp_path / "snapshots" / COMMIT, POOLING)
    asked = []

    def resolve(path_or_id: str, *, revision: str | None, **_: object) -> Path:
        asked.append((path_or_id, revision))
        return snapshot

    monkeypatch.setattr(names, "resolve", resolve)
    found = names.find_folder("a/b", revision="main", cache_dir=None, local_files_only=False, token=None)
    assert found == snapshot
    assert asked == [("a/b", "main"), ("a/b", COMMIT)]


def test_integers_are_read_from_the_file_whose_header_was_read(tmp_path: Path) -> None:
    rows = np.arange(6, dtype=np.int64).reshape(2, 3)
    path = tmp_path / "model.safetensors"
    path.write_bytes(checkpoints.safetensors({"x": rows}))
    info = find_weights(tmp_path, "a test")["x"]
    assert read_integers(info).tolist() == rows.tolist()
    other = tmp_path / "other"
    other.write_bytes(checkpoints.safetensors({"x": rows + 1}))
    os.replace(other, path)
    with pytest.raises(ModelFormatError, match="expected the file as it was when it was opened"):
        read_integers(info)


@pytest.mark.parametrize("what", ["module", "limit", "pooling"])
def test_a_model_is_closed_where_loading_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    closed: list[Encoder] = []
    own = Encoder.close

    def close(model: Encoder) -> None:
        closed.append(model)
        own(model)

    monkeypatch.setattr(Encoder, "close", close)
    if what == "module":
        folder, error = write_model(tmp_path / "m", POOLING, dense(WIDTH + 1, 8)), ConfigError
    else:
        folder = write_transformer(tmp_path / "m")
        place = "Transformer.__init__" if what == "limit" else "Pooling"

        def fail(*_: object, **__: object) -> None:
            raise ConfigError("no")

        monkeypatch.setattr(f"fastattn.tasks.sentence.stack.{place}", fail)
        error = ConfigError
    with pytest.raises(error):
        fastattn.SentenceTransformer(folder, threads=1)
    assert len(closed) == 1


def test_the_files_of_a_static_embedding_are_closed(tmp_path: Path) -> None:
    folder = write_static(tmp_path / "m")
    fastattn.SentenceTransformer(folder).close()
    opened = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    assert str((folder / "tokenizer.json").resolve()) not in opened
