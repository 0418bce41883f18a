"""The bytes of tokens: joined, they are the text that the tokenizer decodes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from fastattn.errors import ConfigError, InputError
from fastattn.generation.token_bytes import TokenBytes, token_bytes_of
from fastattn.tokenizer import Tokenizer, load_tokenizer
from fastattn.tokenizer.options import TokenizerOptions
from tests.tasks.test_decoders import N_IDS, RAW, make_raw
from tests.tasks.tokenizers import write_bert, write_gpt2, write_metaspace

READABLE = [
    "none", "ByteLevel", "WordPiece", "WordPiece, no clean-up", "Metaspace", "Metaspace, never", "Replace",
    "Replace, regular expression", "Fuse", "ByteFallback", "Llama", "Gemma",
]  # fmt: skip
LATER_TOKENS_MATTER = ["BPEDecoder", "CTC", "CLIP", "strip both ends", "after everything", "words, then one text"]
TABLES: dict[str, TokenBytes] = {}


def tokenizer_of(name: str) -> Tokenizer:
    return Tokenizer(RAW[name], TokenizerOptions())


def table_of(name: str) -> TokenBytes:
    if name not in TABLES:
        TABLES[name] = token_bytes_of(tokenizer_of(name), N_IDS + 3, "regex")
    return TABLES[name]


def text_after(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    before = tokenizer.decode(prompt, skip_special_tokens=True) if prompt else ""
    return str(tokenizer.decode(prompt + new, skip_special_tokens=True))[len(before) :]


@pytest.mark.parametrize("name", READABLE)
@given(data=st.data())
def test_joined_bytes_are_the_text(name: str, data: st.DataObject) -> None:
    """After a text, any ids; at the beginning of a text, any first id whose bytes are the same there."""
    table, tokenizer = table_of(name), tokenizer_of(name)
    usable = [i for i in range(N_IDS) if table.inner[i] and i not in table.special]
    firsts = [i for i in usable if not table.first_differs[i]]
    new = data.draw(st.lists(st.sampled_from(usable), min_size=1, max_size=12))
    letter = RAW[name].token_to_id("b")
    cases = [([letter], new)]
    if firsts:
        cases.append(([], [data.draw(st.sampled_from(firsts)), *new]))
    for prompt, ids in cases:
        joined = b"".join(table.inner[i] for i in ids)
        try:
            text = joined.decode("utf-8")
        except UnicodeDecodeError:  # a mask never allows it
            continue
        assert text_after(tokenizer, prompt, ids) == text


@pytest.mark.parametrize("name", READABLE)
def test_ids_that_differ_at_the_beginning(name: str) -> None:
    table, tokenizer = table_of(name), tokenizer_of(name)
    for i in range(N_IDS):
        if i in table.special or not table.inner[i]:
            continue
        try:
            inner = table.inner[i].decode("utf-8")
            alone = text_after(tokenizer, [], [i])
        except (UnicodeDecodeError, InputError):
            continue
        assert bool(table.first_differs[i]) == (alone != inner), (i, RAW[name].id_to_token(i))


@pytest.mark.parametrize("name", LATER_TOKENS_MATTER)
def test_tokens_without_bytes_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="regex: expected a tokenizer whose tokens have the same text at every"):
        table_of(name)


def test_a_decoder_in_python_is_refused() -> None:
    class Upper:
        def decode_chain(self, tokens: list[str]) -> list[str]:
            return [token.upper() for token in tokens]

    decoder: Any = decoders.Decoder.custom(Upper())
    tokenizer = Tokenizer(make_raw(decoder), TokenizerOptions())
    with pytest.raises(ConfigError, match="the decoder one written in Python"):
        token_bytes_of(tokenizer, 10, "choices")


def test_special_and_missing_ids(tmp_path: Path) -> None:
    table = table_of("Gemma")
    names = {RAW["Gemma"].token_to_id(token): token.encode() for token in ("<s>", "</s>")}
    assert table.special == sorted(names)
    assert {i: table.inner[i] for i in names} == names
    assert table.inner[N_IDS:] == [b"", b"", b""]
    space = RAW["Gemma"].token_to_id(" ")
    assert token_bytes_of(tokenizer_of("Gemma"), N_IDS, "regex", ends=[space]).special == sorted({*names, space})


@pytest.mark.parametrize("write", [write_gpt2, write_metaspace, write_bert])
def test_tokenizers_of_each_kind(write: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path))
    assert tokenizer is not None
    table = token_bytes_of(tokenizer, len(tokenizer), "regex")
    for text in ("the good film", "hello", "é 你好", "a.b"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if set(ids) & set(table.special):  # of characters that the vocabulary lacks
            continue
        joined = b"".join(table.inner[i] for i in ids)
        prompt = tokenizer.encode("the", add_special_tokens=False)
        assert joined.decode() == text_after(tokenizer, prompt, ids)


def test_the_real_gpt2_vocabulary(data_folder: Path, tmp_path: Path) -> None:
    """The file of tiktoken has the bytes themselves."""
    source = data_folder / "gpt2-tokenizer"
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    lines = (source / "gpt2.tiktoken").read_bytes().splitlines()
    wanted = {int(rank): base64.b64decode(data) for data, rank in (line.split() for line in lines)}
    table = token_bytes_of(tokenizer, 50257, "regex")
    assert table.special == [50256]
    assert not table.first_differs.any()
    missing = [i for i in range(50256) if not table.inner[i]]
    assert [wanted[i] for i in missing] == [b"\xff"]  # no UTF-8 has it
    assert all(table.inner[i] == wanted[i] for i in range(50256) if i not in missing)
