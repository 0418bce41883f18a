"""`classify`, `embed` and `run` on many texts: results in order, as a stream, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.cli import main
from fastattn.cli.texts import stream_texts
from fastattn.cli.vectors import VectorFile
from fastattn.errors import InputError
from fastattn.tasks.demo import demo_model
from tests.reference.command import ENVIRONMENT, command, run
from tests.tasks.tiny import write_bert_model, write_head, write_sentence_model

LINES = ["a fine film", "", "a dull one", "  ", "great"]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    return tmp_path / "lines.txt"


# -- reading ----------------------------------------------------------------------------------------------------------


def test_texts_of_a_file_are_counted_and_then_read(lines: Path) -> None:
    source = stream_texts(None, str(lines))
    assert source.total == len(LINES)
    assert [text.text for text in source.texts] == LINES
    assert stream_texts(None, str(lines), skip_blank=True).total == 3


@pytest.mark.parametrize("content", ["a\n", "a\nb\nc\nd\n"])
def test_a_file_that_changes_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "lines.txt"
    file.write_text("a\nb\nc\n")
    source = stream_texts(None, str(file))
    file.write_text(content)
    with pytest.raises(InputError, match=r"expected 3 texts, as before, got [14]; it was changed while it was read"):
        list(source.texts)


def test_a_wrong_line_of_a_file_is_found_before_the_first_result(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"good\n" * 5000 + b"\xff\n")
    done = run("classify", "-f", tmp_path / "bad.txt")
    assert (done.returncode, done.stdout) == (1, "")
    assert "bad.txt line 5001: expected UTF-8" in done.stderr


def test_a_wrong_line_of_a_stream_follows_the_results_before_it(tmp_path: Path) -> None:
    process = subprocess.run(
        command("classify", "-f", "-"), input=b"good\nbad\n\xff\n", capture_output=True, env=ENVIRONMENT, check=False
    )
    assert process.returncode == 1
    assert [line.split(b"\t")[2] for line in process.stdout.splitlines()] == [b"good", b"bad"]
    assert b"standard input line 3: expected UTF-8" in process.stderr


def test_arguments_and_standard_input() -> None:
    done = run("classify", "-p", "one", "-p", "-", "-p", "last", stdin="two\nthree\n")
    assert [line.split("\t")[2] for line in done.stdout.splitlines()] == ["one", "two", "three", "last"]


def test_results_appear_before_the_next_line_with_a_batch_of_one() -> None:
    with subprocess.Popen(
        command("classify", "-f", "-", "--batch-size", "1", "--threads", "1"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, text=True, bufsize=1,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("a fine film", "a dull one"):
            process.stdin.write(f"{text}\n")
            process.stdin.flush()
            assert process.stdout.readline().endswith(f"\t{text}\n")
        process.stdin.close()
        assert process.wait() == 0


# -- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--batch-size", "1"], ["--batch-size", "7"], ["--max-batch-tokens", "40"]])
def test_labels_are_those_of_the_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    texts = [f"film {i} " + "good " * (i * 7 % 30) for i in range(100)]
    (tmp_path / "lines.txt").write_text("\n".join(texts))
    assert main(["classify", "-f", str(tmp_path / "lines.txt"), "--json", *options]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = fastattn.pipeline("text-classification")(texts, top_k=1)
    assert found == [{"text": text, "labels": labels} for text, labels in zip(texts, expected, strict=True)]


def peak_memory(arguments: tuple[object, ...], output: Path) -> int:
    """Return the highest memory of a command, in bytes."""
    code = (
        "import resource, sys; from fastattn.cli import main; code = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    with open(output, "wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], stdout=file, stderr=subprocess.PIPE, text=True,
            env=ENVIRONMENT, check=True,
        )  # fmt: skip
    return int(done.stderr.splitlines()[-1]) * 1024


@pytest.mark.parametrize("name", ["classify", "embed"])
def test_memory_does_not_grow_with_the_number_of_lines(tmp_path: Path, name: str) -> None:
    """Lists of all texts and results would need 8 MB or more for the larger file."""
    peaks = []
    for n_lines in (1_000, 16_000):
        file, output = tmp_path / f"{n_lines}.txt", tmp_path / f"{n_lines}.out"
        file.write_text("".join(f"film {i}\n" for i in range(n_lines)))
        where = ("-o", tmp_path / f"{n_lines}.npy") if name == "embed" else ()
        peaks.append(peak_memory((name, "-f", file, "--threads", 1, *where), output))
        if name == "embed":
            assert np.load(tmp_path / f"{n_lines}.npy", mmap_mode="r").shape == (n_lines, 128)
        else:
            last = [line.rsplit("\t", 1)[1] for line in output.read_text().splitlines()]
            assert last == [f"film {i}" for i in range(n_lines)]
    assert peaks[1] - peaks[0] < 4e6


# -- vectors ----------------------------------------------------------------------------------------------------------


def test_a_vector_file_is_that_of_numpy(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = rng.standard_normal((7, 5), np.float32)
    with VectorFile(str(tmp_path / "v.npy")) as file:
        file.write(rows[:3])
        file.write(rows[3:])
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), rows)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy", mmap_mode="r"), rows)
    np.save(tmp_path / "numpy.npy", rows)
    assert (tmp_path / "v.npy").stat().st_size == (tmp_path / "numpy.npy").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numpy.npy", "v.npy"]


def test_an_error_leaves_a_vector_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    np.save(path, np.ones((2, 2), np.float32))
    before = path.read_bytes()
    with pytest.raises(InputError, match="broken"), VectorFile(str(path)) as file:  # noqa: PT012
        file.write(np.zeros((2, 2), np.float32))
        raise InputError("broken")
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="broken"), VectorFile(str(tmp_path / "new.npy")):
        raise InputError("broken")
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.npy"]
    with pytest.raises(OSError, match=r"none/v\.npy"):
        VectorFile(str(tmp_path / "none" / "v.npy"))


def test_a_vector_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    (tmp_path / "real.npy").write_bytes(b"")
    (tmp_path / "real.npy").chmod(0o640)
    (tmp_path / "link.npy").symlink_to(tmp_path / "real.npy")
    with VectorFile(str(tmp_path / "link.npy")) as file:
        file.write(np.ones((1, 2), np.float32))
    assert (tmp_path / "link.npy").is_symlink()
    assert (tmp_path / "real.npy").stat().st_mode & 0o777 == 0o640
    assert np.load(tmp_path / "real.npy").shape == (1, 2)


def test_vectors_into_a_pipe(tmp_path: Path) -> None:
    """A pipe cannot be rewritten, so all rows are written at the end."""
    os.mkfifo(tmp_path / "pipe.npy")
    with subprocess.Popen(
        command("embed", "-p", "a", "-p", "b", "-o", tmp_path / "pipe.npy"), env=ENVIRONMENT, stderr=subprocess.DEVNULL
    ) as process:
        (tmp_path / "copy.npy").write_bytes((tmp_path / "pipe.npy").read_bytes())
        assert process.wait() == 0
    expected = fastattn.SentenceTransformer(demo_model("text-classification")).encode(["a", "b"])
    np.testing.assert_array_equal(np.load(tmp_path / "copy.npy"), expected)


@pytest.mark.torch
def test_vectors_of_standard_input_are_those_of_a_file(tmp_path: Path) -> None:
    folder = write_sentence_model(tmp_path / "m")
    text = "".join(f"good film {i}\n" for i in range(600))
    (tmp_path / "lines.txt").write_text(text)
    run("embed", "-m", folder, "-f", tmp_path / "lines.txt", "-o", tmp_path / "file.npy", "--threads", 1)
    run("embed", "-m", folder, "-f", "-", "-o", tmp_path / "stream.npy", "--threads", 1, stdin=text)
    assert (tmp_path / "file.npy").read_bytes() == (tmp_path / "stream.npy").read_bytes()
    assert np.load(tmp_path / "file.npy").shape == (600, 32)


# -- run --------------------------------------------------------------------------------------------------------------


def results(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    assert main(["run", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.torch
def test_every_task_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ner = write_head(tmp_path / "ner", "BertForTokenClassification", id2label={0: "O", 1: "B-X", 2: "I-X"})
    texts = ["good film", "a bad dog, running"]
    (tmp_path / "lines.txt").write_text("\n".join(texts))
    for strategy in ("simple", "max"):
        options = {"aggregation_strategy": strategy, "ignore_labels": []}
        settings = [f"--set={name}={json.dumps(value) if value == [] else value}" for name, value in options.items()]
        found = results(capsys, "ner", "-m", ner, "-f", tmp_path / "lines.txt", *settings)
        expected = fastattn.pipeline("ner", ner)(texts, **options)  # type: ignore[call-overload]
        assert found == [{"input": text, "result": row} for text, row in zip(texts, expected, strict=True)]

    qa = write_head(tmp_path / "qa", "BertForQuestionAnswering")
    question = {"question": "a dog?", "context": "the good dogs"}
    found = results(capsys, "question-answering", "-m", qa, "-p", json.dumps(question))
    assert found == [{"input": question, "result": fastattn.pipeline("question-answering", qa)(**question)}]

    classifier = write_bert_model(tmp_path / "bert", head=True)
    pair = {"text": "good", "text_pair": "a film"}
    found = results(
        capsys, "text-classification", "-m", classifier, "--json-lines", "-p", json.dumps(pair), "-p", '"a"'
    )
    expected = fastattn.pipeline("text-classification", classifier)([pair, "a"])
    assert [row["result"] for row in found] == expected

    arguments = ("-m", classifier, "-p", "good", "--set", "candidate_labels=a,b", "--set", "multi_label=true")
    (row,) = results(capsys, "zero-shot-classification", *arguments)
    expected = fastattn.pipeline("zero-shot-classification", classifier)("good", "a,b", multi_label=True)
    assert row == {"input": "good", "result": expected}


def test_run_writes_arrays_as_lists(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = results(capsys, "feature-extraction", "-p", "a film", "--set", "return_tensors=true")
    assert row["result"] == fastattn.pipeline("feature-extraction")("a film")


def refusals() -> Iterator[tuple[list[str], int, str]]:
    yield ["image-classification", "-p", "a"], 1, "TASK: expected one of"
    yield ["fill-mask", "-p", "a"], 1, "model: expected a folder, a hub id or a loaded model for fill-mask"
    yield ["text-classification", "-p", "a", "--set", "top_k"], 2, "argument --set: expected NAME=VALUE, got 'top_k'"
    yield ["text-classification", "-p", "a", "--set", "topk=1"], 1, "unknown keyword 'topk'; did you mean 'top_k'"
    yield ["text-classification", "-p", "a", "--set", "inputs=b"], 1, "--set inputs: expected an option, got the input"
    for name in ("batch_size", "max_batch_tokens", "show_progress_bar"):
        setting = ["text-classification", "-p", "a", "--set", f"{name}=1"]
        yield setting, 1, f"--set {name}: expected an option without a flag of its own; "
    twice = ["text-classification", "-p", "a", "--set", "top_k=1", "--set", "top_k=2"]
    yield twice, 1, "--set top_k: expected one value, got several; pass it once"
    yield ["text-classification", "-p", "a", "--json-lines"], 1, "text 1: expected JSON, got 'a'"
    yield ["text-classification", "-p", "1", "--json-lines"], 1, "text 1: expected str, got int 1"
    yield ["text-generation", "-p", "a", "--max-batch-tokens", "9"], 2, "--max-batch-tokens: not allowed with text-gen"
    long = "a " * 200
    yield (
        ["text-classification", "-p", "a", "-p", long], 1,
        "text 2: 202 tokens, the model's context is 128; --set truncation=true cuts the text",
    )  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "message"), list(refusals()))
def test_what_run_refuses(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str) -> None:
    try:
        found = main(["run", *arguments])
    except SystemExit as error:
        found = int(str(error.code))
    assert (found, message in capsys.readouterr().err) == (code, True)
