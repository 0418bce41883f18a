"""The command `fastattn rerank`: texts sorted by score, as text and as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fastattn
from fastattn.cli import main
from fastattn.tasks.demo import demo_model
from tests.reference.command import assert_refused, run
from tests.tasks.cross_encoders import write_cross_encoder

pytestmark = pytest.mark.torch
LINES = ["the cat", "a dog", "", "great film", "the cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cross_encoder(tmp_path_factory.mktemp("rerank"))


def test_lines(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(LINES) + "\n")
    options = ("rerank", "-m", folder, "-q", "good film", "--threads", 1)
    with fastattn.CrossEncoder(folder, threads=1) as model:
        expected = model.rank("good film", LINES, return_documents=True)
    done = run(*options, "--json", "-f", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected
    from_stdin = run(*options, "--json", "-f", "-", "--batch-size", 1, stdin=file.read_text())
    assert from_stdin.stdout == done.stdout
    short = run(*options, "--top-k", 2, *(word for text in LINES if text for word in ("-p", text)))
    best = [hit for hit in expected if hit["text"]][:2]
    assert short.stdout == "".join(f"{hit['score']:.4f}\t{hit['text']}\n" for hit in best)


def test_parts_with_a_progress_bar(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["rerank", "-m", str(folder), "-q", "good film", "--threads", "1", "--json"]
    words += [word for text in LINES for word in ("-p", text)]
    assert main(words) == 0
    expected = capsys.readouterr().out
    monkeypatch.setattr("fastattn.cli.commands.on_terminal", lambda: True)
    monkeypatch.setattr("fastattn.cli.commands._PART_TEXTS", 2)
    assert main([*words, "--batch-size", "2"]) == 0
    assert capsys.readouterr().out == expected


def test_texts_that_are_cut_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fastattn.CrossEncoder(folder, threads=1) as model:
        limit = model.max_seq_length
        texts = ["a dog", "the cat " * limit, "film " * limit]
        expected = model.rank("good film", texts)
    words = ["rerank", "-m", str(folder), "-q", "good film", "--threads", "1", "--json"]
    assert main([*words, *(word for text in texts for word in ("-p", text))]) == 0
    out, errors = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [(hit["corpus_id"], hit["score"]) for hit in found] == [(hit["corpus_id"], hit["score"]) for hit in expected]
    assert errors == f"cut to {limit} tokens, the model's limit: text 2 and 1 more\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-q", "a", "-p", "b"], 2, "arguments are required: -m/--model"),
        (["-m", "DIR", "-p", "b"], 2, "arguments are required: -q/--query"),
        (["-m", "DIR", "-q", "a"], 2, "one of the arguments -p/--prompt -f/--file is required"),
        (["-m", "DIR", "-q", " ", "-p", "b"], 2, "argument -q/--query: expected a text, got an empty text"),
        (["-m", "DIR", "-q", "a", "-p", "b", "--top-k", "-1"], 2, "argument --top-k: expected 0 to"),
        (["-m", "DIR", "-q", "a", "-p", "b", "--batch-size", "0"], 2, "argument --batch-size: expected 1 to"),
        (["-m", "DIR", "-q", "a", "-f", "/dev/null"], 1, "/dev/null: expected one text per line, found none"),
    ],
)
def test_refusals(folder: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(folder) if word == "DIR" else word for word in words]
    assert assert_refused(capsys, ["rerank", *words], code=code, words=message, usage="rerank") == ""


def test_a_model_with_several_labels_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rerank", "-m", str(demo_model("text-classification")), "-q", "a", "-p", "b"]
    message = "-m/--model: expected a cross-encoder with one label, got 2; use fastattn classify"
    assert_refused(capsys, words, code=1, words=message, usage="rerank")
