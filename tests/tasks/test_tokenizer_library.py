"""Errors of the tokenizers library become typed errors; everything else passes through."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fastattn.errors import InputError, ModelFormatError
from fastattn.tokenizer import backend, encoder, library, load_tokenizer
from fastattn.tokenizer.library import call_library, file_errors, library_errors, refusals_of
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


def add_generic_json(folder: Path) -> Path:
    """Write a tokenizer.json that is used unchanged."""
    load_tokenizer(folder).raw.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def add_json(folder: Path) -> Path:
    """Write the tokenizer.json of a class with its own pipeline."""
    load_tokenizer(folder).raw.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("add", [lambda folder: folder, add_json, add_generic_json], ids=["txt", "json", "generic"])
@pytest.mark.parametrize("kind", [TypeError, ValueError, OverflowError])
def test_faults_of_our_own_code_are_not_faults_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, add: Callable[[Path], Path], kind: type[Exception]
) -> None:
    folder = add(write_bert(tmp_path))
    ours = {"__name__": "fastattn.tokenizer.backend", "kind": kind}
    exec("def fault(*_, **__): raise kind('ours')", ours)
    monkeypatch.setattr(backend, "_plain_post", ours["fault"])
    with pytest.raises(kind, match=r"^ours$"):
        load_tokenizer(folder)


@pytest.mark.parametrize("add", [lambda folder: folder, add_json], ids=["txt", "json"])
def test_what_the_library_refuses_of_a_class_names_the_file(tmp_path: Path, add: Callable[[Path], Path]) -> None:
    folder = add(write_bert(tmp_path))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "cls_token": "a b"}')
    with pytest.raises(ModelFormatError, match="the tokenizers library refuses the file") as caught:
        load_tokenizer(folder)
    names = {path.name for path in folder.iterdir()}
    assert caught.value.path == str(folder / ("tokenizer.json" if "tokenizer.json" in names else "vocab.txt"))
    assert type(caught.value.__cause__) is ValueError


def test_calls_and_panics_where_a_tokenizer_is_built() -> None:
    from tokenizers import models, normalizers

    assert isinstance(call_library(models.WordPiece, {"a": 0}, unk_token="a"), models.WordPiece)
    for function, value in ((models.Unigram, 3), (normalizers.Precompiled, b"abc")):
        with (
            pytest.raises(ModelFormatError, match=r"^a/spiece\.model: expected a tokenizer"),
            refusals_of("a/spiece.model"),
        ):
            call_library(function, value)
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    with pytest.raises(ModelFormatError, match="unreachable code"), refusals_of("a/spiece.model"):
        raise panic("unreachable code")
    with pytest.raises(KeyboardInterrupt), refusals_of("a/spiece.model"):
        raise KeyboardInterrupt


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
