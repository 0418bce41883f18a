"""The `fastattn` command in subprocesses: output, exit codes, pipes and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastattn
from fastattn.cli import main
from tests.tasks.tiny import write_bert_model, write_gpt2_model, write_sentence_model

pytestmark = pytest.mark.torch
SOURCES = str(Path(fastattn.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES, "PYTHONWARNINGS": "error"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "fastattn", *map(str, arguments)]


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), input=stdin, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False
    )


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2_model(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert_model(tmp_path_factory.mktemp("bert"), head=True)


def test_info() -> None:
    done = run("info")
    assert done.returncode == 0
    assert f"version:            {fastattn.__version__}" in done.stdout
    assert json.loads(run("info", "--json").stdout)["version"] == fastattn.__version__
    assert run("--version").stdout.strip() == f"fastattn {fastattn.__version__}"


def test_generate(gpt2: Path) -> None:
    options = ("-m", gpt2, "--device", "numpy", "-n", 12, "--seed", 4)
    streamed = run("generate", *options, "-p", "the hello")
    assert streamed.returncode == 0
    assert streamed.stdout.startswith("the hello")
    assert "tokens/s" in streamed.stderr
    assert len(streamed.stderr.splitlines()) == 1
    assert run("generate", *options, "--no-stream", "-p", "the hello").stdout == streamed.stdout
    assert run("generate", *options, "-p", "-", stdin="the hello\n").stdout == streamed.stdout
    answer = json.loads(run("generate", *options, "--json", "-p", "the hello").stdout)
    assert "the hello" + answer["text"] + "\n" == streamed.stdout
    assert answer["seed"] == 4
    assert set(answer) == {"prompt", "text", "finish_reason", "seed", "n_tokens"}
    greedy = [run("generate", *options[:6], "--temp", "0", "-p", "the", "-p", "in").stdout for _ in range(2)]
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize(
    "arguments",
    [("generate", "-m", "", "-p", "a"), ("generate", "-f", ""), ("embed", "-m", "", "-p", "a"), ("embed", "-f", "")],
    ids=" ".join,
)
def test_an_empty_word_is_not_an_option_left_out(arguments: tuple[str, ...]) -> None:
    """As from an unset variable of a shell: neither the demo model nor a traceback."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_terminal_without_unicode(gpt2: Path) -> None:
    """Text that the output cannot hold is a failure like others."""
    done = subprocess.run(
        command("generate", "-m", gpt2, "--device", "numpy", "-n", 1, "-p", "caf\u00e9"),
        capture_output=True, text=True, timeout=60, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("fastattn: ")
    assert len(done.stderr.splitlines()) == 1


def test_classify(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("good film\nbad dogs\n", encoding="utf-8")
    lines = run("classify", "-m", bert, "--device", "numpy", "-f", tmp_path / "lines.txt")
    assert lines.returncode == 0
    fields = [line.split("\t") for line in lines.stdout.splitlines()]
    assert [row[2] for row in fields] == ["good film", "bad dogs"]
    assert all(row[0] in ("bad", "fair", "good") and 0 < float(row[1]) < 1 for row in fields)
    piped = run("classify", "-m", bert, "--device", "numpy", "-p", "-", stdin="good film\nbad dogs\n")
    assert piped.stdout == lines.stdout
    done = run("classify", "-m", bert, "--device", "numpy", "--json", "--top-k", 0, "-p", "good film")
    answer = json.loads(done.stdout)
    assert answer["text"] == "good film"
    assert len(answer["labels"]) == 3


def test_embed(tmp_path: Path) -> None:
    folder = write_sentence_model(tmp_path / "m")
    options = ("embed", "-m", folder, "--device", "numpy", "-p", "good film", "-p", "a cat")
    done = run(*options, "-o", tmp_path / "out.npy", "--normalize")
    assert (done.returncode, done.stdout) == (0, "")
    vectors = np.load(tmp_path / "out.npy")
    expected = fastattn.SentenceTransformer(folder, device="numpy").encode(["good film", "a cat"])
    assert (vectors.shape, vectors.dtype) == ((2, 32), np.float32)
    rows = [json.loads(line)["embedding"] for line in run(*options, "--json").stdout.splitlines()]
    assert np.array_equal(np.array(rows, np.float32), expected)
    assert run(*options, "-o", tmp_path / "no" / "out.npy").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "required"),
        (("nothing",), 2, "invalid choice"),
        (("generate",), 2, "required"),
        (("generate", "-p", "a", "-f", "b"), 2, "not allowed with"),
        (("generate", "-p", "a", "-n", "x"), 2, "invalid int"),
        (("generate", "-m", "/no/such/folder", "-p", "a"), 1, "/no/such/folder"),
        (("generate", "-m", "{gpt2}", "--device", "numpy", "-p", "a", "-n", "-1"), 1, "max_new_tokens"),
        (("generate", "-m", "{gpt2}", "--device", "numpy", "-p", "a", "--temp", "-1"), 1, "temperature"),
        (("generate", "-m", "{gpt2}", "--device", "numpy", "-p", "a", "-n", "500"), 1, "context"),
        (("generate", "-m", "{gpt2}", "--device", "numpy", "-p", "a", "--dtype", "float8"), 1, "dtype"),
        (("classify", "-m", "{gpt2}", "--device", "numpy", "-p", "a"), 1, ""),
        (("classify", "-f", "/no/such/file"), 1, "/no/such/file"),
        (("embed", "-m", "{gpt2}", "-f", "/dev/null"), 1, "/dev/null"),
    ],
)
def test_exit_codes(
    gpt2: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    try:
        found: object = main([argument.replace("{gpt2}", str(gpt2)) for argument in arguments])
    except SystemExit as stop:
        found = stop.code
    printed = capsys.readouterr()
    assert found == code
    assert words in printed.err
    if code == 1:
        assert len(printed.err.splitlines()) == 1
        assert printed.out == ""


def test_exit_codes_of_the_process() -> None:
    assert run("nothing").returncode == 2
    done = run("generate", "-m", "/no/such/folder", "-p", "a")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_a_closed_pipe_is_quiet(gpt2: Path) -> None:
    prompts = ("-p", "the") * 200
    with subprocess.Popen(
        command("generate", "-m", gpt2, "--device", "numpy", "--no-stream", "-n", 1, *prompts),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read().decode()
        process.wait(timeout=30)
    assert "Traceback" not in errors
    assert "Broken" not in errors
    assert process.returncode in (0, 1)


def test_fault_58_ctrl_c(gpt2: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the hello\n" * 20000, encoding="utf-8")
    with subprocess.Popen(
        command("generate", "-m", gpt2, "--device", "numpy", "-n", 50, "-f", prompts),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(20)
        begin = time.perf_counter()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        seconds = time.perf_counter() - begin
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert seconds < 2  # the end of the interpreter included; the 100 ms of a step are tested with the executor
