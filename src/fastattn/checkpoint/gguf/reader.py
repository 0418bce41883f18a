"""Reads the header of a GGUF file strictly: metadata, and where each tensor is.

A file has the magic "GGUF", a version, the numbers of tensors and of metadata keys, the keys with their values, the
names, shapes, types and offsets of the tensors, and then their data. Each starts at a multiple of the alignment. Every
size in the file is checked against the file's size before memory is allocated for it. The file is read, not mapped: a
process that maps a file dies if another program shortens it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.gguf.blocks import BLOCK_TYPES, OTHER_TYPES, BlockType
from fastattn.checks import quote
from fastattn.files import SourceFile, malformed

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
# The largest vocabulary of a published model has 262,144 tokens; one with 280,000 merges has a header of 8 MB.
MAX_HEADER_BYTES = 128 << 20
MAX_KEYS, MAX_TENSORS, MAX_STRINGS = 1 << 14, 1 << 16, 1 << 21
_MAX_KEY_BYTES, _MAX_NAME_BYTES = 1 << 10, 1 << 8
_MAX_ALIGNMENT = 1 << 20
_CHUNK_BYTES = 1 << 20
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS: Mapping[int, str] = {
    **{0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "|b1"},
    **{10: "<u8", 11: "<i8", 12: "<f8"},
}

Value: TypeAlias = "int | float | bool | str | list[str] | NDArray[Any]"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor is: `nbytes` bytes at `offset`. shape: as in numpy, so the last size is that of a row."""

    name: str
    kind: BlockType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a file. An array of numbers is a numpy array; an array of texts is a list."""

    file: SourceFile
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]

    @property
    def path(self) -> Path:
        return self.file.path


def read_gguf(file: SourceFile) -> GgufFile:
    """Read the header of an open file. Raises ModelFormatError, OSError."""
    cursor = _Cursor(file)
    if cursor.take(4, "magic") != MAGIC:
        cursor.fail("magic", f"expected a GGUF file, which starts with {MAGIC!r}", 0)
    _check_version(cursor, cursor.integer(4, "version"))
    n_tensors = cursor.count("tensors", MAX_TENSORS)
    n_keys = cursor.count("metadata keys", MAX_KEYS)
    metadata: dict[str, Value] = {}
    for _ in range(n_keys):
        at, key = cursor.at, cursor.text("key", _MAX_KEY_BYTES)
        if key in metadata:
            cursor.fail("duplicate", f"expected each key once, got {quote(key)} twice", at)
        metadata[key] = cursor.value(key)
    tensors = [cursor.tensor() for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise malformed(
            file.path, "alignment", f"general.alignment: expected a power of two, got {quote(alignment, 60)}"
        )
    return GgufFile(file, metadata, _place(file, tensors, alignment, cursor.at))


def _check_version(cursor: _Cursor, version: int) -> None:
    if version in VERSIONS:
        return
    if version & 0xFFFF == 0 and version:
        cursor.fail("byte_order", "expected a little-endian file, got a big-endian one", 4)
    cursor.fail("version", f"expected version {' or '.join(map(str, VERSIONS))}, got {version}", 4)


def _place(file: SourceFile, tensors: list[GgufTensor], alignment: int, header_end: int) -> dict[str, GgufTensor]:
    """Check that the tensors fill the rest of the file, and return them with their offsets in the file."""
    start = -(-header_end // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        expected = -(-end // alignment) * alignment
        if tensor.offset != expected:
            code = "overlap" if tensor.offset < expected else "hole"
            if tensor.offset % alignment:
                code = "alignment"
            message = f"expected its data to start at byte {expected}, got {tensor.offset}"
            raise malformed(file.path, code, message, tensor=tensor.name, offset=start + tensor.offset)
        end = tensor.offset + tensor.nbytes
        if end > file.size - start:
            message = f"expected to end by byte {file.size}, got {start + end}"
            raise malformed(file.path, "data_truncated", message, tensor=tensor.name, offset=start + tensor.offset)
        if tensor.name in found:
            raise malformed(file.path, "duplicate", "expected each tensor once, got two", tensor=tensor.name)
        found[tensor.name] = GgufTensor(tensor.name, tensor.kind, tensor.shape, start + tensor.offset, tensor.nbytes)
    if file.size > -(-(start + end) // alignment) * alignment:
        message = f"expected no data after the last tensor, got {file.size - start - end} bytes"
        raise malformed(file.path, "trailing_bytes", message, offset=start + end)
    return found


class _Cursor:
    """Reads a header from its beginning. Every method raises ModelFormatError at the end of the file."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._limit = min(file.size, MAX_HEADER_BYTES)
        self._data, self._begin = b"", 0  # the bytes of the file from _begin on
        self._n_strings = 0
        self.at = 0

    def fail(self, code: str, message: str, offset: int | None = None) -> NoReturn:
        raise malformed(self._file.path, code, message, offset=self.at if offset is None else offset)

    def need(self, size: int, what: str) -> None:
        """Make sure that the next `size` bytes are in memory."""
        if size > self._limit - self.at:
            if self._limit < self._file.size:
                self.fail("header_too_large", f"expected a header of at most {self._limit} bytes, got a longer one")
            self.fail("header_truncated", f"{what}: expected {size} bytes, got the end of the file")
        begin = self.at - self._begin
        if begin + size > len(self._data):
            more = min(max(size, _CHUNK_BYTES), self._limit - self.at)
            self._data, self._begin = self._file.read(more, self.at), self.at
            if len(self._data) < size:
                self.fail("header_truncated", f"{what}: expected {size} bytes, got the end of the file")

    def take(self, size: int, what: str) -> bytes:
        self.need(size, what)
        begin = self.at - self._begin
        self.at += size
        return self._data[begin : begin + size]

    def integer(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def count(self, what: str, most: int) -> int:
        at, found = self.at, self.integer(8, what)
        if found > most:
            self.fail("count", f"expected at most {most} {what}, got {found}", at)
        return found

    def text(self, what: str, most: int = MAX_HEADER_BYTES) -> str:
        at, size = self.at, self.integer(8, what)
        if size > most:
            self.fail("string", f"{what}: expected at most {most} bytes, got {size}", at)
        return self._decode(self.take(size, what), what, at)

    def _decode(self, data: bytes, what: str, at: int) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fail("utf8", f"{what}: expected UTF-8, got {error.reason}: {quote(data[:40].hex())}", at)

    def value(self, key: str) -> Value:
        """Read the type and the value of a key."""
        what = quote(key, 100)
        kind = self.integer(4, what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY:
            numbers = self._numbers(kind, 1, what)
            return bool(numbers[0]) if kind == _BOOL else numbers[0].item()
        item = self.integer(4, what)
        at, n_items = self.at, self.integer(8, what)
        if item == _ARRAY:
            self.fail("type", f"{what}: expected an array of numbers or texts, got one of arrays", at)
        return self._strings(n_items, what) if item == _STRING else self._numbers(item, n_items, what)

    def _numbers(self, kind: int, n: int, what: str) -> NDArray[Any]:
        if kind not in _NUMBERS:
            self.fail("type", f"{what}: expected a type of values from 0 to 12, got {kind}", self.at - 4)
        dtype = np.dtype(_NUMBERS[kind])
        data = self.take(n * dtype.itemsize, what)
        if kind == _BOOL:
            if data.strip(b"\0\1"):
                self.fail("type", f"{what}: expected 0 or 1 for a truth value", self.at - len(data))
            return np.frombuffer(data, np.bool_)
        return np.frombuffer(data, dtype)

    def _strings(self, n: int, what: str) -> list[str]:
        self._n_strings += n
        if self._n_strings > MAX_STRINGS:
            self.fail("count", f"{what}: expected at most {MAX_STRINGS} texts in all arrays, got more")
        self.need(8, what) if n else None
        found = []
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(n):
            at = self.at
            self.need(8, what)
            size = unpack(self._data, at - self._begin)[0]
            self.at = at + 8
            self.need(size, what)
            begin = self.at - self._begin
            self.at += size
            found.append(self._decode(self._data[begin : begin + size], what, at))
        return found

    def tensor(self) -> GgufTensor:
        """Read the entry of a tensor; its offset is still relative to the data."""
        at, name = self.at, self.text("name of a tensor", _MAX_NAME_BYTES)
        path = self._file.path
        n_dims = self.integer(4, "dimensions")
        if n_dims > MAX_DIMS:
            raise malformed(
                path, "shape", f"expected at most {MAX_DIMS} dimensions, got {n_dims}", tensor=name, offset=at
            )
        shape = tuple(self.integer(8, "shape") for _ in range(n_dims))[::-1]
        if math.prod(shape) >= 2**56 or (0 in shape):
            message = f"shape: expected positive sizes of less than 2^56 numbers, got {quote(list(shape), 100)}"
            raise malformed(path, "shape", message, tensor=name, offset=at)
        number = self.integer(4, "type")
        kind = BLOCK_TYPES.get(number)
        if kind is None:
            known = ", ".join(other.name for other in BLOCK_TYPES.values())
            shown = OTHER_TYPES.get(number, f"the unknown type {number}")
            raise malformed(
                path, "dtype_unsupported", f"type: expected one of {known}, got {shown}", tensor=name, offset=at
            )
        row = shape[-1] if shape else 1
        if row % kind.n_values:
            message = f"shape: expected rows of a multiple of {kind.n_values} for {kind.name}, got {row}"
            raise malformed(path, "shape", message, tensor=name, offset=at)
        nbytes = math.prod(shape) // kind.n_values * kind.n_bytes
        return GgufTensor(name, kind, shape, self.integer(8, "offset"), nbytes)
