"""JSON files that are too large, too deep or written in another way: rejected before they are parsed, or read."""

from __future__ import annotations

import json
import logging
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn import jsonfile
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.checkpoint import open_checkpoint, read_header
from fastattn.checkpoint.checkpoint import read_config, read_generation_config
from fastattn.checkpoint.index import INDEX_LIMITS, INDEX_NAME, MAX_SHARDS
from fastattn.checkpoint.safetensors import HEADER_LIMITS
from fastattn.errors import ConfigError, ModelFormatError
from fastattn.jsonfile import (
    CONFIG_LIMITS,
    TOKENIZER_LIMITS,
    JsonError,
    JsonLimits,
    parse_lenient,
    parse_strict,
    read_json,
)
from tests.reference.checkpoints import GPT2, write_gpt2
from tests.reference.steps import count_calls

SMALL = JsonLimits(n_bytes=1 << 20, n_values=100, depth=4)
# Text that is all structure: the parsed form takes many times its size.
DENSE = {"lists": b"[],", "objects": b"{},", "numbers": b"1,", "strings": b'"",', "pairs": b'"":1,', "opened": b"[" * 3}


def dense(kind: str, size: int) -> bytes:
    piece = DENSE[kind]
    start, end = (b'{"a":{', b'"":1}}') if kind == "pairs" else (b'{"a":[', b"1]}")
    return start + piece * (size // len(piece)) + end


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("limits", [HEADER_LIMITS, INDEX_LIMITS, CONFIG_LIMITS, TOKENIZER_LIMITS], ids="hict")
def test_the_largest_dense_text_is_refused_before_it_is_parsed(
    kind: str, limits: JsonLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a sixteenth of the real limits."""
    limits = JsonLimits(limits.n_bytes // 16, limits.n_values // 16, limits.depth)
    data = dense(kind, limits.n_bytes - 100)

    def no_parser(*_: Any, **__: Any) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr(jsonfile.json, "loads", no_parser)
    errors = []

    def parse() -> None:
        with pytest.raises(JsonError) as caught:
            parse_lenient(data, "x", limits)
        errors.append(caught.value)

    tracemalloc.start()
    try:
        parse()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * len(data)
    assert count_calls(parse) < 200
    assert {error.code for error in errors} == {"depth" if kind == "opened" else "too_large"}


@pytest.mark.parametrize(("n", "accepted"), [(98, True), (99, False)])
def test_values_are_counted(n: int, accepted: bool) -> None:
    """The object, the list in it and n commas are counted."""
    text = json.dumps({"a": [1] * (n + 1)}).encode()
    if accepted:
        assert parse_strict(text, SMALL) == json.loads(text)
    else:
        with pytest.raises(JsonError, match="at most 100 values, got at least 101") as caught:
            parse_strict(text, SMALL)
        assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "' + "[{,]}" * 500 + '"}',
        '{"a": "' + '\\",[' * 500 + '"}',
        '{"a": "\\\\", "b": "' + "[," * 200 + '"}',
        '{"a": "\\\\\\"' + "[," * 200 + '"}',
        '{"' + ",[\\\\" * 500 + '": 1}',
    ],
)
def test_structure_in_strings_does_not_count(text: str) -> None:
    assert parse_strict(text.encode(), SMALL) == json.loads(text)


@pytest.mark.parametrize(
    "text", ['{"a": "\\\\", "b": ' + "[1," * 5, '{"a": "\\\\\\\\\\"", "b": ' + "[" * 4 + "]" * 4 + "}"]
)
def test_structure_after_escapes_counts(text: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_strict(text.encode(), SMALL)
    assert caught.value.code == "depth"


@pytest.mark.parametrize(
    "text", ["]" * 1000, "[]]" + "[" * 3, "{}}}}", '["a"]]', '"' * 999, "," * 90, "\\", '{"a":"\\']
)
def test_text_that_is_not_json(text: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_lenient(text.encode(), "x", SMALL)
    assert caught.value.code == "json"


def test_random_json_is_read_as_python_reads_it(rng: np.random.Generator) -> None:
    """Random structure gives the value, or one kind of error."""
    words = ['"a"', '"\\""', '"[\\\\"', "1", "null", "[", "]", "{", "}", ",", ":", " ", "\\", '"', "2.5", "NaN"]
    n_read = 0
    for _ in range(3000):
        text = "".join(words[i] for i in rng.integers(0, len(words), rng.integers(1, 8)))
        try:
            expected = json.loads(text)
        except ValueError:
            with pytest.raises(JsonError):
                parse_lenient(text.encode(), "x")
        else:
            n_read += 1
            assert repr(parse_lenient(text.encode(), "x")) == repr(expected)
    assert n_read > 30


def test_signals_and_memory_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An exception from a signal handler during parsing says nothing about the file."""
    directory = write_gpt2(tmp_path)
    for error in (ValueError("alarm"), TimeoutError("alarm"), KeyboardInterrupt(), MemoryError(), RecursionError()):

        def fails(*_: Any, error: BaseException = error, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(jsonfile.json, "loads", fails)
            for load in (open_checkpoint, lambda path: read_header(path / "model.safetensors")):
                with pytest.raises(type(error)) as caught:
                    load(directory)
                assert caught.value is error


def test_an_integer_of_many_digits(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_layer": ' + "9" * 5000 + "}")
    with pytest.raises(ConfigError, match="too many digits"):
        read_config(tmp_path)


@pytest.mark.parametrize("read", [read_config, read_generation_config])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_config_in_utf_16(tmp_path: Path, read: Any, encoding: str) -> None:
    text = json.dumps(GPT2).encode(encoding)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes(b"\xfe\xff" + text if encoding == "utf-16-be" else text)
    with pytest.raises(ConfigError, match=r"config\.json: expected UTF-8, got UTF-16; save the file as UTF-8"):
        read(tmp_path)


def test_config_with_byte_order_mark_and_constants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Features that change no result are read as Python reads them."""
    directory = write_gpt2(tmp_path / "m")
    with AutoModelForCausalLM.from_pretrained(directory, device="numpy") as model:
        expected = np.asarray(model([1, 2, 3]).logits)
    text = json.dumps(GPT2)[:-1] + ', "unused": [NaN, -Infinity], "n_layer": 2}'
    (directory / "config.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert math.isnan(read_config(directory)["unused"][0])  # type: ignore[index, arg-type]
    with AutoModelForCausalLM.from_pretrained(directory, device="numpy") as model:
        assert np.array_equal(np.asarray(model([1, 2, 3]).logits), expected)
    assert "duplicate" not in caplog.text  # n_layer occurs twice, with the same value


def test_config_with_duplicate_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last one is used, as in transformers, and the warning names it."""
    (tmp_path / "config.json").write_text('{"n_layer": 1, "a\\nb": NaN, "n_layer": 2, "a\\nb": NaN, "c": 1, "c": true}')
    with caplog.at_level(logging.WARNING, "fastattn"):
        assert read_config(tmp_path)["n_layer"] == 2
    assert "duplicate keys; the last one is used: 'n_layer', 'c'" in caplog.text
    assert len(caplog.records) == 1


def test_read_json(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "no.json")
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    assert read_json(path) == [1, 2]
    for text in (b"{", b"\xff", b"{} {}", b"\xff\xfe{\0}\0", b"[" * 101 + b"]" * 101):
        path.write_bytes(text)
        with pytest.raises(ModelFormatError) as caught:
            read_json(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert caught.value.path == str(path)
    with path.open("wb") as file:
        file.truncate(TOKENIZER_LIMITS.n_bytes + 1)
    with pytest.raises(ModelFormatError, match=str(TOKENIZER_LIMITS.n_bytes)) as caught:
        read_json(path)
    assert caught.value.code == "file_too_large"


def test_an_index_of_too_many_shards(tmp_path: Path) -> None:
    directory = write_gpt2(tmp_path)
    (directory / "model.safetensors").unlink()
    weight_map = {f"t{i}": f"model-{i}.safetensors" for i in range(MAX_SHARDS + 1)}
    (directory / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelFormatError, match=f"at most {MAX_SHARDS} shards") as caught:
        open_checkpoint(directory)
    assert caught.value.code == "index_too_large"


def test_an_index_that_says_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The warning names an unknown key."""
    directory = write_gpt2(tmp_path)
    (directory / "model.safetensors").rename(directory / "model-1.safetensors")
    names = read_header(directory / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-1.safetensors"), "strange": 1}
    (directory / INDEX_NAME).write_bytes(b"\xef\xbb\xbf" + json.dumps(index).encode())
    with open_checkpoint(directory) as checkpoint:
        assert checkpoint.tensors.keys() == names.keys()
    assert "unknown settings are ignored: 'strange'" in caplog.text
