"""Compares the tokenizers with published ids (from the data folder next to the project)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastattn.tokenizer import Tokenizer, load_tokenizer


def _ggml_cases(folder: Path, name: str) -> list[tuple[str, list[int]]]:
    texts = (folder / f"{name}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    ids = [[int(i) for i in line.split()] for line in (folder / f"{name}.out").read_text().split("\n")]
    return list(zip(texts, ids, strict=False))


@pytest.fixture(scope="module")
def gpt2(data_folder: Path) -> Tokenizer:
    return load_tokenizer(data_folder / "gpt2-tokenizer")


@pytest.fixture(scope="module")
def bert(data_folder: Path) -> Tokenizer:
    return load_tokenizer(data_folder / "bert-tokenizer")


def test_gpt2_published_text(gpt2: Tokenizer, data_folder: Path) -> None:
    case = json.loads((data_folder / "gpt2-tokenizer" / "swift_encoded_tokens.json").read_text())
    assert gpt2.tokenize(case["text"]) == case["bpe_tokens"]
    assert gpt2.encode(case["text"]) == case["token_ids"]
    assert gpt2.decode(case["token_ids"]) == case["text"]


def test_gpt2_ggml_cases(gpt2: Tokenizer, data_folder: Path) -> None:
    cases = _ggml_cases(data_folder / "gpt2-tokenizer", "ggml-vocab-gpt-2.gguf")
    assert len(cases) > 40
    for text, ids in cases:
        assert gpt2.encode(text) == ids, text
        assert gpt2.decode(ids) == text


def test_bert_questions(bert: Tokenizer, data_folder: Path) -> None:
    folder = data_folder / "bert-tokenizer"
    questions = json.loads((folder / "question_tokens.json").read_text())
    published = json.loads((folder / "tokenized_questions.json").read_text())
    assert len(questions) == 10570
    for question, ids in zip(questions, published, strict=True):
        assert bert.encode(question["original"], add_special_tokens=False) == ids
        assert bert.tokenize(question["original"]) == question["wordpiece"]


def test_bert_ggml_cases(bert: Tokenizer, data_folder: Path) -> None:
    cases = _ggml_cases(data_folder / "bert-tokenizer", "ggml-vocab-bert-bge.gguf")
    assert len(cases) > 40
    for text, ids in cases:
        assert bert.encode(text, add_special_tokens=False) == ids, text
