"""Pipelines tokenize the next items in another thread while the items before them are computed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

import fastattn
from fastattn.errors import ContextLengthError
from fastattn.tasks.pipeline_steps import DEFAULT_BATCH_SIZE, WINDOW_STEPS
from tests.tasks.tiny import write_bert_model

pytestmark = pytest.mark.torch
WINDOW = WINDOW_STEPS * DEFAULT_BATCH_SIZE


@pytest.fixture(autouse=True)
def one_thread_of_the_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without threads of its own, the library releases the GIL. All of our threads end with the call."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_bert_model(tmp_path_factory.mktemp("bert"), head=True)
    return fastattn.pipeline("text-classification", folder, threads=1)


def texts(n_texts: int, reads: list[int] | None = None) -> Iterator[str]:
    for i in range(n_texts):
        if reads is not None:
            reads.append(i)
        yield f"good film {'a dog ' * (i % 7)}"


def test_the_texts_are_tokenized_in_a_thread(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()
    encode = type(pipe.tokenizer).encode_pairs

    def record(self: Any, *args: Any, **options: Any) -> Any:
        names.add(threading.current_thread().name)
        return encode(self, *args, **options)

    expected = pipe(list(texts(300)))
    monkeypatch.setattr(type(pipe.tokenizer), "encode_pairs", record)
    assert list(pipe(texts(300))) == expected
    assert names == {threading.main_thread().name, "fastattn-tokenize"}
    names.clear()
    assert list(pipe(texts(3), batch_size=1)) == expected[:3]
    assert names == {threading.main_thread().name}  # a text may depend on the result before it


def test_two_windows_are_in_memory(pipe: Any) -> None:
    reads: list[int] = []
    results = pipe(texts(10**9, reads))
    for i in range(4 * WINDOW):
        next(results)
        assert len(reads) <= i + 3 * WINDOW  # of two windows, the first one is partly delivered
    results.close()
    before = len(reads)
    assert list(results) == []
    assert len(reads) == before


@pytest.mark.parametrize("bad", [0, 31, 32, 500])
def test_an_error_about_a_text_follows_the_results_before_it(pipe: Any, bad: int) -> None:
    found: list[Any] = []
    given = [text if i != bad else "a dog " * 100 for i, text in enumerate(texts(700))]
    with pytest.raises(ContextLengthError) as raised:
        found.extend(pipe(iter(given)))
    assert (raised.value.index, raised.value.item) == (bad, f"inputs[{bad}]")
    assert found == pipe(given[:bad])
    with pytest.raises(ContextLengthError):
        pipe(given)


def test_an_error_of_the_iterator_follows_the_results_before_it(pipe: Any) -> None:
    def broken() -> Iterator[str]:
        yield from texts(450)
        raise OSError("the disk is gone")

    found: list[Any] = []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(pipe(broken()))
    assert len(found) == 450


def test_an_interrupt_during_a_step(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends before the exception reaches the caller."""
    before = set(threading.enumerate())
    forward = type(pipe.model).__call__
    n_steps = 0

    def interrupt(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **options)

    monkeypatch.setattr(type(pipe.model), "__call__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(pipe(texts(5 * WINDOW)))
    assert set(threading.enumerate()) <= before
