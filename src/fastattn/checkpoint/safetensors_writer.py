"""Writes safetensors files: https://github.com/huggingface/safetensors#format"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastattn.checkpoint.safetensors import DTYPE_BITS, TensorInfo
from fastattn.checkpoint.source import ArraySource
from fastattn.errors import ModelFormatError
from fastattn.files import malformed, read_at

_ALIGNMENT = 64
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a header. dtype: its name in safetensors, such as "F32"."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes before the data, of a length that aligns the data. The tensors are stored in this order."""
    found: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for entry in entries:
        found[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(found).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def write_tensors(file: BinaryIO, tensors: Mapping[str, TensorInfo | ArraySource]) -> None:
    """Write a file of tensors by their new names: arrays, and bytes of other files, unchanged.

    Raises ModelFormatError if a source file is not the one that was opened, OSError.
    """
    # Wide dtypes come first, so each tensor is aligned for its own dtype.
    names = sorted(tensors, key=lambda name: (-DTYPE_BITS[tensors[name].dtype], name))
    entries = [Entry(name, tensors[name].dtype, tensors[name].shape, _nbytes(tensors[name])) for name in names]
    file.write(header(entries, {"format": "pt"}))
    for name in names:
        for piece in _pieces(tensors[name]):
            file.write(piece)


def _nbytes(source: TensorInfo | ArraySource) -> int:
    return source.nbytes if isinstance(source, TensorInfo) else source.array.nbytes


def _pieces(source: TensorInfo | ArraySource) -> Iterable[bytes | memoryview]:
    if isinstance(source, ArraySource):
        yield source.array.data
        return
    with source.opened() as descriptor:
        for begin in range(0, source.nbytes, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, source.nbytes - begin)
            piece = read_at(descriptor, size, source.offset + begin)
            if len(piece) != size:
                raise _cut(source)
            yield piece


def _cut(source: TensorInfo) -> ModelFormatError:
    return malformed(source.path, "data_truncated", f"expected {source.nbytes} bytes", tensor=source.name)
