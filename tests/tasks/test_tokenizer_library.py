"""Errors of the tokenizers library become typed errors; everything else passes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fastattn.errors import InputError, ModelFormatError
from fastattn.tokenizer import encoder, library, load_tokenizer
from fastattn.tokenizer.library import file_errors, library_errors
from tests.tasks.tokenizers import write_bert


def test_plain_exceptions_and_panics() -> None:
    from tokenizers import Tokenizer, models, normalizers

    from_str = Tokenizer.from_str
    message = r"^a/tokenizer\.json: expected a tokenizer; .*column 5"
    with pytest.raises(ModelFormatError, match=message) as caught, file_errors("a/tokenizer.json"):
        exec("call(text)", {"__name__": "fastattn.x", "call": from_str, "text": '{"a":1}'})
    assert (caught.value.path, caught.value.code) == ("a/tokenizer.json", "tokenizer")
    with pytest.raises(InputError, match="vocabulary is empty"), library_errors(InputError):
        exec("call([], 0)", {"__name__": "fastattn.x", "call": models.Unigram})
    with pytest.raises(InputError, match="charsmap"), library_errors(InputError):
        exec("call(b'abc')", {"__name__": "fastattn.x", "call": normalizers.Precompiled})


def test_a_panic_passes_no_handler() -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    with pytest.raises(InputError, match="entered unreachable code"), library_errors(InputError):
        raise panic("entered unreachable code")


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt, SystemExit, InputError, RuntimeError])
def test_other_errors_pass(kind: type[BaseException]) -> None:
    with pytest.raises(kind, match="mine"), library_errors(ModelFormatError):
        raise kind("mine")


@pytest.mark.parametrize("kind", [Exception, ValueError, TypeError, OverflowError])
def test_errors_of_a_signal_handler_pass(kind: type[Exception]) -> None:
    def handler(number: int, frame: object) -> None:
        raise kind("from the handler")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(kind, match="from the handler"), library_errors(ModelFormatError):
            exec("call(signal)", {"__name__": "fastattn.x", "call": signal.raise_signal, "signal": signal.SIGUSR1})
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_reasons_are_bounded_and_on_one_line() -> None:
    with pytest.raises(InputError) as caught, library_errors(InputError):
        exec("raise ValueError('a\\n' * 100000)", {"__name__": "fastattn.x"})
    assert len(str(caught.value)) <= library._MAX_REASON_CHARS
    assert "\n" not in str(caught.value)


def test_an_error_of_our_truncation_is_not_one_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("a mistake in our code")

    tokenizer = load_tokenizer(write_bert(tmp_path))
    monkeypatch.setattr(encoder, "truncate", fail)
    with pytest.raises(ValueError, match="a mistake in our code") as caught:
        tokenizer("good", max_length=2, truncation=True)
    assert not isinstance(caught.value, InputError)
