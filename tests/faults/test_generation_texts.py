"""Faults 42 to 44: texts that must not reach a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer import MAX_TEXT_CHARS, Tokenizer, check_texts, load_tokenizer
from tests.reference.hang import growth
from tests.tasks.tokenizers import write_bert, write_gpt2


@pytest.fixture(scope="module", params=["gpt2", "bert"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    write = write_gpt2 if request.param == "gpt2" else write_bert
    return load_tokenizer(write(tmp_path_factory.mktemp(request.param)))


@pytest.mark.parametrize("bad", [None, b"bytes", 3, 1.5, {"text": "a"}, bytearray(b"a")])
def test_fault_44_not_a_text(tokenizer: Tokenizer, bad: Any) -> None:
    with pytest.raises(DTypeError, match="expected str"):
        tokenizer.encode(bad)
    with pytest.raises(DTypeError, match="expected str"):
        tokenizer(bad)
    with pytest.raises(DTypeError, match=r"text\[1\]"):
        tokenizer(["good", bad])
    with pytest.raises(DTypeError, match=r"texts\[1\]"):
        check_texts(["good", bad], "texts")


def test_fault_44_list_for_a_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["good"]) == [tokenizer.encode("good")]
    with pytest.raises(DTypeError, match="expected str, got list"):
        tokenizer.tokenize(["good"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pair"):
        tokenizer([["a", "b", "c"]])


def test_fault_44_lone_surrogate(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"U\+D800 at 3"):
        tokenizer.encode("bad\ud800")
    with pytest.raises(InputError, match=r"text\[1\].*surrogate"):
        tokenizer(["good", "\udfff"])


def test_fault_44_nul_and_long_word(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("a\0b")) >= 1
    assert growth(lambda n: tokenizer.encode("^" * n), 2**15) < 80  # linear: 16, quadratic: 256


def test_fault_44_too_long(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=f"at most {MAX_TEXT_CHARS}"):
        tokenizer.encode("a" * (64 * 2**20))


def test_fault_43_empty_batch(tokenizer: Tokenizer) -> None:
    assert tokenizer([]).input_ids == []
    assert tokenizer.encode_batch([]) == []


def test_fault_42_empty_text(tmp_path: Path) -> None:
    assert len(load_tokenizer(write_gpt2(tmp_path / "g")).encode("")) == 0
    bert = load_tokenizer(write_bert(tmp_path / "b"))
    assert bert.convert_ids_to_tokens(bert.encode("")) == ["[CLS]", "[SEP]"]
