"""Copies and pickles of models: they share weights within a process, and load the same files again in another."""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api import reload
from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.api.causal_lm import CausalLM
from fastattn.api.encoders import SequenceClassifier
from fastattn.errors import InputError, ModelFormatError, ModelNotFoundError
from tests.reference.checkpoints import write_bert, write_gpt2

IDS = [[2, 7, 3], [5, 4]]


@pytest.fixture
def classifier(tmp_path: Path, device: str) -> Any:
    with AutoModelForSequenceClassification.from_pretrained(write_bert(tmp_path / "m"), device=device) as model:
        yield model


def logits(model: Any) -> Any:
    return model(IDS).logits


@pytest.mark.parametrize("way", ["copy", "deepcopy", "pickle"])
def test_copies_share_weights_and_close_alone(classifier: SequenceClassifier, way: str) -> None:
    ways: Any = {
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
        "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    }
    expected = logits(classifier)
    first, second = ways[way](classifier), ways[way](classifier)
    assert type(first) is SequenceClassifier
    assert (first.path, first.name_or_path, first.device) == (classifier.path, classifier.name_or_path, first.device)
    for other in (first, second):
        assert other is not classifier
        assert other._shared is classifier._shared
        assert np.array_equal(logits(other), expected)
    classifier.close()
    assert np.array_equal(logits(first), expected)
    first.close()
    with pytest.raises(InputError, match="after close"):
        logits(first)
    assert np.array_equal(logits(second), expected)
    assert second(IDS, output_hidden_states=True).hidden_states is not None
    second.close()


def test_a_container_with_a_model_is_copied(classifier: SequenceClassifier) -> None:
    found = copy.deepcopy({"a": [classifier, classifier]})["a"]
    assert found[0] is found[1] is not classifier
    same = pickle.loads(pickle.dumps([classifier, classifier]))
    assert same[0] is same[1] is not classifier


def test_weights_are_free_when_the_last_model_is_closed(classifier: SequenceClassifier) -> None:
    data = pickle.dumps(classifier)
    assert len(data) < 2000  # no weights
    key = next(key for key, shared in reload._shared.items() if shared is classifier._shared)
    copied = pickle.loads(data)
    classifier.close()
    assert key in reload._shared
    copied.close()
    gc.collect()
    assert key not in reload._shared
    again, twice = pickle.loads(data), pickle.loads(data)
    assert again._shared is twice._shared is reload._shared[key]


def test_another_folder_or_option_is_another_model(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path / "a", n_embd=96, vocab_size=131)
    shutil.copytree(folder, tmp_path / "b")
    loaded = [
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        AutoModelForCausalLM.from_pretrained(folder, dtype="int8"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "b"),
        AutoModel.from_pretrained(folder),
    ]
    again = [pickle.loads(pickle.dumps(model)) for model in loaded]
    assert len({id(model._shared) for model in again}) == 4
    assert [model.dtype for model in again] == ["float32", "int8", "float32", "float32"]
    first, second = ([model([1, 2])[0] for model in models] for models in (loaded, again))
    for ours, theirs in zip(first, second, strict=True):
        assert np.array_equal(ours, theirs)


def test_options_travel(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    names = {0: "x", 1: "y", 2: "z"}
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, id2label=names, kv_dtype="int8", threads=1, pad_token_id=3, verify=None
    )
    data = pickle.dumps(model)
    model.close()
    del model
    gc.collect()
    again = pickle.loads(data)
    assert dict(again.config.id2label) == names
    assert again.config.pad_token_id == 3
    assert again.executor.threads == 1
    assert again.executor.kv_dtype == "int8"


def test_the_secret_token_is_not_in_a_pickle(tmp_path: Path) -> None:
    with AutoModel.from_pretrained(write_bert(tmp_path), token="hf_secret") as model:
        assert b"hf_secret" not in pickle.dumps(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_a_changed_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write_gpt2(tmp_path)
    path = folder / name
    if name == "generation_config.json":
        path.write_text("{}")
    model = AutoModelForCausalLM.from_pretrained(folder)
    data = pickle.dumps(model)
    del model
    gc.collect()
    original = path.read_bytes()
    path.write_bytes(original.replace(b" ", b"  ", 1) if name != "generation_config.json" else b'{"eos_token_id": 3}')
    with pytest.raises(
        ModelFormatError, match=rf"{name}: expected the file as it was when the pickled model was loaded"
    ):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(ModelNotFoundError, match=rf"{name}: expected the file that the pickled model was loaded from"):
        pickle.loads(data)
    path.write_bytes(original)  # a new modification time, the same bytes
    assert isinstance(pickle.loads(data), CausalLM)


def test_a_file_that_is_new_is_named(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path))
    data = pickle.dumps(model)
    del model
    gc.collect()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 3}')
    with pytest.raises(ModelFormatError, match=r"generation_config\.json: expected the file as it was"):
        pickle.loads(data)


def test_a_file_that_changed_since_loading_is_not_pickled(tmp_path: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path)) as model:
        write_gpt2(tmp_path, seed=1)
        with pytest.raises(ModelFormatError, match="as it was when the model was loaded"):
            pickle.dumps(model)
        assert np.array_equal(copy.copy(model)([1, 2]).logits, model([1, 2]).logits)


def write_in_place(path: Path) -> None:
    """Write different bytes of the same length."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace_with_same_times(path: Path) -> None:
    """Replace the file with one of the same length, mtime and name."""
    status = path.stat()
    other = path.with_name("other")
    shutil.copyfile(path, other)
    write_in_place(other)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [lambda path: path.chmod(0o400), lambda path: os.link(path, path.with_name("link"))])
def test_a_new_mode_or_link_is_not_a_change(tmp_path: Path, change: Callable[[Path], None]) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path))
    expected = model([1, 2]).logits
    for name in ("config.json", "model.safetensors"):
        path = tmp_path / name
        before = path.stat()
        change(path)
        assert path.stat().st_ctime_ns != before.st_ctime_ns  # so comparing ctime would fail
        (tmp_path / "link").unlink(missing_ok=True)
    data = pickle.dumps(model)
    del model
    gc.collect()
    with pickle.loads(data) as again:
        assert np.array_equal(again([1, 2]).logits, expected)


@pytest.mark.parametrize("change", [write_in_place, replace_with_same_times])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_other_content_of_the_same_length_is_a_change(
    tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path)) as model:
        change(tmp_path / name)
        with pytest.raises(ModelFormatError, match=rf"{name}: expected the file as it was when the model was loaded"):
            pickle.dumps(model)


def test_a_pickle_counts_its_digests_whatever_the_times_of_files(tmp_path: Path) -> None:
    """The owner of a file can reset its mtime; an earlier pickle still detects the change."""
    path = write_gpt2(tmp_path) / "model.safetensors"
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    data = pickle.dumps(model)
    del model
    gc.collect()
    status = path.stat()
    write_in_place(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ModelFormatError, match=r"model\.safetensors: expected the file as it was"):
        pickle.loads(data)


def test_closed_models_and_models_made_by_hand(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path))
    by_hand = CausalLM(tmp_path, model._built, model.executor)
    with pytest.raises(InputError, match="from_pretrained"):
        pickle.dumps(by_hand)
    assert np.array_equal(copy.copy(by_hand)([1]).logits, model([1]).logits)
    model.close()
    for call in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(InputError, match="after close"):
            call(model)


def test_a_relative_folder_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gpt2(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    model = AutoModelForCausalLM.from_pretrained("m")
    assert model.name_or_path == "m"
    monkeypatch.chdir("/")
    data = pickle.dumps(model)
    del model
    gc.collect()
    assert pickle.loads(data).path == tmp_path / "m"


SCRIPT = """
import builtins, pickle, sys
opened = []
import fastattn.api.reload as reload
digest = reload._sha256
reload._sha256 = lambda path: (opened.append(path.name), digest(path))[1]
data = open(sys.argv[1], "rb").read()
first, second = pickle.loads(data), pickle.loads(data)
assert first._shared is second._shared
del first, second
third = pickle.loads(data)
print(sorted(opened), third([[2, 7, 3]]).logits.tobytes().hex())
"""


def test_another_process_verifies_once_and_shares(tmp_path: Path) -> None:
    with AutoModelForSequenceClassification.from_pretrained(write_bert(tmp_path / "m")) as model:
        (tmp_path / "pickle").write_bytes(pickle.dumps(model))
        expected = model([[2, 7, 3]]).logits.tobytes().hex()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "pickle")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/", env=dict(os.environ))
    assert found.stdout.split("] ") == ["['config.json', 'model.safetensors'", f"{expected}\n"]


def test_spawned_processes(tmp_path: Path) -> None:
    with AutoModelForSequenceClassification.from_pretrained(write_bert(tmp_path), threads=1) as model:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(logits, (model,))
        assert np.array_equal(found, logits(model))


class Features:
    """A typical sklearn pipeline step: an estimator with a model as its parameter."""

    def __init__(self, model: Any = None) -> None:
        self.model = model

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"model": self.model}

    def set_params(self, **params: Any) -> Features:
        self.model = params.get("model", self.model)
        return self

    def fit(self, x: Any, y: Any = None) -> Features:
        return self

    def transform(self, x: Any) -> Any:
        return self.model([list(row) for row in x]).logits


def test_sklearn_and_joblib(tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn.base")
    joblib = pytest.importorskip("joblib")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import Pipeline

    with AutoModelForSequenceClassification.from_pretrained(write_bert(tmp_path), threads=1) as model:
        expected = model([[1, 2], [3, 4]]).logits
        cloned = sklearn.clone(Features(model))
        assert cloned.model is not model
        assert np.array_equal(cloned.transform([[1, 2], [3, 4]]), expected)
        x = np.random.default_rng(0).integers(1, 31, (12, 4))
        pipeline = Pipeline([("features", Features(model)), ("classes", LogisticRegression())])
        assert len(cross_val_score(pipeline, x, [0, 1] * 6, cv=2)) == 2
        found = joblib.Parallel(n_jobs=2)(joblib.delayed(logits)(model) for _ in range(2))
        for rows in found:
            assert np.array_equal(rows, logits(model))


def test_a_quantized_folder(tmp_path: Path) -> None:
    import fastattn

    folder = fastattn.quantize(write_gpt2(tmp_path / "m", n_embd=96, vocab_size=131), tmp_path / "q", dtype="int8")
    with AutoModelForCausalLM.from_pretrained(folder) as model:
        again = pickle.loads(pickle.dumps(model))
        assert again.dtype == "int8"
        assert np.array_equal(again([1, 2]).logits, model([1, 2]).logits)


def test_shards_are_compared_too(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    shard = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(shard)
    names = json.loads(header_of(shard))
    index = {"weight_map": dict.fromkeys(names, shard.name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = AutoModelForCausalLM.from_pretrained(folder)
    data = pickle.dumps(model)
    del model
    gc.collect()
    assert isinstance(pickle.loads(data), CausalLM)
    gc.collect()
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ModelFormatError, match=shard.name):
        pickle.loads(data)


def header_of(path: Path) -> bytes:
    """Return the JSON of a safetensors header."""
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]
