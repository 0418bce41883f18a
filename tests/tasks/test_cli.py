"""The `fastattn` command in subprocesses: output, exit codes, pipes and Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import fastattn
from fastattn.cli import main
from fastattn.errors import NonFiniteError
from fastattn.generation.generate import TextStream
from tests.reference.command import ENVIRONMENT, assert_refused, command, run
from tests.reference.hang import HANG_SECONDS
from tests.tasks.tiny import write_bert_model, write_gpt2_model, write_sentence_model

pytestmark = pytest.mark.torch
COMMANDS = ("generate", "classify", "embed", "completion")


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
    assert "None" not in done.stdout
    assert run("--version").stdout.strip() == f"fastattn {fastattn.__version__}"


def test_kv_dtype(bert: Path) -> None:
    """The command's results equal the library's with the same dtypes of keys and values."""
    found = {}
    for kv_dtype in (None, "float32", "int8"):
        flags = () if kv_dtype is None else ("--kv-dtype", kv_dtype)
        done = run("embed", "-m", bert, *flags, "--json", "-p", "the hello hello")
        assert done.returncode == 0
        found[kv_dtype] = np.array(json.loads(done.stdout)["embedding"], np.float32)
        model = fastattn.SentenceTransformer(bert, kv_dtype=kv_dtype)
        np.testing.assert_array_equal(found[kv_dtype], model.encode("the hello hello"))
    np.testing.assert_array_equal(found[None], found["float32"])
    assert (found["int8"] != found["float32"]).any()


def test_head_dtype(gpt2: Path) -> None:
    """The command and a pipeline store the head in the given dtype: the texts equal those of such a model."""
    sizes, prompt = {}, "the hello hello the"
    for head_dtype in ("float32", "int4"):
        options = ("-n", "40", "--temp", "0", "--no-stream", "--json", "-p", prompt)
        done = run("generate", "-m", gpt2, "--head-dtype", head_dtype, *options)
        assert done.returncode == 0, done.stderr
        text = prompt + json.loads(done.stdout)["text"]
        generator = fastattn.pipeline("text-generation", gpt2, head_dtype=head_dtype)
        assert generator(prompt, do_sample=False, max_new_tokens=40) == [{"generated_text": text}]
        sizes[head_dtype] = generator.model.executor.weight_bytes
    assert sizes["int4"] < sizes["float32"]


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
    """An unset shell variable gives such a word. The command uses no demo model and prints no traceback."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert ": argument -" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_terminal_without_unicode(gpt2: Path) -> None:
    """Letters that the output cannot encode are written as escapes."""
    done = subprocess.run(
        command("generate", "-m", gpt2, "--device", "numpy", "-n", 1, "-p", "\u00e9t\u00e9"),
        capture_output=True, text=True, timeout=HANG_SECONDS, env={**ENVIRONMENT, "PYTHONIOENCODING": "ascii"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("\\xe9t\\xe9")
    assert "Traceback" not in done.stderr


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


def test_embed_with_a_prompt(tmp_path: Path) -> None:
    """--prompt-name puts the prompt of that name before each text, as `encode` does."""
    folder = write_sentence_model(tmp_path / "m")
    saved = {"prompts": {"query": "the ", "passage": "in "}, "default_prompt_name": "passage"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(saved))
    model = fastattn.SentenceTransformer(folder)
    for flags, prompt in (((), "in "), (("--prompt-name", "query"), "the ")):
        done = run("embed", "-m", folder, "--json", "-p", "good film", *flags)
        assert done.returncode == 0, done.stderr
        expected = model.encode("good film", prompt=prompt)
        assert np.array_equal(np.float32(json.loads(done.stdout)["embedding"]), expected)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nothing",), 2, "unknown command 'nothing'; expected info, generate,"),
        (("generatee", "-p", "a"), 2, "unknown command 'generatee'; did you mean 'generate'?"),
        (("x" * 100_000,), 2, "unknown command 'xxx"),
        (("generate",), 2, "required"),
        (("generate", "-p", "a", "-f", "b"), 2, "not allowed with"),
        (("classify", "--skip-blank", "-p", " "), 1, "-p/--prompt: expected a text, got only blank ones"),
        (("generate", "-p", "a", "-n", "x"), 2, "expected an integer, got 'x'"),
        (("generate", "-m", "/no/such/folder", "-p", "a"), 1, "/no/such/folder"),
        (("generate", "-p", "a", "-n", "-1"), 2, "argument -n/--max-new-tokens/--max-tokens: expected 0 to"),
        (("generate", "-p", "a", "--seed", "-1"), 2, "argument --seed: expected 0 to"),
        (("generate", "-p", "a", "--temp", "-1"), 2, "argument --temperature/--temp: expected at least 0"),
        (("generate", "-p", "a", "--temp", "nan"), 2, "argument --temperature/--temp: expected a finite number"),
        (
            ("generate", "-p", "a", "--temperature", "warm"),
            2,
            "argument --temperature/--temp: expected a number, got 'warm'",
        ),
        (("generate", "-p", "a", "--top-p", "2"), 2, "argument --top-p: expected 0 to 1"),
        (("generate", "-p", "a", "--min-p", "2"), 2, "argument --min-p: expected 0 to 1"),
        (("generate", "-p", "a", "--top-k", "-1"), 2, "argument --top-k: expected 0 to"),
        (("generate", "-p", "a", "--repetition-penalty", "0"), 2, "argument --repetition-penalty: expected 1e-06 to"),
        (("generate", "-p", "a", "--stop", ""), 2, "argument --stop: expected 1 to 1000 characters"),
        (("generate", "-p", "a", "--threads", "0"), 2, "argument --threads: expected at least 1"),
        (("generate", "-p", "a", "--dtype", "float8"), 2, "argument --dtype"),
        (("generate", "-p", "a", "--kv-dtype", "int4"), 2, "argument --kv-dtype"),
        (("generate", "-p", "a", "--kv-dtype", "int8", "--device", "numpy"), 1, "kv_dtype: expected None on numpy"),
        (("generate", "-p", "a", "--dtype", "float64"), 2, "argument --dtype: float64 needs --device numpy"),
        (("generate", "-p", "a", "-m", ""), 2, "argument -m/--model: expected a folder"),
        (("generate", "-f", ""), 2, "argument -f/--file: expected a file"),
        (("classify", "-p", "a", "--top-k", "-1"), 2, "argument --top-k: expected 0 to"),
        (("embed", "-p", "a", "--batch-size", "0"), 2, "argument --batch-size: expected 1 to"),
        (("embed", "-p", "a", "--json", "-o", "a.npy"), 2, "argument --json: not allowed with argument -o"),
        (("embed", "-p", "a", "-o", ""), 2, "argument -o/--output: expected FILE.npy, got ''"),
        (("embed", "-p", "a", "-o", "x.txt"), 2, "argument -o/--output: expected FILE.npy, got 'x.txt'"),
        (("classify", "-f", "a.txt", "-f", "b.txt"), 2, "argument -f/--file: expected it once; join the files"),
        (("generate", "-p", "a", "--nope"), 2, "unknown option '--nope'"),
        (("classify", "-p", "a", "--truncate"), 2, "unknown option '--truncate'; use --truncation"),
        (("generate", "--promptt", "a"), 2, "unknown option '--promptt'; did you mean '--prompt'?"),
        (("generate", "-p", "a", "--max-tokns=3"), 2, "unknown option '--max-tokns'; did you mean '--max-tokens'?"),
        (("embed", "-x", "-p", "a"), 2, "unknown option '-x'"),
        (("generate", "-p", "a", "--greedy"), 2, "unknown option '--greedy'; use --temperature 0"),
        (("generate", "-p", "a", "--stop-strings", "b"), 2, "unknown option '--stop-strings'; use --stop"),
        (("generate", "-p", "a", "--quiet"), 2, "unknown option '--quiet'"),
        (("classify", "-p", "a", "--greedy"), 2, "unknown option '--greedy'"),
        (("embed", "-p", "a", "--prompt-name", ""), 2, "argument --prompt-name: expected a name, got an empty text"),
        (("embed", "-p", "a", "--prompt-name", "x"), 1, "prompt_name: expected one of the prompts"),
        (("generate", "-p", "a", "b"), 2, "unexpected argument 'b'"),
        (("--nope", "generate", "-p", "a"), 2, "unknown option '--nope'"),
        (
            ("generate", "-p", "a", "--truncate", "midddle"),
            2,
            "argument --truncate: expected left, right, got 'midddle'",
        ),
        (("embed", "-p", "a", "--dtype", "float3"), 2, "got 'float3'; did you mean 'float32'?"),
        (("completion", "tcsh"), 2, "expected bash, zsh, fish, got 'tcsh'"),
        (
            ("generate", "-m", "{gpt2}", "--device", "numpy", "-p", "a", "-p", "the", "-n", "64"),
            1,
            "text 1: a prompt of 1 tokens and -n 64 exceed the model's context of 64",
        ),
        (("classify", "-m", "{gpt2}", "--device", "numpy", "-p", "a"), 1, "this checkpoint has no classification head"),
        (("classify", "-f", "/no/such/file"), 1, "fastattn: /no/such/file: No such file or directory"),
        (("embed", "-m", "{gpt2}", "-f", "/dev/null"), 1, "/dev/null"),
    ],
)
def test_exit_codes(
    gpt2: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    usage = arguments[0] if arguments[0] in COMMANDS else ""  # the command that the error is about
    found = [argument.replace("{gpt2}", str(gpt2)) for argument in arguments]
    assert assert_refused(capsys, found, code=code, words=words, usage=usage) == ""


def test_exit_codes_of_the_process() -> None:
    assert run("nothing").returncode == 2
    done = run("generate", "-m", "/no/such/folder", "-p", "a")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"r\xc3\xa9sum\n\nb\xff")
    done = run("classify", "-f", tmp_path / "bad.txt")
    assert done.returncode == 1
    assert done.stderr == f"fastattn: {tmp_path / 'bad.txt'} line 3: expected UTF-8, got invalid start byte\n"


def test_a_locale_without_the_letters(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("classify", "-m", bert, "--device", "numpy", "-p", "r\u00e9sum\tau\nlait")
    done = run(*options)
    assert done.stdout.endswith("\tr\u00e9sum au lait\n")
    assert json.loads(run(*options, "--json").stdout)["text"] == options[-1]
    assert "\u00e9" in run(*options, "--json").stdout
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", "ascii")
    done = run(*options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\tr\\xe9sum au lait\n")
    assert json.loads(run(*options, "--json").stdout)["text"] == options[-1]


def test_texts_longer_than_the_context(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("good\n\n" + "good " * 100, encoding="utf-8")
    options = ("-m", bert, "--device", "numpy", "-f", tmp_path / "long.txt")
    refused = run("classify", *options)
    assert (refused.returncode, len(refused.stdout.splitlines())) == (1, 2)  # the results before it
    where = f"{tmp_path / 'long.txt'} line 3"
    assert refused.stderr == f"fastattn: {where}: 102 tokens, the model's context is 64; --truncation cuts the text\n"
    assert len(run("classify", *options, "--truncation").stdout.splitlines()) == 3
    cut = run("embed", *options)
    assert (cut.returncode, len(cut.stdout.splitlines())) == (0, 3)
    assert cut.stderr.endswith(f"\ncut to 64 tokens, the model's limit: {where}\n")  # after the line about pooling


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_prompts_longer_than_the_context(gpt2: Path, side: Literal["left", "right"], stream: str) -> None:
    prompt = "the hello " * 40
    options = ("generate", "-m", gpt2, "--device", "numpy", "--temp", 0, stream, "-p", prompt, "--truncate", side)
    done = run(*options, "-n", 5)
    assert done.returncode == 0, done.stderr
    generator = fastattn.pipeline("text-generation", gpt2, device="numpy")
    expected = generator(prompt, do_sample=False, max_new_tokens=5, truncate=side)
    assert done.stdout == expected[0]["generated_text"] + "\n"
    refused = run(*options, "-n", 64)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "exceed the model's context of 64" in refused.stderr


def test_an_error_in_the_middle_of_a_text_has_its_own_line(
    gpt2: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(self: TextStream) -> str:
        raise NonFiniteError("logits[0]: nan")

    monkeypatch.setattr(TextStream, "__next__", failing)
    assert main(["generate", "-m", str(gpt2), "--device", "numpy", "-n", "4", "-p", "the"]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("the\n", "fastattn: logits[0]: nan\n")


def test_an_empty_line_between_prompts(gpt2: Path) -> None:
    options = ("generate", "-m", gpt2, "--device", "numpy", "-n", 1, "--temp", 0, "-p", "the", "-p", "in")
    streamed = run(*options)
    assert "\n\nin" in streamed.stdout
    assert run(*options, "--no-stream").stdout == streamed.stdout


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
        process.wait(timeout=HANG_SECONDS)
    assert errors == ""
    assert process.returncode == 0


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
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 130
    assert errors == b"\n"
