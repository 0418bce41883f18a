"""Parses JSON of untrusted files, bounded in size, values and depth, with typed errors that name the file.

A few passes of C code check the bounds before any object is built, so a hostile file costs no more than reading it.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastattn.checks import quote
from fastattn.files import FileSet, SourceFile, malformed

JsonValue = dict[str, "JsonValue"] | list["JsonValue"] | str | int | float | bool | None

_BOM = "\ufeff"
_OTHER_ENCODINGS = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b",[]{}")
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """The limits of the text that is parsed. n_values counts key-value pairs, list items and containers."""

    n_bytes: int
    n_values: int
    depth: int


# The largest published tokenizer.json has 33 MB and two million values (Gemma: 262,144 tokens, 580,604 merges).
TOKENIZER_LIMITS = JsonLimits(n_bytes=64 << 20, n_values=4_000_000, depth=100)
# A config.json has a few kilobytes. One that names 100,000 classes twice has 6 MB and 200,000 values.
CONFIG_LIMITS = JsonLimits(n_bytes=16 << 20, n_values=500_000, depth=16)


class JsonError(ValueError):
    """Unexpected or invalid JSON. `code` is a short, stable word."""

    def __init__(self, message: str, code: str = "json") -> None:
        super().__init__(message)
        self.code = code


def parse_strict(data: bytes, limits: JsonLimits = CONFIG_LIMITS) -> JsonValue:
    """Parse UTF-8 JSON by the standard: no byte order mark, duplicate key, NaN or infinity.

    Raises JsonError.
    """
    text = _decode(data)
    if text.startswith(_BOM):
        raise JsonError("expected no byte order mark", "utf8")
    check_limits(data, limits)
    return _load(text, unique=_unique, constant=_no_constant)


def parse_lenient(data: bytes, where: str, limits: JsonLimits = CONFIG_LIMITS) -> JsonValue:
    """Parse JSON as Python does: NaN and infinity are numbers, and the last of several equal keys is used.

    A byte order mark is skipped. Duplicate keys with different values are logged, with `where` as the file's name.
    Raises JsonError.
    """
    text = _decode(data).removeprefix(_BOM)
    check_limits(data, limits)
    duplicates: list[str] = []

    def last(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        result = dict(pairs)
        if len(result) < len(pairs):
            duplicates.extend(key for key, value in pairs if not _same(result[key], value))
        return result

    value = _load(text, unique=last, constant=float)
    if duplicates:
        names = ", ".join(quote(name, 60) for name in dict.fromkeys(duplicates[:20]))
        _log.warning("%s: duplicate keys; the last one is used: %s", where, names)
    return value


def _same(a: JsonValue, b: JsonValue) -> bool:
    return type(a) is type(b) and (a == b or (a != a and b != b))


def _decode(data: bytes) -> str:
    for start, name in _OTHER_ENCODINGS:
        if data.startswith(start):
            raise JsonError(f"expected UTF-8, got {name}; save the file as UTF-8", "utf8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"expected UTF-8, got {error.reason} at byte {error.start}", "utf8") from None
    if "\0" in text:
        raise JsonError(f"expected text, got NUL at character {text.index(chr(0))}", "utf8")
    return text


def _load(text: str, *, unique: Any, constant: Any) -> JsonValue:
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise JsonError(f"invalid JSON: {error}") from None
    except ValueError as error:  # for an integer with thousands of digits; others, as from signal handlers, propagate
        if type(error) is not ValueError or "integer string conversion" not in str(error):
            raise
        raise JsonError("invalid JSON: an integer has too many digits") from None
    return value


def check_limits(data: bytes, limits: JsonLimits) -> None:
    """Refuse text with too many bytes, too many values or too deep nesting, without a Python loop over characters.

    Raises JsonError.
    """
    if len(data) > limits.n_bytes:
        raise JsonError(f"expected at most {limits.n_bytes} bytes, got {len(data)}", "too_large")
    if b"\\" in data:  # escaped quotes do not end a string; the first backslash of a run is not escaped
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    text = np.frombuffer(data, np.uint8)
    in_string = np.bitwise_xor.accumulate(text == ord('"'))
    structure = text[~in_string].tobytes().translate(None, _NOT_STRUCTURE)
    n_opened = structure.count(b"[") + structure.count(b"{")
    n_values = structure.count(b",") + n_opened
    if n_opened > limits.depth:
        brackets = np.frombuffer(structure.translate(None, b","), np.uint8)[: 2 * limits.n_values]
        opened = (brackets == ord("[")) | (brackets == ord("{"))
        if np.cumsum(np.where(opened, np.int8(1), np.int8(-1)), dtype=np.int32).max() > limits.depth:
            raise JsonError(f"expected nesting of at most {limits.depth}, got more", "depth")
    # The depth check reads only the first 2 * n_values brackets. Text with more of them has too many values, which is
    # refused here, or closes more brackets than it opens, and then the parser stops.
    if n_values > limits.n_values:
        raise JsonError(f"expected at most {limits.n_values} values, got at least {n_values}", "too_large")


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"duplicate key {quote(key)}", "duplicate_key")
            seen.add(key)
    return result


def _no_constant(name: str) -> JsonValue:
    raise JsonError(f"expected JSON numbers, got {name}")


def read_bounded(file: SourceFile, limit: int) -> bytes:
    """Read a file of at most `limit` bytes. Raises ModelFormatError."""
    if file.size > limit:
        raise malformed(file.path, "file_too_large", f"expected at most {limit} bytes, got {file.size}")
    return file.read(file.size)


def read_json(path: Path, *, files: FileSet | None = None, limits: JsonLimits = TOKENIZER_LIMITS) -> Any:
    """Parse a JSON file with `parse_lenient`. files: the set that the file belongs to, if any.

    Raises ModelFormatError, OSError.
    """
    with FileSet() as own:
        file = (own if files is None else files).open(path)
        data = read_bounded(file, limits.n_bytes)
    try:
        return parse_lenient(data, str(path), limits)
    except JsonError as error:
        raise malformed(path, error.code, str(error)) from None
