"""Files made to break the reader of tokenizers: each gives a tokenizer or a typed error that names the file."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastattn.errors import ConfigError, FastattnError, ModelFormatError
from fastattn.tokenizer import Tokenizer, load_tokenizer
from tests.tasks.tokenizer_folders import write_json
from tests.tasks.tokenizers import write_bert, write_gpt2, write_roberta


def with_json(folder: Path) -> dict[str, Any]:
    """Write tokenizer.json next to the files of a folder, and return its content."""
    load_tokenizer(folder).raw.save(str(folder / "tokenizer.json"))
    content: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    return content


def refuse(folder: Path, content: object, pattern: str, name: str = "tokenizer.json") -> None:
    write_json(folder / name, content)
    with pytest.raises(ModelFormatError, match=pattern) as caught:
        load_tokenizer(folder)
    message = str(caught.value)
    assert name in message
    assert len(message) < 600 + len(str(folder))
    assert message.isprintable()
    assert caught.value.path == str(folder / name)


def test_token_that_overflows_the_stack_of_the_library(tmp_path: Path) -> None:
    content = {
        "version": "1.0",
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a" * 200_000, -1.0]]},
        "added_tokens": [],
    }
    refuse(tmp_path, content, "expected tokens of at most 1000 characters, got one of 200000")


def test_long_tokens_everywhere(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    content = with_json(folder)
    long = "a" * 40_000
    for key in ("added_tokens", "vocab"):
        changed = copy.deepcopy(content)
        if key == "vocab":
            changed["model"]["vocab"][long] = 71
        else:
            changed["added_tokens"].append({**changed["added_tokens"][0], "id": 71, "content": long})
        refuse(folder, changed, "expected tokens of at most 1000 characters, got one of 40000")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text() + long + "\n")
    with pytest.raises(ModelFormatError, match=r"vocab\.txt: expected tokens of at most 1000 characters"):
        load_tokenizer(folder)


@pytest.mark.parametrize("i", [2**31, 2**32, 2**40, 10**400, -1, True, 1.0, "1", None, [1]])
def test_ids_out_of_range(i: object, tmp_path: Path) -> None:
    gpt2 = write_gpt2(tmp_path / "gpt2")
    vocab = json.loads((gpt2 / "vocab.json").read_text())
    refuse(gpt2, {**vocab, "zz": i}, "'zz': expected an id from 0 to 2147483647, got", "vocab.json")
    bert = write_bert(tmp_path / "bert")
    content = with_json(bert)
    changed = copy.deepcopy(content)
    changed["model"]["vocab"]["zz"] = i
    refuse(bert, changed, "'zz': expected an id from 0 to 2147483647, got")
    content["added_tokens"][0]["id"] = i
    refuse(bert, content, "added_tokens: expected objects with id and content")


def test_lone_surrogates(tmp_path: Path) -> None:
    gpt2 = write_gpt2(tmp_path / "gpt2")
    vocab = json.loads((gpt2 / "vocab.json").read_text())
    refuse(gpt2, {**vocab, "a\ud800": 300}, "expected tokens of valid Unicode, got a lone surrogate", "vocab.json")
    bert = write_bert(tmp_path / "bert")
    content = with_json(bert)
    content["model"]["vocab"]["a\udfff"] = 80
    refuse(bert, content, "expected tokens of valid Unicode, got a lone surrogate")


def test_panics_of_the_library(tmp_path: Path) -> None:
    """These cause a PanicException, some of them only when a text is encoded."""
    bert = write_bert(tmp_path / "bert")
    (bert / "tokenizer_config.json").unlink()
    content = with_json_of_generic(bert)
    for charsmap in ("AAAA", "", "AAAAAAAA"):
        bad = {"type": "Precompiled", "precompiled_charsmap": charsmap}
        refuse(bert, {**content, "normalizer": bad}, "the tokenizers library refuses the file")
    processor = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[NOPE]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    refuse(bert, {**content, "post_processor": processor}, "the tokenizers library refuses the file")
    gpt2 = write_gpt2(tmp_path / "gpt2")
    (gpt2 / "tokenizer_config.json").unlink()
    content = with_json_of_generic(gpt2)
    content["model"]["continuing_subword_prefix"] = "##########"
    refuse(gpt2, content, "the tokenizers library refuses the file")


def with_json_of_generic(folder: Path) -> dict[str, Any]:
    """Write a tokenizer.json that is used unchanged."""
    content = with_json(folder)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return content


@pytest.mark.parametrize("text", ["", "{", "[]", "nul", "[" * 100_000, "[[]]" * 100_000, '{"a": NaN', "\0"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"])
def test_no_json_objects(text: str, name: str, tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path)
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(ModelFormatError, match=re.escape(name)):
        load_tokenizer(folder)


def test_json_of_many_values(tmp_path: Path) -> None:
    """It is rejected before it is parsed, which would take gigabytes."""
    (tmp_path / "tokenizer.json").write_text("[" + "[]," * 5_000_000 + "[]]")
    with pytest.raises(ModelFormatError, match=r"tokenizer\.json: expected at most 4000000 values"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "config.json", "special_tokens_map.json"])
def test_files_replaced_while_they_are_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bert(tmp_path)
    from fastattn.tokenizer import health

    def replace(*_: object) -> None:
        content = (folder / name).read_bytes() if (folder / name).exists() else b"{}"
        (folder / "new").write_bytes(content)
        (folder / "new").replace(folder / name)

    monkeypatch.setattr(health, "check_health", replace)
    with pytest.raises(ModelFormatError, match=rf"{name}: expected the file as it was when it was opened") as caught:
        load_tokenizer(folder)
    assert caught.value.code == "changed"


def test_messages_are_bounded(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    long = "x\n" * 100_000
    for values in (
        {"tokenizer_class": long},
        {"padding_side": long},
        {"pad_token": {"content": 5, long: long}},
        {"model_max_length": [long] * 20},
        {"added_tokens_decoder": {long: {"content": "a"}}},
        {"added_tokens_decoder": {"1": {"content": "a", long: True}}},
        {"extra_special_tokens": {long: 5}},
    ):
        write_json(folder / "tokenizer_config.json", values)
        with pytest.raises(ConfigError) as caught:
            load_tokenizer(folder)
        assert len(str(caught.value)) < 600 + len(str(folder))
        assert str(caught.value).isprintable()


def test_warnings_are_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_bert(tmp_path)
    extra = [f"<{i}>" + "y" * 900 for i in range(300)]
    unknown = {f"{i}" + "\n" * 5000: i for i in range(300)}
    write_json(folder / "tokenizer_config.json", {"extra_special_tokens": extra, "eos_token": "z" * 900, **unknown})
    write_json(folder / "added_tokens.json", {token: 9_000 + i for i, token in enumerate(extra)})
    write_json(folder / "config.json", {"model_type": "bert"})
    load_tokenizer(folder)
    assert len(caplog.records) == 3
    for record in caplog.records:
        assert len(record.getMessage()) < 2500
        assert record.getMessage().isprintable()


def outcome(folder: Path) -> Tokenizer | FastattnError:
    """Return the tokenizer, or the typed error."""
    try:
        return load_tokenizer(folder)
    except FastattnError as error:
        return error


ODD: list[Any] = [
    None, True, 0, -1, 2**31, 2**40, 1e308, "", "x", "\ud800", "a" * 2000, [], [1], ["a"], {}, {"a": 1}, "[CLS]", "##",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield paths to the values inside a JSON value; for large containers only the first values."""
    if path:
        yield path
    items = (
        list(value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(value, (dict, list)) else []
    )
    for key, inner in items[:12]:
        yield from places(inner, (*path, key))


def mutant(content: Any, rng: random.Random) -> Any:
    changed = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 2])):
        path = rng.choice(list(places(changed)))
        holder = changed
        for key in path[:-1]:
            holder = holder[key]
        if rng.random() < 0.2:
            del holder[path[-1]]
        else:
            holder[path[-1]] = copy.deepcopy(rng.choice(ODD))
    return changed


@pytest.mark.parametrize("write", [write_bert, write_gpt2, write_roberta])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("generic", [False, True])
def test_mutants(write: Any, name: str, generic: bool, tmp_path: Path) -> None:
    folder = write(tmp_path)
    with_json(folder)
    config = {
        **json.loads((folder / "tokenizer_config.json").read_text()),
        "added_tokens_decoder": {"0": {"content": "zz", "lstrip": True, "special": True}},
        "pad_token": {"__type": "AddedToken", "content": "<p>", "lstrip": False},
        "extra_special_tokens": ["<x>", "<y>"],
        "model_input_names": ["input_ids"],
    }
    if generic:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / "tokenizer_config.json", config)
    content = json.loads((folder / name).read_text())
    rng = random.Random(f"{name}{generic}")
    n_loaded = 0
    for _ in range(80):
        write_json(folder / name, mutant(content, rng))
        found = outcome(folder)
        if isinstance(found, FastattnError):
            assert str(folder) in str(found)
            assert len(str(found)) < 700 + len(str(folder))
        else:
            n_loaded += 1
            with contextlib.suppress(Exception):  # such as a missing unknown token; a panic is not an Exception
                found.raw.encode("a text [CLS] <p>", "hello 12")
    assert 0 < n_loaded < 80
