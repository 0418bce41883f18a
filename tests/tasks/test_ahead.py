"""Texts are tokenized in another thread while the texts before them are computed."""

from __future__ import annotations

import _thread
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.cli import main
from fastattn.errors import InputError
from fastattn.tasks import ahead
from fastattn.tasks.ahead import Cancel, prepare_ahead
from tests.reference.hang import HANG_SECONDS
from tests.tasks.sentence_folders import NORMALIZE, POOLING, TEXTS, write_model


@pytest.fixture(autouse=True)
def one_thread_of_the_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without threads of its own, the library releases the GIL. All of our threads end with the call."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    before = set(threading.enumerate())  # threads of earlier tests may end at any time
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fastattn.SentenceTransformer]:
    folder = write_model(tmp_path_factory.mktemp("ahead") / "m", POOLING, NORMALIZE)
    with fastattn.SentenceTransformer(folder, threads=1) as found:
        yield found


def test_the_next_part_is_prepared_while_the_caller_computes() -> None:
    """The caller waits for the thread, which would hang if the part were prepared later."""
    prepared = [threading.Event() for _ in range(4)]
    threads: list[str] = []

    def prepare(part: int, _: Cancel) -> int:
        threads.append(threading.current_thread().name)
        prepared[part].set()
        return part

    for part in prepare_ahead(iter(range(4)), prepare):
        assert prepared[min(part + 1, 3)].wait(HANG_SECONDS)
        assert sum(event.is_set() for event in prepared) <= part + 2  # bounded memory
    assert threads == [threading.main_thread().name, *["fastattn-tokenize"] * 3]


def test_parts_are_read_by_the_caller() -> None:
    readers = set()

    def parts() -> Iterator[int]:
        for i in range(3):
            readers.add(threading.current_thread())
            yield i

    assert list(prepare_ahead(parts(), lambda part, _: part)) == [0, 1, 2]
    assert readers == {threading.current_thread()}


@pytest.mark.parametrize("variable", [None, "true", "false"])
def test_without_a_thread(monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    """With ahead=False, or if the library uses its own threads, a part is read after the one before it was handled."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    if variable is not None:
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", variable)
    taken: list[int] = []

    def parts() -> Iterator[int]:
        for i in range(3):
            taken.append(i)
            yield i

    for i in prepare_ahead(parts(), lambda part, _: part, ahead=variable != "false"):
        assert taken == list(range(i + 1))


@pytest.mark.parametrize("bad", range(4))
def test_errors_follow_the_results_before_them(bad: int) -> None:
    def parts() -> Iterator[int]:
        for i in range(4):
            if i == bad:
                raise OSError(f"no part {i}")
            yield i

    def prepare(part: int, _: Cancel) -> int:
        if part == bad:
            raise InputError(f"texts[{part}]: refused")
        return part

    for source, wanted in ((parts(), OSError), (iter(range(4)), InputError)):
        found: list[int] = []
        with pytest.raises(wanted, match=str(bad)):
            found.extend(prepare_ahead(source, prepare))
        assert found == list(range(bad))


def test_closing_ends_the_thread() -> None:
    started = threading.Event()

    def prepare(part: int, cancel: Cancel) -> int:
        if part:
            for _ in cancel.guard(iter(int, 1)):  # endless
                started.set()
        return part

    results = prepare_ahead(iter(range(3)), prepare)
    assert next(results) == 0
    assert started.wait(HANG_SECONDS)
    results.close()


def test_an_interrupt_while_the_caller_waits() -> None:
    def prepare(part: int, cancel: Cancel) -> int:
        if part:
            _thread.interrupt_main()
            for _ in cancel.guard(iter(int, 1)):
                time.sleep(0.001)
        return part

    with pytest.raises(KeyboardInterrupt):
        list(prepare_ahead(iter(range(3)), prepare))


def test_without_room_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert list(prepare_ahead(iter(range(3)), lambda part, _: part)) == [0, 1, 2]


def test_in_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has no thread; it prepares the part itself."""
    monkeypatch.setattr(ahead, "_CHECK_SECONDS", 0.01)
    forked = threading.Event()

    def prepare(part: int, _: Cancel) -> int:
        if part == 1:
            forked.wait(HANG_SECONDS)
        return part

    results = prepare_ahead(iter(range(3)), prepare)
    assert next(results) == 0
    child = os.fork()
    forked.set()
    if child == 0:
        os._exit(0 if list(results) == [1, 2] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert list(results) == [1, 2]


@pytest.mark.parametrize("batch_size", [1, 7, 600])
def test_same_bits(model: fastattn.SentenceTransformer, monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    texts = [f"{text} {i}" for i in range(90) for text in TEXTS[:7]]
    expected = np.stack([model.encode(text) for text in texts])
    assert model.encode(texts, batch_size=batch_size).tobytes() == expected.tobytes()
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    assert model.encode(texts, batch_size=batch_size).tobytes() == expected.tobytes()


def test_an_error_in_text_5000(model: fastattn.SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"a dog {i}" for i in range(6000)]
    encode = model._first.encode

    def refuse(pairs: Any, truncation: Any, task: Any, cut: Any = None, names: Any = None) -> Any:
        found = encode(pairs, truncation, task, cut, names)
        if names and "sentences[5000]" in names:
            raise InputError("sentences[5000]: the tokenizer refuses it")
        return found

    monkeypatch.setattr(model._first, "encode", refuse)
    with pytest.raises(InputError, match=r"^sentences\[5000\]: the tokenizer refuses it$"):
        model.encode(texts)


def test_the_command_names_the_line_of_a_text(
    model: fastattn.SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The error has the index of the text; the message itself may look like a name of another one."""
    (tmp_path / "lines.txt").write_text("a dog\n" * 700, encoding="utf-8")
    encode = type(model._first).encode

    def refuse(self: Any, pairs: Any, truncation: Any, task: Any, cut: Any = None, names: Any = None) -> Any:
        found = encode(self, pairs, truncation, task, cut, names)
        for name in names or ():
            if name.endswith("[650]"):
                raise InputError(f"{name}: inputs[3] is refused")
        return found

    monkeypatch.setattr(type(model._first), "encode", refuse)
    assert main(["embed", "-m", str(model._stamp.path), "-f", str(tmp_path / "lines.txt"), "--threads", "1"]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 650
    assert printed.err == f"fastattn: {tmp_path / 'lines.txt'} line 651: inputs[3] is refused\n"


def test_cut_texts_of_several_windows(model: fastattn.SentenceTransformer) -> None:
    limit = model.get_max_seq_length()
    texts = ["a " * 500 if i % 50 == 49 else "a dog" for i in range(1200)]
    assert model.encode_with_cuts(texts, batch_size=8)[1] == dict.fromkeys(range(49, 1200, 50), limit)


def test_ctrl_c_in_a_long_call(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", POOLING)
    code = (
        "import sys, threading, _thread, fastattn\n"
        "model = fastattn.SentenceTransformer(sys.argv[1], threads=1)\n"
        "timer = threading.Timer(0.3, _thread.interrupt_main)\n"
        "try:\n"
        "    timer.start()\n"
        "    while True: model.encode(['a dog ' * 20] * 20000)\n"
        "except KeyboardInterrupt:\n"
        "    timer.join()\n"
        "    print(threading.active_count())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
