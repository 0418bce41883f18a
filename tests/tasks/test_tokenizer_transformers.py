"""Compares the tokenizers with transformers' on the folders that transformers saves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastattn.tokenizer import Tokenizer, load_tokenizer
from tests.tasks.tokenizers import write_bert, write_gpt2, write_roberta

pytestmark = pytest.mark.torch
TEXTS = [
    "the hello",
    "A good film, the bad dogs!",
    "",
    "Ünïcode 😁  \n\n x",
    "[MASK] good <mask> <|endoftext|>",
    "don't",
]
KINDS: list[tuple[str, Callable[[Path], Path], str]] = [
    ("GPT2Tokenizer", write_gpt2, "gpt2"),
    ("RobertaTokenizer", write_roberta, "roberta"),
    ("BertTokenizer", write_bert, "bert"),
    ("DistilBertTokenizer", write_bert, "distilbert"),
]


@pytest.fixture(params=KINDS, ids=[kind[0] for kind in KINDS])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Tokenizer, Tokenizer]:
    """Return transformers' tokenizer, ours from the folder that it saves, and ours from the vocabulary files."""
    transformers = pytest.importorskip("transformers")
    name, write, model_type = request.param
    files = write(tmp_path / "files")
    (files / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    (files / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "model_max_length": 64}))
    theirs = getattr(transformers, name).from_pretrained(files)
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    return theirs, load_tokenizer(tmp_path / "saved"), load_tokenizer(files)


def test_ids_of_texts_and_pairs(both: tuple[Any, Tokenizer, Tokenizer]) -> None:
    theirs, *ours = both
    for tokenizer in ours:
        for text in TEXTS:
            assert tokenizer.encode(text) == theirs.encode(text), text
            assert tokenizer.encode(text, "the film") == theirs.encode(text, "the film"), text
            expected = theirs.encode(text, add_special_tokens=False)
            assert tokenizer.encode(text, add_special_tokens=False) == expected


@pytest.mark.parametrize("kind", KINDS, ids=[kind[0] for kind in KINDS])
@pytest.mark.parametrize("newer", [False, True])
def test_added_tokens_of_older_folders(
    kind: tuple[str, Callable[[Path], Path], str], newer: bool, tmp_path: Path
) -> None:
    """added_tokens.json is read if tokenizer_config.json does not mention added tokens."""
    transformers = pytest.importorskip("transformers")
    name, write, model_type = kind
    files = write(tmp_path)
    (files / "config.json").write_text(json.dumps({"model_type": model_type}))
    n_tokens = len(load_tokenizer(files))
    added = {"<new>": n_tokens, "FooBar": n_tokens + 1, "[X]": n_tokens + 2, "two words": n_tokens + 3}
    (files / "added_tokens.json").write_text(json.dumps(added))
    (files / "special_tokens_map.json").write_text(json.dumps({"extra_special_tokens": ["[X]"]}))
    if newer:
        config = json.loads((files / "tokenizer_config.json").read_text())
        config["added_tokens_decoder"] = {n_tokens: {"content": "<new>", "special": True}}
        (files / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = getattr(transformers, name).from_pretrained(files), load_tokenizer(files)
    assert len(theirs) == len(ours) == n_tokens + (1 if newer else len(added))
    for text in ["the <new> hello", "foobar FooBar  FooBars a[X]a [x] <NEW>", "hellotwo words", "Two Words <new>"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert n_tokens <= max(ids) or newer
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip), text


@pytest.mark.parametrize("kind", KINDS, ids=[kind[0] for kind in KINDS])
@pytest.mark.parametrize("where", ["tokenizer_config.json", "special_tokens_map.json"])
def test_tokens_of_older_folders_written_as_objects(
    kind: tuple[str, Callable[[Path], Path], str], where: str, tmp_path: Path
) -> None:
    """Tokens of tokenizer_config.json are matched in normalized text, those of the other file in the original text."""
    transformers = pytest.importorskip("transformers")
    name, write, model_type = kind
    files = write(tmp_path)
    (files / "config.json").write_text(json.dumps({"model_type": model_type}))
    n_tokens = len(load_tokenizer(files))
    (files / "added_tokens.json").write_text(json.dumps({"FooBar": n_tokens, "[X]": n_tokens + 1}))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "__type": "AddedToken"}
    tokens = {"mask_token": {"content": "FooBar", **flags}, "extra_special_tokens": [{"content": "[X]", **flags}]}
    if where == "special_tokens_map.json":
        tokens = {"mask_token": {"content": "FooBar"}, "extra_special_tokens": [{"content": "[X]"}]}
    known = json.loads((files / where).read_text()) if (files / where).exists() else {}
    (files / where).write_text(json.dumps({**known, **tokens}))
    theirs, ours = getattr(transformers, name).from_pretrained(files), load_tokenizer(files)
    for text in ["foobar FooBar  FooBars a[X]a [x] <NEW>", "the [x] FOOBAR"]:
        assert ours.encode(text) == theirs.encode(text), text
    expected = {i: repr(token) for i, token in theirs.backend_tokenizer.get_added_tokens_decoder().items()}
    assert {i: repr(token) for i, token in ours.added_tokens_decoder.items()} == expected


def test_fields(both: tuple[Any, Tokenizer, Tokenizer]) -> None:
    theirs, *ours = both
    for tokenizer in ours:
        expected = dict(theirs("good film", "bad"))
        found = tokenizer("good film", "bad")
        assert dict(found) == {name: list(value) for name, value in expected.items()}
        assert (len(tokenizer), tokenizer.vocab_size) == (len(theirs), theirs.vocab_size)
        for role in ("bos", "eos", "pad", "cls", "sep", "mask", "unk"):
            assert getattr(tokenizer, f"{role}_token_id") == getattr(theirs, f"{role}_token_id"), role


def test_truncation(both: tuple[Any, Tokenizer, Tokenizer]) -> None:
    theirs, *ours = both
    long = "the good film and the bad dogs " * 5
    for tokenizer in ours:
        for pair in (None, "a cat", long):
            for length in (5, 8, 13, 40):
                expected = theirs(long, pair, truncation=True, max_length=length)["input_ids"]
                assert tokenizer(long, pair, truncation=True, max_length=length).input_ids == expected


def test_decode(both: tuple[Any, Tokenizer, Tokenizer]) -> None:
    theirs, *ours = both
    for tokenizer in ours:
        for text in TEXTS:
            ids = theirs.encode(text)
            for skip in (False, True):
                assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
