"""Fault 56 in the tasks: a model that returns NaN or infinity is an error, and nothing is printed or written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.checkpoint import open_checkpoint, read_tensor
from fastattn.errors import NonFiniteError
from fastattn.tasks.demo import demo_model
from tests.reference.checkpoints import safetensors
from tests.reference.hang import HANG_SECONDS
from tests.reference.package import PYTHON_ENVIRONMENT

BROKEN = "sad"  # only this word's embedding is broken
Break = Callable[..., Path]


@pytest.fixture
def broken(tmp_path: Path) -> Break:
    """Return the demo classifier with one non-finite number in a word's embedding or in the head's bias."""

    def write(name: str, value: float, word: str | None = None) -> Path:
        source, folder = demo_model("text-classification"), tmp_path / "broken"
        shutil.copytree(source, folder)
        tensors = {key: read_tensor(info).copy() for key, info in open_checkpoint(source).tensors.items()}
        (key,) = (key for key in tensors if key.endswith(name))
        row = () if word is None else ((folder / "vocab.txt").read_text(encoding="utf-8").splitlines().index(word),)
        tensors[key][(*row, 0)] = value
        (folder / "model.safetensors").write_bytes(safetensors(tensors))
        return folder

    return write


def test_a_score_that_is_nan(broken: Break) -> None:
    folder = broken("word_embeddings.weight", np.nan, BROKEN)
    classify = fastattn.pipeline("text-classification", folder)
    assert np.isfinite(classify("a good film")[0]["score"])
    with pytest.raises(NonFiniteError, match=r"^inputs\[3\]: expected finite scores.*nan$"):
        classify(["good", "bad", "film", f"a {BROKEN} film", "good"], batch_size=2)
    assert np.isnan(classify.model([classify.tokenizer.encode(BROKEN)]).logits).any()  # the model itself returns NaN


@pytest.mark.parametrize(("function", "value"), [("softmax", np.inf), ("none", np.inf), ("none", -np.inf)])
def test_a_score_that_is_infinite(broken: Break, function: Any, value: float) -> None:
    classify = fastattn.pipeline("text-classification", broken("classifier.bias", value))
    with pytest.raises(NonFiniteError, match=r"^inputs: "):
        classify("good", function_to_apply=function)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_logit_may_have_a_finite_score(broken: Break, value: float) -> None:
    classify = fastattn.pipeline("text-classification", broken("classifier.bias", value))
    scores = {item["label"]: item["score"] for item in classify("good", top_k=None, function_to_apply="sigmoid")}
    assert scores[classify.model.id2label[0]] == (1.0 if value > 0 else 0.0)


def test_vectors_and_features(broken: Break) -> None:
    folder = broken("word_embeddings.weight", np.nan, BROKEN)
    vectors = fastattn.SentenceTransformer(folder)
    assert np.isfinite(vectors.encode(["a good film", "bad"])).all()
    for options in ({}, {"normalize_embeddings": True}, {"output_value": "token_embeddings"}):
        with pytest.raises(NonFiniteError, match=r"^sentences\[2\]: .*nan$"):
            vectors.encode(["good", "a longer text", BROKEN, "bad"], **options)
    features = fastattn.pipeline("feature-extraction", folder)
    assert np.isfinite(features("good")).all()
    with pytest.raises(NonFiniteError, match=r"^inputs\[1\]: "):
        features(["good", BROKEN])


@pytest.mark.parametrize("command", [("classify",), ("classify", "--top-k", "0"), ("embed",), ("embed", "--normalize")])
@pytest.mark.parametrize("form", ["text", "--json"])
def test_the_command_prints_one_line_on_stderr(broken: Break, command: tuple[str, ...], form: str) -> None:
    folder = broken("word_embeddings.weight", np.nan, BROKEN)
    arguments = [*command, *([form] if form == "--json" else []), "-m", str(folder), "-p", "good", "-p"]
    answers = [run(*arguments, text) for text in ("bad", BROKEN)]
    assert answers[0].returncode == 0
    assert "nan" not in answers[0].stdout.lower()
    if form == "--json":
        assert all(json.loads(line)["text"] in ("good", "bad") for line in answers[0].stdout.splitlines())
    before = run(*arguments[:-1]).stdout  # the results of the texts before it
    assert (answers[1].returncode, answers[1].stdout) == (1, before)
    lines = [line for line in answers[1].stderr.splitlines() if "there is no modules.json" not in line]
    assert len(lines) == 1
    assert "fastattn: text 2: expected finite" in answers[1].stderr


def test_no_file_is_written(broken: Break, tmp_path: Path) -> None:
    folder = broken("word_embeddings.weight", np.nan, BROKEN)
    done = run("embed", "-m", str(folder), "-p", BROKEN, "-o", str(tmp_path / "v.npy"))
    assert (done.returncode, (tmp_path / "v.npy").exists()) == (1, False)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "fastattn", *arguments],
        capture_output=True, text=True, timeout=HANG_SECONDS, env=PYTHON_ENVIRONMENT, check=False,
    )  # fmt: skip
