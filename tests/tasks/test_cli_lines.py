"""One result per line of input: `embed`, `classify` and `generate` with `-f` and `-p -`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.cli import main
from fastattn.cli.texts import read_texts
from fastattn.errors import InputError
from fastattn.tasks.demo import demo_model
from tests.reference.command import run
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.tiny import write_sentence_model

TEXT = "first\n\n  \nlast without an end"
LINES = ["first", "", "  ", "last without an end"]


def texts(tmp_path: Path, data: bytes, *, skip_blank: bool = False) -> list[str]:
    file = tmp_path / "lines.txt"
    file.write_bytes(data)
    return [text.text for text in read_texts(None, str(file), whole_stdin=False, skip_blank=skip_blank)]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\n\n", ["a", ""]),
        (b"\n", [""]),
        (b"a\r\nb\r\n\r\n", ["a", "b", ""]),
        (b"a\rb\n", ["a\rb"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
        (b"\xef\xbb\xbf\na\n", ["", "a"]),
        ("a\u2028b\x0b\x0c\x85c\n".encode(), ["a\u2028b\x0b\x0c\x85c"]),
        (b"x" * 3_000_000 + b"\ny", ["x" * 3_000_000, "y"]),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_lines(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    assert texts(tmp_path, data) == expected
    left = [text for text in expected if text.strip()]
    if left:
        assert texts(tmp_path, data, skip_blank=True) == left


def test_places(tmp_path: Path) -> None:
    """Messages name the line of the file, even if blank lines are omitted."""
    file = tmp_path / "lines.txt"
    file.write_text(TEXT)
    found = read_texts(None, str(file), whole_stdin=False, skip_blank=True)
    assert [text.where for text in found] == [f"{file} line 1", f"{file} line 4"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "lines.txt: expected one text per line, found none"),
        (b"\xef\xbb\xbf", "lines.txt: expected one text per line, found none"),
        (b"a\nb\xff\n", "lines.txt line 2: expected UTF-8, got invalid start byte"),
        ("a\n".encode("utf-16"), "lines.txt line 1: expected UTF-8, got invalid start byte"),
        (b"a\nb\x00c\n", "lines.txt line 2: expected UTF-8, got a NUL byte, as in UTF-16; convert it to UTF-8$"),
        ("a\nb\n".encode("utf-16-le"), "lines.txt line 1: expected UTF-8, got a NUL byte, as in UTF-16"),
        ("a\nb\n".encode("utf-16-be"), "lines.txt line 1: expected UTF-8, got a NUL byte, as in UTF-16"),
        (b"a\nb\xed\xa0\x80\n", "lines.txt line 2: expected UTF-8"),
        (b"a\nb\xe2\x82", "lines.txt line 2: expected UTF-8, got unexpected end of data"),
        (b"a\n" + b"x" * (16 * 2**20 + 1), "lines.txt line 2: expected at most 16777216 characters, got 16777217"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_lines_that_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        texts(tmp_path, data)


def test_a_line_without_end_is_refused() -> None:
    """It is rejected before it fills the memory."""
    with pytest.raises(InputError, match="/dev/zero line 1: expected at most 67108864 bytes, got more"):
        read_texts(None, "/dev/zero", whole_stdin=False)


@pytest.mark.parametrize("source", ["file", "-f", "-p"])
@pytest.mark.parametrize("name", ["embed", "classify", "generate"])
def test_results_match_lines(tmp_path: Path, name: str, source: str) -> None:
    if name == "generate" and source == "-p":
        pytest.skip("-p - is one whole prompt")
    (tmp_path / "lines.txt").write_text(TEXT)
    arguments = ("-f", tmp_path / "lines.txt") if source == "file" else (source, "-")
    options = ("-n", 2, "--seed", 1) if name == "generate" else ()
    done = run(name, *arguments, *options, "--json", "--threads", 1, stdin=TEXT)
    assert done.returncode == 0, done.stderr
    field = "prompt" if name == "generate" else "text"
    assert [json.loads(line)[field] for line in done.stdout.splitlines()] == LINES
    done = run(name, *arguments, *options, "--json", "--threads", 1, "--skip-blank", stdin=TEXT)
    assert [json.loads(line)[field] for line in done.stdout.splitlines()] == [LINES[0], LINES[3]]


@pytest.mark.parametrize("name", ["embed", "classify"])
def test_plain_output_has_one_line_per_text(name: str) -> None:
    done = run(name, "-f", "-", "--threads", 1, stdin=TEXT)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, len(LINES))


@pytest.mark.torch
def test_rows_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    """The row of the empty text is equal too."""
    import torch
    from sentence_transformers import SentenceTransformer

    lines = ["good film", "", "a cat"]
    folder = write_sentence_model(tmp_path / "m")
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    options = ("-m", folder, "-f", tmp_path / "lines.txt", "-o", tmp_path / "v.npy", "--device", "numpy")
    done = run("embed", *options)
    assert (done.returncode, done.stderr) == (0, f"{tmp_path / 'v.npy'}: float32 [3, 32]\n")
    exact, rough = (
        SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype}).encode(lines)
        for dtype in (torch.float64, torch.float32)
    )
    assert_as_good_as(np.load(tmp_path / "v.npy"), exact, rough)


def test_rows_recorded() -> None:
    """The first numbers of the demo model's vectors, without another library; row 1 is the empty text."""
    st = fastattn.SentenceTransformer(demo_model("text-classification"))
    found = run("embed", "-f", "-", "--json", "--threads", 1, stdin="a fine film\n\n").stdout.splitlines()
    rows = np.array([json.loads(line)["embedding"] for line in found], np.float32)
    np.testing.assert_array_equal(rows, st.encode(["a fine film", ""]))
    assert np.isfinite(rows).all()
    assert rows[1].any()


def test_a_bar_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the number of texts that are in memory together."""
    from fastattn.cli import commands, progress

    (tmp_path / "lines.txt").write_text("".join(f"film {i}\n" for i in range(7)))
    files = []
    for part in (256, 3):
        monkeypatch.setattr(commands, "_PART_TEXTS", part)
        monkeypatch.setattr(progress, "on_terminal", lambda part=part: part == 3)
        files.append(tmp_path / f"{part}.npy")
        arguments = ["-f", str(tmp_path / "lines.txt"), "-o", str(files[-1]), "--batch-size", "2"]
        assert main(["embed", *arguments]) == 0
    assert np.load(files[0]).shape[0] == 7
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("part", [256, 3])
def test_embed_says_which_texts_were_cut_and_tokenizes_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: int
) -> None:
    from fastattn.cli import commands
    from fastattn.tokenizer.encoder import Encoder

    tokenized: list[object] = []
    encode_all = Encoder.encode_all

    def counted(self: Encoder, pairs: Iterable[tuple[str, str | None]], *rest: Any, **options: Any) -> Iterator[Any]:
        texts = list(pairs)
        tokenized.extend(first for first, _ in texts)
        return encode_all(self, texts, *rest, **options)

    folder = write_sentence_model(tmp_path / "m")
    longest = fastattn.SentenceTransformer(folder, threads=1).max_seq_length
    lines = ["a", "good " * int(longest - 2), "a cat", "good " * int(longest - 1), "film " * 200]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    monkeypatch.setattr(commands, "_PART_TEXTS", part)
    monkeypatch.setattr(Encoder, "encode_all", counted)
    arguments = ["-m", str(folder), "-f", str(tmp_path / "lines.txt"), "-o", str(tmp_path / "out.npy")]
    assert main(["embed", *arguments, "--batch-size", "2"]) == 0
    assert tokenized == lines
    expected = f"cut to {longest} tokens, the model's limit: {tmp_path / 'lines.txt'} line 4 and 1 more\n"
    assert capsys.readouterr().err.endswith(expected)


@pytest.mark.parametrize("name", ["embed", "classify"])
def test_progress_is_shown_on_a_terminal_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tqdm.auto

    from fastattn.cli import commands, progress

    counted: list[int] = []

    class Bar:
        def __init__(self, total: int, **options: object) -> None:
            counted.append(total)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self, count: int) -> None:
            counted.append(count)

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    assert main([name, "-p", "a", "-p", "b"]) == 0
    assert counted == []
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setattr(commands, "_PART_TEXTS", 2)
    options = ("--batch-size", "2") if name == "embed" else ()
    assert main([name, "-p", "a", "-p", "b", "-p", "c", *options]) == 0
    assert counted == ([3, 2, 1] if name == "embed" else [3, 1, 1, 1])


def test_random_seeds_are_exact_in_json() -> None:
    """A reader in double precision, such as JavaScript, gets the seed that repeats the text."""
    arguments = ("generate", "--json", "-n", 4, "--threads", 1)
    done = run(*arguments, "-p", "The sea", "-p", "A letter")
    answers = [json.loads(line, parse_int=lambda text: int(float(text))) for line in done.stdout.splitlines()]
    assert len({answer["seed"] for answer in answers}) == 2
    for answer in answers:
        assert isinstance(answer["seed"], int)
        assert answer["seed"] < 2**53
        again = run(*arguments, "-p", answer["prompt"], "--seed", answer["seed"])
        assert json.loads(again.stdout)["text"] == answer["text"]


def test_large_seeds_are_strings_in_json() -> None:
    """A double cannot store such a seed exactly. The texts for a seed equal the library's."""
    done = run("generate", "--json", "-n", 4, "--seed", 7, "-p", "The sea", "-p", "A letter", "--threads", 1)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[0]["seed"] == 7
    assert answers[1]["seed"] == str(fastattn.generation.request_seed(7, 1))
