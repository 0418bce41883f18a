"""Compares tokenizers that were changed, saved and passed on with transformers' after the same changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastattn.api.auto_tokenizer import AutoTokenizer
from fastattn.errors import DTypeError
from fastattn.tokenizer import Tokenizer
from tests.tasks.tokenizers import write_bert, write_gpt2, write_metaspace, write_roberta

pytestmark = pytest.mark.torch
TEXTS = [
    "the hello good film",
    "[MASK] <mask> a<new>b  <new> good",
    "xyz XYZ axyzb",
    "Ünï 你好 😁 [PAD]",
    "",
    "<|endoftext|>x</s>",
]
WRITERS = [write_bert, write_gpt2, write_roberta, write_metaspace]
Both = tuple[Any, Tokenizer]


@pytest.fixture(params=WRITERS, ids=lambda write: write.__name__)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return request.param(tmp_path / "folder")


@pytest.fixture
def both(folder: Path) -> Both:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def check_same(theirs: Any, ours: Tokenizer) -> None:
    assert (len(ours), ours.vocab_size, ours.get_vocab()) == (len(theirs), theirs.vocab_size, theirs.get_vocab())
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.extra_special_tokens == theirs.extra_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    for name in ("padding_side", "truncation_side", "model_max_length", "model_input_names"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for text in TEXTS:
        for options in ({}, {"split_special_tokens": True}, {"max_length": 6, "truncation": True}):
            assert dict(ours(text, **options)) == dict(theirs(text, **options)), (text, options)
            assert dict(ours(text, "good", **options)) == dict(theirs(text, "good", **options)), (text, options)
        ids = theirs.encode(text)
        for skip in (False, True):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip), text
    if theirs.pad_token is not None:
        assert dict(ours(TEXTS, padding=True)) == dict(theirs(TEXTS, padding=True))


def _token(content: str, **flags: bool) -> Any:
    from tokenizers import AddedToken

    return AddedToken(content, **flags)


CHANGES: dict[str, Callable[[Any], object]] = {
    "pad token": lambda t: t.add_special_tokens({"pad_token": "[PAD]"}),
    "extra": lambda t: t.add_special_tokens(
        {"extra_special_tokens": ["<new>", _token("xyz", lstrip=True, special=True)]}
    ),
    "older name": lambda t: t.add_special_tokens({"additional_special_tokens": ["<new>"]}),
    "two lists": lambda t: (
        t.add_special_tokens({"extra_special_tokens": ["<new>"]}),
        t.add_special_tokens({"extra_special_tokens": ["xyz"]}),
    ),
    "two lists, both kept": lambda t: (
        t.add_special_tokens({"extra_special_tokens": ["<new>"]}),
        t.add_special_tokens({"extra_special_tokens": ["xyz", "<new>"]}, replace_extra_special_tokens=False),
    ),
    "several": lambda t: t.add_special_tokens({"pad_token": "<p>", "sep_token": "<new>", "bos_token": "good"}),
    "tokens": lambda t: t.add_tokens(["xyz", "<new>", "good"]),
    "one token": lambda t: t.add_tokens("xyz"),
    "special ones": lambda t: t.add_tokens(["xyz", "<new>"], special_tokens=True),
    "with flags": lambda t: t.add_tokens(
        [_token("xyz", single_word=True), _token("<new>", rstrip=True, normalized=False)]
    ),
    "again": lambda t: (t.add_tokens(["xyz"]), t.add_special_tokens({"mask_token": "xyz"})),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_added_tokens(both: Both, change: Callable[[Any], object]) -> None:
    theirs, ours = both
    assert change(ours) == change(theirs)
    check_same(theirs, ours)


def test_attributes(both: Both) -> None:
    theirs, ours = both
    for tokenizer in both:
        tokenizer.pad_token = "film" if "film" in theirs.get_vocab() else "the"[:1]
        tokenizer.mask_token_id = 4
        tokenizer.padding_side = tokenizer.truncation_side = "left"
        tokenizer.model_max_length = 5
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.eos_token = None
    check_same(theirs, ours)
    for name in ("pad_token_id", "mask_token", "mask_token_id", "eos_token", "eos_token_id", "unk_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert dict(ours(TEXTS, truncation=True, padding="max_length")) == dict(
        theirs(TEXTS, truncation=True, padding="max_length")
    )


def test_bos_and_eos_of_texts(both: Both) -> None:
    theirs, ours = both
    for tokenizer in both:
        tokenizer.bos_token = tokenizer.eos_token = "good" if "good" in theirs.get_vocab() else "d"
        tokenizer.add_bos_token = True
    check_same(theirs, ours)
    for tokenizer in both:
        tokenizer.add_eos_token = True
    check_same(theirs, ours)
    assert (ours.add_bos_token, ours.add_eos_token) == (theirs.add_bos_token, theirs.add_eos_token) == (True, True)


KEYWORDS: list[dict[str, Any]] = [
    {"pad_token": "[PAD]"},
    {"pad_token": "<fresh>", "padding_side": "left"},
    {"model_max_length": 5, "truncation_side": "left"},
    {"extra_special_tokens": ["<new>", "good"]},
    {"extra_special_tokens": {"image_token": "<new>"}},
    {"additional_special_tokens": ["<new>"]},
    {"image_token": "<new>"},
    {"mask_token": _token("xyz", lstrip=True, special=True)},
    {"split_special_tokens": True},
    {"model_input_names": ["input_ids"]},
    {"clean_up_tokenization_spaces": True},
    {"add_bos_token": True, "bos_token": "<new>"},
]


@pytest.mark.parametrize("keywords", KEYWORDS, ids=lambda keywords: ", ".join(keywords))
def test_keywords_of_from_pretrained(folder: Path, keywords: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder, **copy.deepcopy(keywords))
    check_same(theirs, AutoTokenizer.from_pretrained(folder, **keywords))


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("name", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_keywords_of_bert(tmp_path: Path, name: str, value: bool) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_bert(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, **{name: value})
    options: Any = {name: value}
    check_same(theirs, AutoTokenizer.from_pretrained(folder, **options))


@pytest.mark.parametrize("write", [write_gpt2, write_roberta])
def test_add_prefix_space(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    ours = AutoTokenizer.from_pretrained(folder, add_prefix_space=True)
    check_same(theirs, ours)
    assert ours.tokenize("the")[0].startswith("Ġ")


def test_objects_of_transformers(both: Both) -> None:
    theirs, ours = both
    for tokenizer in both:
        tokenizer.add_special_tokens({"pad_token": "[PAD]", "extra_special_tokens": ["<new>"]})
        tokenizer.model_max_length, tokenizer.padding_side = 9, "left"
    theirs("a b", truncation=True, max_length=3, padding="max_length")  # leaves its settings in the library's object
    found = Tokenizer.from_object(theirs)
    check_same(theirs, found)
    assert found.options.special_tokens == ours.options.special_tokens
    assert found.get_added_vocab() == ours.get_added_vocab()
    theirs.add_tokens(["xyz"])
    assert len(found) == len(ours) == len(theirs) - 1


def test_slow_tokenizers_of_transformers_are_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    with pytest.raises(DTypeError, match=r"which is written in Python; save a tokenizer\.json with transformers"):
        Tokenizer.from_object(transformers.CanineTokenizer())


def test_saved_folders_load_in_transformers(both: Both, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    _, ours = both
    ours.add_special_tokens({"pad_token": "[PAD]", "extra_special_tokens": ["<new>"]})
    ours.add_tokens(["xyz"])
    ours.model_max_length, ours.padding_side, ours.truncation_side = 9, "left", "left"
    ours.save_pretrained(tmp_path / "saved")
    check_same(transformers.AutoTokenizer.from_pretrained(tmp_path / "saved"), ours)
    check_same(ours, AutoTokenizer.from_pretrained(tmp_path / "saved"))


@pytest.mark.parametrize(
    "name", ["CLIPTokenizer", "T5Tokenizer", "LlamaTokenizer", "DebertaV2Tokenizer", "XLNetTokenizer"]
)
def test_copies_of_other_classes(name: str, tmp_path: Path) -> None:
    """Pickled, saved, or created from transformers' object, a tokenizer encodes and decodes as before."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    from tests.tasks.tokenizer_folders import KINDS, Maker, make_texts

    maker = Maker(tmp_path)
    folder = maker.files(next(kind for kind in KINDS if kind.name == name))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ours.save_pretrained(tmp_path / "saved")
    copies = [
        ours,
        pickle.loads(pickle.dumps(ours)),
        Tokenizer.from_object(theirs),
        AutoTokenizer.from_pretrained(tmp_path / "saved"),
    ]
    for text in make_texts(25):
        ids = theirs.encode(text)
        for options in ({}, {"max_length": 7, "truncation": True, "return_overflowing_tokens": True}):
            expected = dict(theirs(text, "two words", return_offsets_mapping=True, **options))
            for tokenizer in copies:
                assert dict(tokenizer(text, "two words", return_offsets_mapping=True, **options)) == expected, text
        for skip in (False, True):
            assert {tokenizer.decode(ids, skip) for tokenizer in copies} == {theirs.decode(ids, skip)}, text
