"""Reads a directory of quantized weights, packed as the C++ executor stores them, so no conversion is needed.

config.json is the model's plus a `quantization_config` of fastattn. For each weight of the Program, model.safetensors
has `<weight>` (bytes) and, for int8 and int4, `<weight>.scales` and `<weight>.sums`. Its metadata gives the shapes of
the tensors that the weights were made from, and how each is stored. Independent of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastattn.checkpoint.safetensors import HEADER_LIMITS, NOT_THERE, TensorInfo, read_source
from fastattn.checkpoint.source import WeightSource
from fastattn.checks import is_text, quote
from fastattn.errors import ConfigError, ModelFormatError
from fastattn.files import FileSet, malformed
from fastattn.formats import DTYPES, PACKED_DTYPES
from fastattn.jsonfile import JsonError, JsonValue, parse_strict
from fastattn.settings import Settings

METHOD = "fastattn"
VERSION = 1  # version of the panel layout and of this file format
CONFIG_KEY = "quantization_config"
_WEIGHT_DTYPES = DTYPES["cpu"]
USES = ("matrix", "table", "vector")
METADATA_KEY = "fastattn"
PIECES = ("", ".scales", ".sums")


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight of a Program in the file.

    use and form: as in `Weight.use` and `weight_formats`. pieces: data, and scales and sums if the format has them.
    """

    use: str
    form: str
    shape: tuple[int, ...]
    pieces: tuple[WeightSource, ...]


@dataclass(frozen=True, slots=True)
class QuantizedCheckpoint:
    """The contents of a quantized directory.

    originals: the tensors that a model is traced with; only their shapes are in the file.
    """

    dtype: str
    head_dtype: str | None
    originals: Mapping[str, TensorInfo]
    weights: Mapping[str, PackedWeight]


def is_quantized(config: Mapping[str, JsonValue]) -> bool:
    """Return whether a config.json says that fastattn quantized the weights; other methods are not supported."""
    section = config.get(CONFIG_KEY)
    return isinstance(section, dict) and section.get("quant_method") == METHOD


def read_quantized(path: Path, config: Mapping[str, JsonValue], *, files: FileSet | None = None) -> QuantizedCheckpoint:
    """Read the headers of a quantized file. files: the set that it belongs to.

    Raises ConfigError for another version or dtype, ModelFormatError.
    """
    section = config[CONFIG_KEY]
    assert isinstance(section, dict)
    settings = Settings(f"config.json: {CONFIG_KEY}", section)
    settings.ignore("quant_method", "version")
    _check_version(section)
    dtype, head_dtype = settings.raw("dtype"), settings.raw("head_dtype")
    if dtype not in PACKED_DTYPES or (head_dtype is not None and head_dtype not in _WEIGHT_DTYPES):
        raise ConfigError(
            f"config.json: {CONFIG_KEY}: expected a dtype ({', '.join(PACKED_DTYPES)}) and a head_dtype, "
            f"got {quote(dtype)} and {quote(head_dtype)}"
        )
    settings.finish()
    with FileSet() as own:
        tensors, metadata = read_source((own if files is None else files).open(path))
    said = _object(path, metadata.get(METADATA_KEY))
    shapes, weights = said.get("shapes"), said.get("weights")
    if not isinstance(shapes, dict) or not isinstance(weights, dict):
        raise _error(path, f"metadata {METADATA_KEY!r}: expected shapes and weights")
    originals = {
        name: TensorInfo(_name(path, name), "F32", _shape(path, name, shape), path, NOT_THERE, 0)
        for name, shape in shapes.items()
    }
    packed = {name: _weight(path, name, entry, tensors) for name, entry in weights.items()}
    return QuantizedCheckpoint(str(dtype), None if head_dtype is None else str(head_dtype), originals, packed)


def _check_version(section: Mapping[str, JsonValue]) -> None:
    version = section.get("version")
    if type(version) is not int or version != VERSION:
        raise ConfigError(
            f"config.json: {CONFIG_KEY}: version: expected {VERSION}, got {quote(version)}; "
            "quantize the float checkpoint again with this fastattn"
        )


def _error(path: Path, message: str, tensor: str | None = None) -> ModelFormatError:
    return malformed(path, "quantized", message, tensor=tensor)


def _object(path: Path, text: str | None) -> dict[str, JsonValue]:
    try:
        value = parse_strict((text or "").encode("utf-8"), HEADER_LIMITS)
    except JsonError as error:
        raise _error(path, f"metadata {METADATA_KEY!r}: {error}") from None
    if not isinstance(value, dict):
        raise _error(path, f"metadata {METADATA_KEY!r}: expected a JSON object")
    return value


def _name(path: Path, name: str) -> str:
    if not is_text(name):
        raise _error(path, f"metadata {METADATA_KEY!r}: expected names of valid Unicode, got {quote(name)}")
    return name


def _shape(path: Path, name: str, value: JsonValue) -> tuple[int, ...]:
    sizes = value if isinstance(value, list) else []
    if not 1 <= len(sizes) <= 2 or not all(type(size) is int and 0 <= size < 2**31 for size in sizes):
        raise _error(path, f"expected a shape of one or two sizes, got {quote(value)}", name)
    return tuple(size for size in sizes if isinstance(size, int))


def _weight(path: Path, name: str, entry: JsonValue, tensors: Mapping[str, TensorInfo]) -> PackedWeight:
    if not isinstance(entry, dict) or entry.get("use") not in USES or entry.get("format") not in _WEIGHT_DTYPES:
        expected = f"a use ({', '.join(USES)}) and a format ({', '.join(_WEIGHT_DTYPES)})"
        raise _error(path, f"expected {expected}, got {quote(entry)}", name)
    pieces = tuple(tensors[name + suffix] for suffix in PIECES if name + suffix in tensors)
    if not pieces or pieces[0].name != name:
        raise _error(path, "listed in the metadata, but not in the file", name)
    return PackedWeight(str(entry["use"]), str(entry["format"]), _shape(path, name, entry.get("shape")), pieces)
