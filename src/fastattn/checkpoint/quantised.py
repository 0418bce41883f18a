"""A directory of quantised weights: packed as the C++ executor keeps them, so that loading is reading.

config.json is the model's with a `quantization_config` of ours. model.safetensors holds, for a weight of the Program,
`<weight>` (bytes), and of int8 and int4 `<weight>.scales` and `<weight>.sums`; its metadata says the shapes of the
tensors that the weights were made from, and how each is kept. Knows no model.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.safetensors import NOT_THERE, TensorInfo, read_file
from fastattn.checkpoint.strict_json import JsonError, JsonValue, parse
from fastattn.errors import ConfigError, ModelFormatError

METHOD = "fastattn"
VERSION = 1  # of the layout of panels and of this file
CONFIG_KEY = "quantization_config"
DTYPES = ("bfloat16", "int8", "int4")
FORMATS = ("float32", *DTYPES)
USES = ("matrix", "table", "vector")
_METADATA_KEY = "fastattn"
_PIECES = ("", ".scales", ".sums")
_ALIGNMENT = 64
_FINISHED, _UNFINISHED = "model.safetensors", "model.safetensors.part"
_MAX_COPIED_BYTES = 256 << 20
_COPIED = (".json", ".txt", ".model", ".jinja", ".md", ".bpe", ".tiktoken")


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight of a Program in the file. use and form: as `Weight.use` and `weight_formats` say; pieces: data, scales
    and sums, those that the format has."""

    use: str
    form: str
    shape: tuple[int, ...]
    pieces: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class Quantised:
    """What a quantised directory holds: originals are the tensors that a model is traced with, which are not there."""

    dtype: str
    head_dtype: str | None
    originals: Mapping[str, TensorInfo]
    weights: Mapping[str, PackedWeight]


def is_quantised(config: Mapping[str, JsonValue]) -> bool:
    """Whether a config.json says that the weights are quantised by fastattn; others are not ours to read."""
    section = config.get(CONFIG_KEY)
    return isinstance(section, dict) and section.get("quant_method") == METHOD


def read_quantised(path: Path, config: Mapping[str, JsonValue]) -> Quantised:
    """The headers of a quantised file. Raises ConfigError for another version, ModelFormatError."""
    section = config[CONFIG_KEY]
    assert isinstance(section, dict)
    _check_version(section)
    dtype, head_dtype = section.get("dtype"), section.get("head_dtype")
    if dtype not in DTYPES or (head_dtype is not None and head_dtype not in FORMATS):
        raise ConfigError(
            f"config.json: {CONFIG_KEY}: expected a dtype ({', '.join(DTYPES)}) and a head_dtype, "
            f"got {dtype!r:.40} and {head_dtype!r:.40}"
        )
    tensors, metadata = read_file(path)
    said = _object(path, metadata.get(_METADATA_KEY))
    shapes, weights = said.get("shapes"), said.get("weights")
    if not isinstance(shapes, dict) or not isinstance(weights, dict):
        raise _error(path, f"metadata {_METADATA_KEY!r}: expected shapes and weights")
    originals = {
        name: TensorInfo(name, "F32", _shape(path, name, shape), path, NOT_THERE, 0) for name, shape in shapes.items()
    }
    packed = {name: _weight(path, name, entry, tensors) for name, entry in weights.items()}
    return Quantised(str(dtype), None if head_dtype is None else str(head_dtype), originals, packed)


def _check_version(section: Mapping[str, JsonValue]) -> None:
    version = section.get("version")
    if type(version) is not int or version != VERSION:
        raise ConfigError(
            f"config.json: {CONFIG_KEY}: version: expected {VERSION}, got {version!r:.40}; "
            "quantise the float checkpoint again with this fastattn"
        )


def _error(path: Path, message: str, tensor: str | None = None) -> ModelFormatError:
    where = f"{path}: tensor {tensor!r}" if tensor is not None else str(path)
    return ModelFormatError(f"{where}: {message}", path=str(path), tensor=tensor, code="quantised")


def _object(path: Path, text: str | None) -> dict[str, JsonValue]:
    try:
        value = parse((text or "").encode())
    except JsonError as error:
        raise _error(path, f"metadata {_METADATA_KEY!r}: {error}") from None
    if not isinstance(value, dict):
        raise _error(path, f"metadata {_METADATA_KEY!r}: expected a JSON object")
    return value


def _shape(path: Path, name: str, value: JsonValue) -> tuple[int, ...]:
    sizes = value if isinstance(value, list) else []
    if not 1 <= len(sizes) <= 2 or not all(type(size) is int and 0 <= size < 2**31 for size in sizes):
        raise _error(path, f"expected a shape of one or two sizes, got {value!r:.80}", name)
    return tuple(size for size in sizes if isinstance(size, int))


def _weight(path: Path, name: str, entry: JsonValue, tensors: Mapping[str, TensorInfo]) -> PackedWeight:
    if not isinstance(entry, dict) or entry.get("use") not in USES or entry.get("format") not in FORMATS:
        raise _error(path, f"expected a use and a format, got {entry!r:.80}", name)
    pieces = tuple(tensors[name + suffix] for suffix in _PIECES if name + suffix in tensors)
    if not pieces or pieces[0].name != name:
        raise _error(path, "listed in the metadata, but not in the file", name)
    return PackedWeight(str(entry["use"]), str(entry["format"]), _shape(path, name, entry.get("shape")), pieces)


@dataclass(frozen=True, slots=True)
class NewWeight:
    """A weight to be written: its pieces are asked for when it is its turn, so that one is in memory at a time."""

    name: str
    use: str
    form: str
    shape: tuple[int, ...]
    sizes: tuple[int, ...]  # bytes of the pieces


def write_quantised(
    source: Path,
    directory: Path,
    config: Mapping[str, Any],
    *,
    dtype: str,
    head_dtype: str | None,
    shapes: Mapping[str, Sequence[int]],
    weights: Sequence[NewWeight],
    pieces: Iterable[Sequence[NDArray[np.uint8]]],
) -> None:
    """Write a directory that is new or empty: config.json, model.safetensors and what lies beside them.

    pieces: those of each weight, in order. A failure removes what was written; what is left of a process that was
    killed is written over. Raises OSError, ConfigError.
    """
    unfinished, created = directory / _UNFINISHED, not directory.exists()
    if not created and not _is_free(directory):
        raise ConfigError(f"{directory}: expected a new or an empty folder")
    copies = {path: directory / path.relative_to(source) for path in _others(source)}
    section = {"quant_method": METHOD, "version": VERSION, "dtype": dtype, "head_dtype": head_dtype}
    text = json.dumps({**config, CONFIG_KEY: section}, indent=2, ensure_ascii=False)
    written = [unfinished, directory / "config.json", *copies.values()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:  # before all others: it marks them as ours
            written[1].write_text(text + "\n", encoding="utf-8")
            for path, target in copies.items():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
            file.write(_header(shapes, weights))
            for weight, arrays in zip(weights, pieces, strict=True):
                if tuple(array.nbytes for array in arrays) != weight.sizes:
                    raise AssertionError(f"{weight.name}: the sizes differ from those of the header")
                for array in arrays:
                    file.write(array.data)
        unfinished.rename(directory / _FINISHED)
    except BaseException:
        _remove(directory, written, created)
        raise


def _is_free(directory: Path) -> bool:
    """Whether a folder is empty, or holds what is left of a `write_quantised` that was killed."""
    if not directory.is_dir():
        return False
    names = {path.name for path in directory.iterdir()}
    return not names or (_UNFINISHED in names and _FINISHED not in names)


def _remove(directory: Path, written: Sequence[Path], created: bool) -> None:
    """Remove these files, the folders that are empty then, and the directory if it was created for them."""
    folders = {path.parent for path in written} - {directory}
    with contextlib.suppress(OSError):  # the failure that led here is the one to be seen
        for path in written:
            path.unlink(missing_ok=True)
    for folder in (*folders, *([directory] if created else [])):
        with contextlib.suppress(OSError):  # not empty, or never made
            folder.rmdir()


def _header(shapes: Mapping[str, Sequence[int]], weights: Sequence[NewWeight]) -> bytes:
    said = {
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "weights": {w.name: {"use": w.use, "format": w.form, "shape": list(w.shape)} for w in weights},
    }
    entries: dict[str, Any] = {"__metadata__": {"format": METHOD, _METADATA_KEY: json.dumps(said)}}
    at = 0
    for weight in weights:
        for suffix, size in zip(_PIECES, weight.sizes, strict=False):
            entries[weight.name + suffix] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(entries).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _others(source: Path) -> Iterator[Path]:
    """Tokenizers, generation_config.json, folders of a sentence-transformers model: what is small and no weights."""
    for path in sorted((*source.glob("*"), *source.glob("*/*"))):
        of_weights = path == source / "config.json" or path.name.endswith(".safetensors.index.json")
        if not of_weights and path.suffix in _COPIED and path.is_file() and path.stat().st_size <= _MAX_COPIED_BYTES:
            yield path
