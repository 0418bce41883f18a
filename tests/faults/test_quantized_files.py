"""Quantized directories that are truncated, changed or of another version: typed errors, and nothing is misread."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.checkpoint.quantized import read_quantized
from fastattn.checkpoint.safetensors import read_header
from fastattn.errors import ConfigError, FastattnError, ModelFormatError
from fastattn.formats import INT4_GROUP
from fastattn.graph.quantize import MOST_INT4_SCALE
from tests.reference.checkpoints import write_gpt2

IDS = [1, 2, 3, 4, 5, 6, 7]
INT4_SCALES = 64  # bytes at the beginning of a panel's group: one scale per column
INT4_GROUP_BYTES = INT4_SCALES + INT4_GROUP * INT4_SCALES // 2
SIZES = {"vocab_size": 70, "n_positions": 16, "n_embd": 72, "n_layer": 1, "n_head": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return fastattn.quantize(write_gpt2(tmp_path / "floats", **SIZES), tmp_path / "out", dtype="int4")


def load(folder: Path) -> None:
    AutoModelForCausalLM.from_pretrained(folder).close()


def edit_config(folder: Path, **section: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= section
    (folder / "config.json").write_text(json.dumps(config))


def edit_header(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Call `change` with the entries and the metadata of the header, and write them again."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    said = json.loads(entries["__metadata__"]["fastattn"])
    change(entries, said)
    entries["__metadata__"]["fastattn"] = json.dumps(said)
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_another_version(folder: Path, version: Any) -> None:
    edit_config(folder, version=version)
    with pytest.raises(ConfigError, match=r"version: expected 1, got .*quantize the float checkpoint again"):
        load(folder)


@pytest.mark.parametrize("section", [{"dtype": "int2"}, {"dtype": None}, {"dtype": ["int8"]}, {"head_dtype": "fp8"}])
def test_unknown_dtypes(folder: Path, section: dict[str, Any]) -> None:
    edit_config(folder, **section)
    with pytest.raises(ConfigError, match="expected a dtype"):
        load(folder)


def test_another_method(folder: Path) -> None:
    edit_config(folder, quant_method="gptq")
    with pytest.raises(ConfigError, match="quantization_config"):
        load(folder)


@pytest.mark.parametrize("missing", [1, 64, 5000])
def test_a_file_that_was_cut(folder: Path, missing: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ModelFormatError) as caught:
        load(folder)
    assert caught.value.path == str(path)


def test_a_file_that_is_cut_after_its_header_was_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastattn.api import loading

    build = loading.build

    def cut_and_build(*args: Any) -> Any:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-5000])
        return build(*args)

    monkeypatch.setattr(loading, "build", cut_and_build)
    with pytest.raises(ModelFormatError, match="bytes early"):
        load(folder)


CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "no shapes": lambda entries, said: said.pop("shapes"),
    "no weights": lambda entries, said: said.pop("weights"),
    "shape of three": lambda entries, said: said["shapes"].update({"wte.weight": [1, 2, 3]}),
    "shape below 0": lambda entries, said: said["shapes"].update({"wte.weight": [-1, 72]}),
    "shape of words": lambda entries, said: said["shapes"].update({"wte.weight": ["a", "b"]}),
    "shape too large": lambda entries, said: said["shapes"].update({"wte.weight": [2**40, 72]}),
    "another shape": lambda entries, said: said["shapes"].update({"wte.weight": [71, 72]}),
    "tensor not listed": lambda entries, said: said["shapes"].pop("h.0.ln_1.weight"),
    "weight not listed": lambda entries, said: said["weights"].pop("wte.weight"),
    "weight not there": lambda entries, said: said["weights"].update(x=said["weights"]["wte.weight"]),
    "another use": lambda entries, said: said["weights"]["wte.weight"].update(use="table", format="int8"),
    "unknown use": lambda entries, said: said["weights"]["wte.weight"].update(use="cube"),
    "unknown format": lambda entries, said: said["weights"]["wte.weight"].update(format="int2"),
    "another format": lambda entries, said: said["weights"]["wte.weight"].update(format="int8"),
    "not float32": lambda entries, said: said["weights"]["wte.weight"].update(format="float32"),
    "another weight's shape": lambda entries, said: said["weights"]["wte.weight"].update(shape=[72, 70]),
    "no such shape": lambda entries, said: said["weights"]["wte.weight"].update(shape=None),
    "a vector that is not float32": lambda entries, said: said["weights"]["ln_f.weight"].update(format="int8"),
    "no metadata": lambda entries, said: said.clear(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_headers_that_do_not_fit(folder: Path, name: str) -> None:
    edit_header(folder, CHANGES[name])
    with pytest.raises((ModelFormatError, ConfigError)):
        load(folder)


def test_metadata_that_are_not_json(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    at = data.index(b'"fastattn": "{')
    path.write_bytes(data[: at + 13] + b"[" + data[at + 14 :])
    with pytest.raises(ModelFormatError, match="metadata 'fastattn'"):
        load(folder)


def test_a_float_file_in_a_quantized_directory(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").write_bytes((tmp_path / "floats" / "model.safetensors").read_bytes())
    with pytest.raises(ModelFormatError, match="metadata"):
        load(folder)


def test_any_byte_of_the_data_may_be_wrong(folder: Path) -> None:
    """A wrong byte in the weights can only change the numbers or be rejected."""
    path = folder / "model.safetensors"
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    start = 8 + int(data[:8].view(np.uint64)[0])
    rng = np.random.default_rng(0)
    for fill, refused in ((0, False), (255, False), (128, True), (None, True)):
        broken = data.copy()
        broken[start:] = rng.integers(0, 256, len(data) - start) if fill is None else fill
        path.write_bytes(broken.tobytes())
        if refused:
            with pytest.raises(ModelFormatError, match="expected packed int4, got other bytes"):
                load(folder)
            continue
        with AutoModelForCausalLM.from_pretrained(folder) as model:
            assert np.asarray(model(IDS).logits).shape == (7, 70)


def random_as_packed(rng: np.random.Generator, form: str, size: int) -> NDArray[np.uint8]:
    """Return random bytes that packing could write as a weight's data."""
    if form == "int8":
        return rng.integers(-127, 128, size, np.int8).view(np.uint8)
    data = rng.integers(0, 256, size, np.uint8)
    if form == "int4":
        scales = data.reshape(-1, INT4_GROUP_BYTES)[:, :INT4_SCALES]
        scales[...] = rng.integers(-MOST_INT4_SCALE, MOST_INT4_SCALE + 1, scales.shape, np.int8).view(np.uint8)
    return data


@pytest.mark.parametrize(
    ("dtype", "everything"), [("int4", False), ("int8", False), ("int4", True), ("int8", True), ("bfloat16", True)]
)
def test_random_weights_that_could_have_been_packed(dtype: str, everything: bool, tmp_path: Path) -> None:
    """They load and run. `everything`: scales, sums and vectors have random bits too, which may give NaN."""
    folder = fastattn.quantize(write_gpt2(tmp_path / "floats", **SIZES), tmp_path / "out", dtype=dtype)
    path, rng = folder / "model.safetensors", np.random.default_rng(0)
    with AutoModelForCausalLM.from_pretrained(folder) as model:
        before = np.asarray(model(IDS).logits)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    packed = read_quantized(path, json.loads((folder / "config.json").read_text())).weights
    assert dtype in {weight.form for weight in packed.values()}
    for weight in packed.values():
        values, *others = weight.pieces
        if everything or weight.form in ("int8", "int4"):
            at = slice(values.offset, values.offset + values.nbytes)
            data[at] = random_as_packed(rng, weight.form, values.nbytes)
        for piece in others if everything else ():
            data[piece.offset : piece.offset + piece.nbytes] = rng.integers(0, 256, piece.nbytes, np.uint8)
    path.write_bytes(data.tobytes())
    with AutoModelForCausalLM.from_pretrained(folder) as model:
        after = np.asarray(model(IDS).logits)
    assert after.shape == before.shape == (len(IDS), SIZES["vocab_size"])
    assert (after != before).any()
    assert everything or np.isfinite(after).all()


def test_nothing_is_left_of_a_directory_that_could_not_be_written(tmp_path: Path) -> None:
    floats = write_gpt2(tmp_path / "floats", **SIZES)
    (floats / "model.safetensors").write_bytes((floats / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(FastattnError):
        fastattn.quantize(floats, tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(("dtype", "byte"), [("int4", 16), ("int4", 0x80), ("int8", 0x80)])
def test_values_that_packing_never_writes(dtype: str, byte: int, tmp_path: Path) -> None:
    """Group scales above 15, and -128: one row and many rows, or two targets, would multiply them differently."""
    folder = fastattn.quantize(write_gpt2(tmp_path / "floats", **SIZES), tmp_path / "out", dtype=dtype)
    path = folder / "model.safetensors"
    tensors = read_header(path)
    name = next(name for name in tensors if name.endswith("attn.c_attn.weight"))
    data = bytearray(path.read_bytes())
    data[tensors[name].offset + 3] = byte
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match=rf"{name}: expected packed {dtype}, got other bytes"):
        load(folder)
