"""Whatever a file contains, the message about it is short and on one line."""

from __future__ import annotations

import json
import logging
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.checkpoint import open_checkpoint
from fastattn.checkpoint.index import INDEX_NAME
from fastattn.errors import FastattnError
from tests.reference.checkpoints import GPT2, gpt2_tensors, safetensors, write_gpt2

MAX_CHARS = 1000
LONG = [
    "x" * 200_000,
    "\n" * 200_000,
    "\ud800" * 200_000,
    "\x1b[31m" * 40_000,
    "\N{GRINNING FACE}" * 200_000,
    10**4000,
    ["y" * 1000] * 200,
    {f"{i}\n" + "k" * 1000: i for i in range(200)},
    [[["z" * 200_000]]],
]


def mutants(value: Any, long: Any) -> Iterator[Any]:
    """Yield a JSON value with each value in it, and each key of objects, replaced by a long one."""
    yield long
    if isinstance(value, dict):
        for i, (key, item) in enumerate(value.items()):
            if i >= 12:  # tensors are alike
                break
            for mutant in mutants(item, long):
                yield {**value, key: mutant}
            if isinstance(long, str):
                renamed = {(long if name == key else name): held for name, held in value.items()}
                yield renamed
                yield {**value, long: item}
    elif isinstance(value, list):
        for i, item in enumerate(value):
            for mutant in mutants(item, long):
                yield [*value[:i], mutant, *value[i + 1 :]]


def check_messages(folder: Path, caplog: pytest.LogCaptureFixture) -> bool:
    """Open and load a folder. Return whether it was rejected; every message must be short."""
    caplog.clear()
    error: FastattnError | None = None
    try:
        AutoModelForCausalLM.from_pretrained(folder, device="numpy").close()
    except FastattnError as caught:
        error = caught
    for message in [record.getMessage() for record in caplog.records] + ([str(error)] if error else []):
        assert len(message) - len(str(folder)) <= MAX_CHARS, message[:2000]
        assert "\n" not in message
        assert message.isprintable(), message[:2000]
    return error is not None


def split(data: bytes) -> tuple[Any, bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, entries: Any, data: bytes) -> None:
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture(autouse=True)
def warnings_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "fastattn")


@pytest.mark.parametrize("long", LONG, ids=range(len(LONG)))
def test_headers(long: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_gpt2(tmp_path / "m")
    path = folder / "model.safetensors"
    entries, data = split(path.read_bytes())
    n_refused = 0
    for mutant in mutants({"__metadata__": {"format": "pt"}, **dict(list(entries.items())[:3])}, long):
        write_header(path, mutant if not isinstance(mutant, dict) else {**entries, **mutant}, data)
        n_refused += check_messages(folder, caplog)
    assert n_refused > 10


@pytest.mark.parametrize("long", LONG, ids=range(len(LONG)))
def test_indexes(long: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_gpt2(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(gpt2_tensors(), "a.safetensors")}
    n_refused = 0
    for mutant in mutants(index, long):
        (folder / INDEX_NAME).write_text(json.dumps(mutant))
        n_refused += check_messages(folder, caplog)
    assert n_refused > 10


def test_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A tensor with a long name that is in two shards, not listed, or missing."""
    folder = write_gpt2(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    tensors = gpt2_tensors()
    weight_map = dict.fromkeys(tensors, "a.safetensors")
    n_refused = 0
    for long in (text for text in LONG if isinstance(text, str) and text.isascii()):
        (folder / "b.safetensors").write_bytes(
            safetensors({long: tensors["wte.weight"], f"{long}2": tensors["wte.weight"]})
        )
        for more in (
            {"wpe.weight": "b.safetensors"},
            {long: "a.safetensors"},
            {long: "b.safetensors"},
            {f"{long}3": "b.safetensors"},
        ):
            (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {**weight_map, **more}}))
            n_refused += check_messages(folder, caplog)
    assert n_refused >= 6


@pytest.mark.parametrize("long", LONG, ids=range(len(LONG)))
def test_quantized_folders(long: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fastattn.quantize(write_gpt2(tmp_path / "floats"), tmp_path / "out", dtype="int8")
    path = folder / "model.safetensors"
    entries, data = split(path.read_bytes())
    said = json.loads(entries["__metadata__"]["fastattn"])
    n_refused = 0
    for mutant in mutants({key: dict(list(value.items())[:2]) for key, value in said.items()}, long):
        changed = mutant
        if isinstance(mutant, dict):
            both = {key: isinstance(mutant.get(key), dict) for key in said}
            changed = {**mutant, **{key: {**said[key], **mutant[key]} for key, known in both.items() if known}}
        write_header(path, {**entries, "__metadata__": {"fastattn": json.dumps(changed)}}, data)
        n_refused += quantized_messages(folder, caplog)
    write_header(path, entries, data)
    config = json.loads((folder / "config.json").read_text())
    for mutant in mutants(config["quantization_config"], long):
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": mutant}))
        n_refused += quantized_messages(folder, caplog)
    assert n_refused > 10


def quantized_messages(folder: Path, caplog: pytest.LogCaptureFixture) -> bool:
    caplog.clear()
    try:
        open_checkpoint(folder).close()
    except FastattnError as error:
        message = str(error)
    else:
        message = ""
    for text in (message, *(record.getMessage() for record in caplog.records)):
        assert len(text) - len(str(folder)) <= MAX_CHARS, text[:2000]
        assert text.isprintable(), text[:2000]
    return bool(message)


def test_digests(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path / "m")
    for long in (text for text in LONG if isinstance(text, str)):
        for verify in (
            long,
            {long: "0" * 64},
            {"model.safetensors": long},
            {"model.safetensors": [long]},
            [long],
            {1: long},
        ):
            with pytest.raises(FastattnError) as caught:
                open_checkpoint(folder, verify=verify)  # type: ignore[arg-type]
            assert len(str(caught.value)) - len(str(folder)) <= MAX_CHARS
            assert str(caught.value).isprintable()
        (folder / "SHA256SUMS").write_bytes(f"{'0' * 64}  {long}\n".encode("utf-8", "replace"))
        with pytest.raises(FastattnError) as caught:
            open_checkpoint(folder, verify="sha256")
        assert len(str(caught.value)) - len(str(folder)) <= MAX_CHARS


def test_names_of_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Names are as long as a file system allows, and have a line break."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GPT2))
    for i in range(300):
        (folder / f"{i}\n{'n' * 200}.bin").write_bytes(b"")
    assert check_messages(folder, caplog)
    shutil.rmtree(folder)
    write_gpt2(folder)
    for i in range(300):
        (folder / f"{i}\n{'n' * 200}.txt").write_bytes(b"")
    fastattn.quantize(folder, tmp_path / "out", dtype="int8")
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.isprintable()
    assert len(message) < 20 * 120 + MAX_CHARS


@pytest.mark.parametrize("verify", ["sha1", "SHA256", "", 1, True, ["sha256"], b"sha256", {"model.safetensors": 1}])
def test_verify_that_is_none_of_the_choices(tmp_path: Path, verify: Any) -> None:
    folder = write_gpt2(tmp_path)
    with pytest.raises((fastattn.InputError, fastattn.DTypeError), match="verify"):
        open_checkpoint(folder, verify=verify)
    with pytest.raises((fastattn.InputError, fastattn.DTypeError), match="check_finite: expected True or False"):
        open_checkpoint(folder, check_finite="false")  # type: ignore[arg-type]
