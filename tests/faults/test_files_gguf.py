"""GGUF files that are broken or made to do harm: a typed error with a stable code, and no large allocation."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.checkpoint import open_checkpoint, read_tensor
from fastattn.checkpoint.gguf import reader
from tests.reference.checkpoints import GPT2
from tests.reference.gguf_files import (
    TYPES,
    Raw,
    Stored,
    gguf_bytes,
    gpt2_metadata,
    gpt2_stored,
    plain,
    random_tensor,
    text,
)

MOST_BYTES = 8 << 20
ONE = plain(np.ones(8, np.float32))
MATRIX = Stored(bytes(2 * 20), (2, 32), TYPES["Q4_1"])


def refused(path: Path, data: bytes) -> fa.ModelFormatError:
    """Return the error for a file, which may not need much memory."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(fa.ModelFormatError) as caught:
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES + 8 * len(data)
    finally:
        tracemalloc.stop()
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    return caught.value


def array(kind: int, n: int, data: bytes = b"") -> Raw:
    return Raw(9, struct.pack("<IQ", kind, n) + data)


HUGE = 2**64 - 1
FILES: dict[str, tuple[str, bytes]] = {
    "empty": ("header_truncated", b""),
    "another format": ("magic", b"PK\3\4" + bytes(100)),
    "version 1": ("version", gguf_bytes({}, {}, version=1)),
    "version 4": ("version", gguf_bytes({}, {}, version=4)),
    "big-endian": ("byte_order", b"GGUF" + struct.pack(">IQQ", 3, 0, 0)),
    "too many tensors": ("count", gguf_bytes({}, {}, n_tensors=HUGE)),
    "too many keys": ("count", gguf_bytes({}, {}, n_keys=2**32)),
    "more tensors than the file": ("header_truncated", gguf_bytes({}, {}, n_tensors=60_000)),
    "long key": ("string", gguf_bytes({"k" * 2000: 1}, {})),
    "huge key": ("string", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE)),
    "huge text": ("string", gguf_bytes({"a": Raw(8, struct.pack("<Q", HUGE))}, {})),
    "text beyond the file": ("header_truncated", gguf_bytes({"a": Raw(8, struct.pack("<Q", 2**25))}, {})),
    "key not in UTF-8": ("utf8", b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"\xff") + bytes(8)),
    "text not in UTF-8": ("utf8", gguf_bytes({"a": Raw(8, text(b"a\xc3("))}, {})),
    "item not in UTF-8": ("utf8", gguf_bytes({"a": array(8, 1, text(b"\xed\xa0\x80"))}, {})),
    "key twice": ("duplicate", b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + 2 * (text("a") + struct.pack("<II", 4, 1))),
    "unknown type of a value": ("type", gguf_bytes({"a": Raw(13, bytes(8))}, {})),
    "unknown type of items": ("type", gguf_bytes({"a": array(99, 1, bytes(8))}, {})),
    "array of arrays": ("type", gguf_bytes({"a": array(9, 1, bytes(12))}, {})),
    "truth value of 2": ("type", gguf_bytes({"a": Raw(7, b"\2")}, {})),
    "huge array of numbers": ("header_truncated", gguf_bytes({"a": array(5, HUGE)}, {})),
    "huge array of texts": ("count", gguf_bytes({"a": array(8, HUGE)}, {})),
    "many texts that are not there": ("header_truncated", gguf_bytes({"a": array(8, 2_000_000)}, {})),
    "alignment of 3": ("alignment", gguf_bytes({"general.alignment": 3}, {})),
    "alignment of 0": ("alignment", gguf_bytes({"general.alignment": 0}, {})),
    "alignment of 2^31": ("alignment", gguf_bytes({"general.alignment": 2**31}, {})),
    "alignment of a text": ("alignment", gguf_bytes({"general.alignment": "32"}, {})),
    "five dimensions": ("shape", gguf_bytes({}, {"a": Stored(b"", (1, 1, 1, 1, 1))})),
    "four billion dimensions": ("shape", gguf_bytes({}, {"a": ONE}).replace(b"a\1\0\0\0", b"a\xff\xff\xff\xff")),
    "size of 0": ("shape", gguf_bytes({}, {"a": Stored(b"", (0, 4))})),
    "overflowing shape": ("shape", gguf_bytes({}, {"a": Stored(b"", (2**33, 2**33))})),
    "row of half a block": ("shape", gguf_bytes({}, {"a": Stored(bytes(20), (2, 16), TYPES["Q4_1"])})),
    "unknown type": ("dtype_unsupported", gguf_bytes({}, {"a": Stored(bytes(32), (8,), 4)})),
    "long name": ("string", gguf_bytes({}, {"a" * 300: ONE})),
    "two tensors of one name": ("duplicate", gguf_bytes({}, {"a": ONE, "b": ONE}).replace(text("b"), text("a"))),
    "overlap": ("overlap", gguf_bytes({}, {"a": ONE, "b": Stored(ONE.data, (8,), offset=0)})),
    "hole": ("hole", gguf_bytes({}, {"a": ONE, "b": Stored(ONE.data, (8,), offset=64)}) + bytes(32)),
    "offset that is not aligned": ("alignment", gguf_bytes({}, {"a": Stored(ONE.data, (8,), offset=4)})),
    "huge offset": ("hole", gguf_bytes({}, {"a": Stored(ONE.data, (8,), offset=2**64 - 32)})),
    "data beyond the file": ("data_truncated", gguf_bytes({}, {"a": Stored(b"", (2**40,))})),
    "truncated data": ("data_truncated", gguf_bytes({}, {"a": ONE, "b": MATRIX})[:-32]),
    "data after the last tensor": ("trailing_bytes", gguf_bytes({}, {"a": ONE}) + b"\0"),
}


@pytest.mark.parametrize("what", FILES)
def test_broken_files(tmp_path: Path, what: str) -> None:
    code, data = FILES[what]
    assert refused(tmp_path / "m.gguf", data).code == code


@pytest.mark.parametrize("number", [9, 16, 20, 23, 24, 26, 35, 39, 1000])
def test_unsupported_types_are_named(tmp_path: Path, number: int) -> None:
    error = refused(tmp_path / "m.gguf", gguf_bytes({}, {"a": Stored(bytes(32), (8,), number)}))
    known = {9: "Q8_1", 16: "IQ2_XXS", 20: "IQ4_NL", 23: "IQ4_XS", 24: "I8", 26: "I32", 35: "TQ2_0", 39: "MXFP4"}
    assert str(error).endswith(f"got {known.get(number, f'the unknown type {number}')}")
    assert error.tensor == "a"


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    metadata = {**gpt2_metadata(), "a": ["x", "y"], "b": np.arange(3, dtype=np.int32)}
    data = gguf_bytes(metadata, gpt2_stored())
    path = tmp_path / "m.gguf"
    whole = len(data) - (-len(data) % 32)
    for size in [*range(0, 1800, 7), *range(1800, whole, 1999)]:
        path.write_bytes(data[:size])
        with pytest.raises(fa.ModelFormatError):
            open_checkpoint(path)


def test_a_long_header_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 1000)
    assert refused(tmp_path / "m.gguf", gguf_bytes({"a": "x" * 2000}, {})).code == "header_too_large"


def test_the_number_of_texts_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_STRINGS", 5)
    assert refused(tmp_path / "m.gguf", gguf_bytes({"a": ["x"] * 3, "b": ["y"] * 3}, {})).code == "count"


@pytest.mark.parametrize("bits", [0x7E00, 0x7C00, 0xFC00])
@pytest.mark.parametrize("kind", ["Q4_1", "Q2_K", "Q6_K"])
def test_scales_that_are_not_finite(tmp_path: Path, kind: str, bits: int, rng: np.random.Generator) -> None:
    config = {**GPT2, "n_embd": 256, "n_head": 4, "n_layer": 1}
    tensors = gpt2_stored(config)
    good = random_tensor(rng, kind, (1024, 256))
    at = {"Q4_1": 2, "Q2_K": 82, "Q6_K": 208}[kind]
    n_bytes = {"Q4_1": 20, "Q2_K": 84, "Q6_K": 210}[kind]
    broken = bytearray(good.data)
    broken[5 * n_bytes + at : 5 * n_bytes + at + 2] = struct.pack("<H", bits)
    tensors["blk.0.ffn_up.weight"] = Stored(bytes(broken), good.shape, good.kind)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(gpt2_metadata(config), tensors))
    with pytest.raises(fa.ModelFormatError, match="expected finite scales, got NaN or infinity in block 5") as caught:
        fa.AutoModelForCausalLM.from_pretrained(path)
    assert caught.value.code == "not_finite"
    assert caught.value.tensor == "blk.0.ffn_up.weight"
    found = fa.check_folder(path)
    assert len(found.problems) == 1
    assert "not_finite" in caught.value.code


def test_nan_in_floats_is_found_on_request(tmp_path: Path) -> None:
    tensors = gpt2_stored()
    values = np.frombuffer(tensors["output_norm.bias"].data, np.float32).copy()
    values[3] = np.nan
    tensors["output_norm.bias"] = plain(values)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(gpt2_metadata(), tensors))
    with pytest.raises(fa.ModelFormatError, match=r"expected finite weights, got ln_f\.bias\[3\] = nan"):
        fa.AutoModelForCausalLM.from_pretrained(path, check_finite=True)


def test_a_file_that_becomes_shorter(tmp_path: Path, rng: np.random.Generator) -> None:
    config = {**GPT2, "n_embd": 32, "n_head": 4, "n_layer": 1}
    tensors = {**gpt2_stored(config), "blk.0.ffn_down.weight": random_tensor(rng, "Q8_0", (32, 128))}
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(gpt2_metadata(config), tensors))
    with open_checkpoint(path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(2000)
        with pytest.raises(fa.ModelFormatError, match="a file that became shorter"):
            read_tensor(checkpoint.tensors["h.0.mlp.c_proj.weight"])
        with pytest.raises(fa.ModelFormatError, match="expected the file as it was"):
            checkpoint.check_unchanged()


def test_not_a_regular_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(fa.ModelNotFoundError):
        fa.AutoModelForCausalLM.from_pretrained(tmp_path / "m.gguf")
    with pytest.raises(fa.ModelNotFoundError):
        fa.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")


def test_random_changes_give_typed_errors_or_a_model(tmp_path: Path) -> None:
    rng, path = random.Random(1), tmp_path / "m.gguf"
    config = {**GPT2, "n_embd": 32, "n_head": 4, "n_layer": 1}
    random_matrix: Any = random_tensor(np.random.default_rng(0), "Q4_0", (32, 128))
    valid = gguf_bytes(gpt2_metadata(config), {**gpt2_stored(config), "blk.0.ffn_down.weight": random_matrix})
    outcomes = set()
    for _ in range(400):
        data = bytearray(valid)
        for _ in range(rng.choice([1, 1, 2, 5])):
            at = rng.randrange(2000) if rng.random() < 0.8 else rng.randrange(len(data))
            data[at] = rng.choice([0, 1, 2, 8, 9, 0x7F, 0xFF, data[at] ^ (1 << rng.randrange(8))])
        path.write_bytes(bytes(data))
        try:
            with open_checkpoint(path) as checkpoint:
                for source in checkpoint.tensors.values():
                    read_tensor(source)
            outcomes.add("read")
        except fa.ModelFormatError as error:
            outcomes.add(error.code)
        except fa.ConfigError:
            outcomes.add("config")
    assert {"read", "config", "shape", "utf8"} <= outcomes
