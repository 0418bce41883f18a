"""Compares calls of the tokenizer with transformers': random texts in many scripts, random arguments."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastattn.api.auto_tokenizer import AutoTokenizer
from fastattn.errors import FastattnError, InputError
from fastattn.tokenizer import BatchEncoding, Tokenizer
from tests.tasks.tokenizers import write_bert, write_gpt2, write_metaspace, write_roberta

pytestmark = pytest.mark.torch
WORDS = (
    "the", "hello", "good", "films", "don't", "unknown", "A", "Straße", "naïve", "привет", "мир", "你好", "世界",
    "日本語", "مرحبا", "שלום", "नमस्ते", "สวัสดี", "한국어", "😁", "👨\u200d👩\u200d👧", "é", "ﬁ", "[MASK]", "<mask>",
    "[SEP]", "<|endoftext|>", "</s>", "\u200b", "\x00", "…", ".", ",", "!", "1234", "",
)  # fmt: skip
GLUE = (" ", "", "  ", "\n", "\t", "\u00a0", "\u3000")
KINDS: dict[str, Callable[[Path], Path]] = {
    "BertTokenizer": write_bert,
    "GPT2Tokenizer": write_gpt2,
    "RobertaTokenizer": write_roberta,
    "PreTrainedTokenizerFast": write_metaspace,
}
CALLS = settings(max_examples=40)


def texts() -> st.SearchStrategy[str]:
    piece = st.tuples(st.sampled_from(WORDS), st.sampled_from(GLUE)).map("".join)
    return st.one_of(st.lists(piece, max_size=12).map("".join), st.text(max_size=8).filter(_encodable))


def _encodable(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[Any, Any, bool]:
    """Draw (text, text_pair, is_split_into_words) in one of the forms that transformers reads."""
    one, many = texts(), st.lists(texts(), min_size=1, max_size=3)
    words = st.lists(st.sampled_from(WORDS), max_size=5)
    form = draw(st.sampled_from(["one", "pair", "many", "pairs", "zipped", "words", "word pair", "many words"]))
    if form in ("one", "pair"):
        return draw(one), draw(one) if form == "pair" else None, False
    if form == "many":
        return draw(st.one_of(many, many.map(tuple))), None, False
    if form == "pairs":
        return (
            draw(st.lists(st.one_of(st.tuples(one, one), st.lists(one, min_size=2, max_size=2)), min_size=1)),
            None,
            False,
        )
    if form == "zipped":
        firsts = draw(many)
        return firsts, draw(st.lists(one, min_size=len(firsts), max_size=len(firsts))), False
    if form == "words":
        return draw(words), None, True
    if form == "word pair":
        return draw(words), draw(words), True
    return draw(st.lists(words, min_size=1, max_size=3)), None, True


def arguments() -> st.SearchStrategy[dict[str, Any]]:
    flag = st.booleans()
    return st.fixed_dictionaries(
        {},
        optional={
            "truncation": st.sampled_from([None, True, False, "longest_first", "only_first", "only_second"]),
            "padding": st.sampled_from([True, False, "longest", "max_length", "do_not_pad"]),
            "max_length": st.one_of(st.none(), st.integers(4, 24)),
            "stride": st.integers(0, 3),
            "add_special_tokens": flag,
            "pad_to_multiple_of": st.sampled_from([None, 1, 4, 8]),
            "padding_side": st.sampled_from([None, "left", "right"]),
            "return_tensors": st.sampled_from([None, "np"]),
            "return_token_type_ids": st.sampled_from([None, True, False]),
            "return_attention_mask": st.sampled_from([None, True, False]),
            "return_overflowing_tokens": flag,
            "return_special_tokens_mask": flag,
            "return_offsets_mapping": flag,
            "return_length": flag,
            "split_special_tokens": flag,
            "verbose": flag,
        },
    )


Both = tuple[Any, Tokenizer]


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """Return transformers' tokenizer and ours for one folder, with a pad token."""
    transformers = pytest.importorskip("transformers")
    folder = KINDS[request.param](tmp_path_factory.mktemp(request.param))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ in (request.param, "TokenizersBackend")
    if theirs.pad_token is None:
        theirs.pad_token, ours.pad_token = theirs.eos_token, ours.eos_token
    return theirs, ours


def call(tokenizer: Any, *texts: Any, **options: Any) -> Any:
    """Return the result of a call, or its error: one of fastattn's or any of transformers'."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an ignored max_length
            return tokenizer(*texts, **options)
    except FastattnError as error:
        return error
    except BaseException as error:
        if isinstance(tokenizer, Tokenizer) or isinstance(error, KeyboardInterrupt):
            raise
        return error


def check_same(found: Any, expected: Any, options: dict[str, Any]) -> None:
    """Assert the same columns, or an error from both.

    In two cases we raise an error where the result of transformers is wrong or ragged.
    """
    if isinstance(expected, BaseException):
        assert isinstance(found, InputError) or options.get("stride"), (found, expected)
        return
    if isinstance(found, InputError) and "room for the" in str(found):
        return  # transformers cuts nothing if the special tokens alone exceed max_length
    if isinstance(found, InputError) and "an array needs padding=True" in str(found):
        rows = expected["input_ids"]
        assert rows.dtype == object or len({len(row) for row in rows}) > 1
        return
    assert isinstance(found, BatchEncoding), (found, expected)
    assert list(found) == list(expected)
    for name, column in expected.items():
        if isinstance(column, np.ndarray):
            assert (found[name].dtype, found[name].tolist()) == (column.dtype, column.tolist()), name
        else:
            assert found[name] == column, name


@CALLS
@given(data=st.data())
def test_calls(both: Both, data: st.DataObject) -> None:
    theirs, ours = both
    text, pair, words = data.draw(inputs())
    options = data.draw(arguments()) | ({"is_split_into_words": True} if words else {})
    if (options.get("max_length") or 20) < 12:
        options.pop("stride", None)  # with less room most calls are rejected
    expected = call(theirs, text, pair, **options)
    found = call(ours, text, pair, **options)
    check_same(found, expected, options)
    if (
        isinstance(found, BatchEncoding)
        and not isinstance(expected, BaseException)
        and not options.get("return_tensors")
    ):
        check_maps(found, expected)
        json.dumps(found)


def check_maps(found: BatchEncoding, expected: Any) -> None:
    """Check the methods that map between tokens, words and characters."""
    assert found.n_sequences == expected.n_sequences
    for row in range(len(expected.encodings)):
        for name in ("tokens", "word_ids", "sequence_ids"):
            assert getattr(found, name)(row) == getattr(expected, name)(row), name
        for i in range(len(expected.tokens(row))):
            for name in ("token_to_sequence", "token_to_word", "token_to_chars"):
                assert getattr(found, name)(row, i) == getattr(expected, name)(row, i), (name, i)
        for sequence in range(expected.n_sequences):
            for i in range(6):
                for name in ("char_to_token", "char_to_word", "word_to_tokens"):
                    theirs = getattr(expected, name)(row, i, sequence)
                    assert getattr(found, name)(row, i, sequence) == theirs, (name, i, sequence)


@CALLS
@given(
    text=texts(),
    pair=st.one_of(st.none(), texts()),
    strategy=st.sampled_from([True, "only_first", "only_second"]),
    length=st.integers(2, 16),
    stride=st.integers(0, 2),
    special=st.booleans(),
    padding=st.sampled_from([False, True, "max_length"]),
)
def test_truncation_and_overflow(
    both: Both, text: str, pair: str | None, strategy: Any, length: int, stride: int, special: bool, padding: Any
) -> None:
    theirs, ours = both
    stride = stride if length >= 10 else 0  # with less room most calls are rejected
    options = {
        "truncation": strategy, "max_length": length, "stride": stride, "add_special_tokens": special,
        "padding": padding, "return_overflowing_tokens": True, "return_token_type_ids": True,
        "return_offsets_mapping": True, "return_special_tokens_mask": True,
    }  # fmt: skip
    expected = call(theirs, text, pair, **options)
    found = call(ours, text, pair, **options)
    check_same(found, expected, options)
    if isinstance(found, BatchEncoding) and not isinstance(expected, BaseException):
        check_maps(found, expected)


@CALLS
@given(text=texts(), pair=st.one_of(st.none(), texts()), data=st.data())
def test_encode_tokenize_and_decode(both: Both, text: str, pair: str | None, data: st.DataObject) -> None:
    theirs, ours = both
    assert ours.encode(text, pair) == theirs.encode(text, pair)
    assert ours.tokenize(text) == theirs.tokenize(text)
    ids = data.draw(st.one_of(st.just(theirs.encode(text)), st.lists(st.integers(0, len(theirs) + 3), max_size=12)))
    for skip in (False, True):
        for clean in (None, False, True):
            expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
            assert ours.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean) == expected
        assert ours.convert_ids_to_tokens(ids, skip) == theirs.convert_ids_to_tokens(ids, skip)
    assert ours.batch_decode([ids, ids[:1]]) == theirs.batch_decode([ids, ids[:1]])
    tokens = theirs.tokenize(text)
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)
    unknown = [*tokens, "no such token"]
    assert ours.convert_tokens_to_ids(unknown) == theirs.convert_tokens_to_ids(unknown)


@CALLS
@given(rows=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=9), min_size=1, max_size=3), data=st.data())
def test_pad(both: Both, rows: list[list[int]], data: st.DataObject) -> None:
    theirs, ours = both
    names = ("padding", "max_length", "pad_to_multiple_of", "padding_side", "return_attention_mask", "return_tensors")
    options = {name: value for name, value in data.draw(arguments()).items() if name in names}
    columns: dict[str, Any] = {"input_ids": rows, "token_type_ids": [[1] * len(row) for row in rows]}
    if options.get("return_attention_mask") is not False and data.draw(st.booleans()):
        columns["attention_mask"] = [[1] * len(row) for row in rows]
    encoded = data.draw(
        st.sampled_from(
            [columns, [{name: column[i] for name, column in columns.items()} for i in range(len(rows))],
             {name: column[0] for name, column in columns.items()}]
        )
    )  # fmt: skip
    expected = call(theirs.pad, json.loads(json.dumps(encoded)), **options)
    check_same(call(ours.pad, encoded, **options), expected, options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_side(both: Both, side: str) -> None:
    theirs, ours = both
    before = theirs.truncation_side
    theirs.truncation_side = ours.truncation_side = side
    try:
        for pair in (None, "a good film and bad dogs"):
            options = {"truncation": True, "max_length": 12, "return_overflowing_tokens": True, "stride": 1}
            text = "the hello and the good film"
            assert dict(ours(text, pair, **options)) == dict(theirs(text, pair, **options))
    finally:
        theirs.truncation_side = ours.truncation_side = before


def test_targets(both: Both) -> None:
    theirs, ours = both
    for options in ({}, {"padding": True}, {"truncation": True, "max_length": 6, "max_target_length": 4}):
        for text, target in (("the hello", "good films"), (["a", "the hello"], ["good films", "x"]), (None, "a b")):
            expected = theirs(text, text_target=target, **options)
            assert dict(ours(text, text_target=target, **options)) == dict(expected)


def test_vocabulary_and_special_tokens(both: Both) -> None:
    theirs, ours = both
    for name in (
        "vocab_size", "all_special_tokens", "all_special_ids", "special_tokens_map", "extra_special_tokens",
        "extra_special_tokens_ids", "added_tokens_encoder", "model_max_length", "model_input_names", "padding_side",
        "truncation_side", "is_fast", "name_or_path", "pad_token_type_id", "clean_up_tokenization_spaces",
        "split_special_tokens", "max_len_single_sentence", "max_len_sentences_pair", "vocab",
    ):  # fmt: skip
        expected = getattr(theirs, name)
        assert getattr(ours, name) == (str(expected) if isinstance(expected, Path) else expected), name
    assert (len(ours), ours.get_vocab(), ours.get_added_vocab()) == (
        len(theirs), theirs.get_vocab(), theirs.get_added_vocab()
    )  # fmt: skip
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        for name in (f"{role}_token", f"{role}_token_id"):
            assert getattr(ours, name) == getattr(theirs, name), name
    for pair in (False, True):
        assert ours.num_special_tokens_to_add(pair) == theirs.num_special_tokens_to_add(pair)
    ids = theirs.encode("the hello")
    mask = theirs.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == mask
    assert repr(ours.added_tokens_decoder) == repr(theirs.added_tokens_decoder)
