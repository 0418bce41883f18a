"""Pipelines as objects: attributes, tokenizers of other libraries, copies, pickles and other processes."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fastattn
from fastattn.errors import InputError
from tests.reference.package import PYTHON_ENVIRONMENT
from tests.tasks.tiny import write_bert_model, write_gpt2_model

pytestmark = pytest.mark.torch
TEXTS = ["good film", "a bad dog"]


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    gpt2 = write_gpt2_model(tmp_path_factory.mktemp("gpt2"))
    bert = write_bert_model(tmp_path_factory.mktemp("bert"), head=True)
    return {
        "text-generation": fastattn.pipeline("text-generation", gpt2, threads=1, seed=4, max_new_tokens=5),
        "text-classification": fastattn.pipeline("text-classification", bert, threads=1, top_k=2),
        "feature-extraction": fastattn.pipeline("feature-extraction", bert, threads=1, truncation=True),
    }


TASKS = ["text-generation", "text-classification", "feature-extraction"]


@pytest.mark.parametrize("task", TASKS)
def test_attributes(pipes: dict[str, Any], task: str) -> None:
    pipe = pipes[task]
    assert (pipe.task, pipe.device, pipe.dtype, pipe.torch_dtype) == (task, "cpu", "float32", "float32")
    assert pipe.predict(TEXTS) == pipe.transform(TEXTS) == pipe(TEXTS)
    assert pipes["text-classification"].model.config.id2label == {0: "bad", 1: "fair", 2: "good"}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("how", ["pickle", "copy", "deepcopy"])
def test_copies_give_the_same(pipes: dict[str, Any], task: str, how: str) -> None:
    pipe = pipes[task]
    make: dict[str, Any] = {
        "pickle": lambda value: pickle.loads(pickle.dumps(value)),
        "copy": copy.copy,
        "deepcopy": copy.deepcopy,
    }
    other = make[how](pipe)
    assert type(other) is type(pipe)
    assert other(TEXTS) == pipe(TEXTS)
    if how != "copy":  # a copy shares the model
        other.close()
        with pytest.raises(InputError, match="close"):
            other(TEXTS)
    assert pipe(TEXTS)


def test_a_changed_tokenizer_is_copied(pipes: dict[str, Any]) -> None:
    pipe = copy.deepcopy(pipes["text-classification"])
    pipe.tokenizer.model_max_length = 3
    cut = pipe("good film good film", truncation=True)
    assert cut != pipes["text-classification"]("good film good film", truncation=True)
    assert pickle.loads(pickle.dumps(pipe))("good film good film", truncation=True) == cut


SPAWN = """
import multiprocessing, pickle, sys

def work(pipe, texts):
    return pipe(texts)

if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        pipes = pickle.load(file)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for pipe in pipes.values():
            assert pool.apply(work, (pipe, ["good film", "a bad dog"])) == pipe(["good film", "a bad dog"])
    print("same")
"""


def test_a_spawned_process(pipes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "pipes.pickle").write_bytes(pickle.dumps(pipes))
    (tmp_path / "script.py").write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path / "pipes.pickle"],
        capture_output=True, text=True, timeout=300, check=False, env=PYTHON_ENVIRONMENT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "same\n"), done.stderr


def test_cross_validation(pipes: dict[str, Any]) -> None:
    base = pytest.importorskip("sklearn.base")
    selection = pytest.importorskip("sklearn.model_selection")

    class Labels(base.ClassifierMixin, base.BaseEstimator):  # type: ignore[misc]
        """An estimator that uses a pipeline."""

        def __init__(self, pipe: Any = None) -> None:
            self.pipe = pipe

        def fit(self, texts: Any, labels: Any) -> Labels:
            self.classes_ = sorted(set(labels))
            return self

        def predict(self, texts: Any) -> list[str]:
            return [found[0]["label"] for found in self.pipe.predict(texts)]

    pipe = pipes["text-classification"]
    texts = ["good film", "bad dog", "a cat", "great", "the film", "running"] * 2
    labels = [found[0]["label"] for found in pipe(texts)]
    scores = selection.cross_val_score(base.clone(Labels(pipe)), texts, labels, cv=2)
    assert scores.tolist() == [1.0, 1.0]


def test_tokenizers_of_other_libraries(pipes: dict[str, Any]) -> None:
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    pipe = pipes["text-classification"]
    folder = pipe.model.path
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.save_pretrained(folder / "again")
    raw = tokenizers.Tokenizer.from_file(str(folder / "again" / "tokenizer.json"))
    for tokenizer in (theirs, raw, pipe.tokenizer, folder, str(folder)):
        found = fastattn.pipeline("text-classification", pipe.model, tokenizer=tokenizer, top_k=2)
        assert found(TEXTS) == pipe(TEXTS)


def test_streamer_of_transformers(pipes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    pipe = pipes["text-generation"]
    streamer = transformers.TextIteratorStreamer(pipe.tokenizer, skip_prompt=True)
    found = pipe("the", streamer=streamer, return_full_text=False)
    assert "".join(streamer) == found[0]["generated_text"]
    with pytest.raises(InputError, match="streamer: expected one sequence"):
        pipe(["the", "a"], streamer=streamer)
