"""Compares every known tokenizer class with transformers: slow files and tokenizer.json, each setting at each value."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fastattn.tokenizer.model_types import CLASS_OF_MODEL_TYPE, WRONG_CLASS_IN_FILES
from tests.tasks.tokenizer_differences import differences, theirs_of
from tests.tasks.tokenizer_folders import KINDS, Kind, Maker, make_texts, write_json

pytestmark = pytest.mark.torch
transformers = pytest.importorskip("transformers")
pytest.importorskip("sentencepiece")
TEXTS = make_texts(40)
FEW_TEXTS = make_texts(14, seed=7)
# Settings that any tokenizer_config.json may contain.
COMMON: list[dict[str, object]] = [
    {"model_max_length": 77, "padding_side": "left", "truncation_side": "left", "clean_up_tokenization_spaces": True},
    {"model_max_length": 1e30, "split_special_tokens": True, "chat_template": "{{x}}"},
    {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"], "image_token": "<new>"},
    {"extra_special_tokens": ["[X]", "two words"]},
    {"extra_special_tokens": {"image_token": "<new>"}},
    {"additional_special_tokens": ["FooBar", "[X]"]},
    {"added_tokens_decoder": {"3": {"content": "two words"}, "5": {"content": "FooBar", "lstrip": True}}},
    {"pad_token": "<new>", "mask_token": {"__type": "AddedToken", "content": "<m>", "lstrip": True}},
]
OLD_FILES: list[dict[str, object]] = [
    {
        "special_tokens_map.json": {
            "pad_token": "<p>",
            "mask_token": {"content": "<M>", "lstrip": True, "normalized": True},
            "additional_special_tokens": ["FooBar"],
            "image_token": "<img>",
        }
    },
    {
        "special_tokens_map.json": {"extra_special_tokens": ["[X]"]},
        "added_tokens.json": {"<new>": 9000, "FooBar": 9001, "[X]": 9002, "two words": 9003},
    },
]


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("tokenizers"))


def saved(maker: Maker, source: Path) -> Path:
    """Return the folder as transformers saves it: with tokenizer.json."""
    folder = maker.folder()
    theirs_of(source).save_pretrained(folder)
    shutil.copy(source / "config.json", folder)
    return folder


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_texts_and_own_settings(kind: Kind, maker: Maker) -> None:
    files = maker.files(kind)
    with_json = saved(maker, files)
    assert (with_json / "tokenizer.json").is_file()
    for folder in (files, with_json):
        assert differences(folder, TEXTS) == []
    for name, values in kind.settings.items():
        for value in values:
            for folder in (files, with_json):
                changed = maker.changed(folder, **{name: value})
                assert differences(changed, FEW_TEXTS) == [], f"{name}={value}"


@pytest.mark.parametrize("kind", KINDS[::3], ids=str)
def test_common_settings(kind: Kind, maker: Maker) -> None:
    files = maker.files(kind)
    for folder in (files, saved(maker, files)):
        for values in COMMON:
            assert differences(maker.changed(folder, **values), FEW_TEXTS) == [], values
        for others in OLD_FILES:
            changed = maker.changed(folder)
            for name, content in others.items():
                write_json(changed / name, content)
            assert differences(changed, FEW_TEXTS) == [], others


CLASSES_OF_FILES = {
    "BertTokenizer": ["BertTokenizerFast", "DistilBertTokenizer", "PreTrainedTokenizerFast", "FooTokenizer", None],
    "GPT2Tokenizer": ["GPT2TokenizerFast", "GPTNeoXTokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast", None],
    "XLMRobertaTokenizer": ["XLMRobertaTokenizerFast", "CamembertTokenizer", "PreTrainedTokenizer", None],
    "LlamaTokenizer": ["LlamaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", None],
}


@pytest.mark.parametrize("name", CLASSES_OF_FILES)
def test_which_class(name: str, maker: Maker) -> None:
    """tokenizer_config.json, then config.json, then the model type, with transformers' exceptions."""
    kind = next(kind for kind in KINDS if kind.name == name)
    folder = saved(maker, maker.files(kind))
    texts = make_texts(8, seed=3)
    model_types = [kind.model_type, "modernbert", "nystromformer", "phi3", "mistral", "foo", None]
    for in_tokenizer_config in CLASSES_OF_FILES[name]:
        for model_type in model_types:
            changed = maker.folder()
            shutil.copytree(folder, changed, dirs_exist_ok=True)
            settings = json.loads((folder / "tokenizer_config.json").read_text())
            settings["tokenizer_class"] = in_tokenizer_config
            write_json(changed / "tokenizer_config.json", {k: v for k, v in settings.items() if v is not None})
            for in_config in (None, name):
                config = {"model_type": model_type, "tokenizer_class": in_config}
                write_json(changed / "config.json", {k: v for k, v in config.items() if v is not None})
                assert differences(changed, texts) == [], (in_tokenizer_config, config)


def test_names_of_model_types() -> None:
    """No name is split, and every model type whose folders name a wrong class has another class."""
    assert CLASS_OF_MODEL_TYPE["modernbert-decoder"] == "TokenizersBackend"
    assert "decoder" not in CLASS_OF_MODEL_TYPE
    assert [name for name in CLASS_OF_MODEL_TYPE if name.endswith("-")] == []
    assert WRONG_CLASS_IN_FILES - CLASS_OF_MODEL_TYPE.keys() == set()
