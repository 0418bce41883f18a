"""Reads safetensors headers strictly: https://github.com/huggingface/safetensors#format

A file has an 8-byte little-endian header length, that many bytes of JSON, then the data without gaps. Every size in
the file is checked against the file's size before memory is allocated for it.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fastattn.checks import is_text, quote
from fastattn.files import SourceFile, malformed
from fastattn.jsonfile import JsonError, JsonLimits, JsonValue, parse_strict

# The format allows headers of 100 MB. Headers of published files have less than 1 MB. A header that lists 100,000
# matrices has 14 MB and 800,000 values; the rest is room for metadata.
HEADER_LIMITS = JsonLimits(n_bytes=32 << 20, n_values=1_000_000, depth=16)
MAX_DIMS = 8
MAX_SIZE = 2**63 - 1
DTYPE_BITS: Mapping[str, int] = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64},
    **{"F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
    **{"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
WEIGHT_DTYPES = ("F32", "F16", "BF16", "F64")
NOT_THERE = -1


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The location of a tensor: `nbytes` bytes at `offset` in the file `path`, little-endian and row-major.

    offset is NOT_THERE if only the shape is known, for the originals of quantized weights (`checkpoint.quantized`).
    source: the file whose header was read, None for a tensor without a header.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    source: SourceFile | None = field(default=None, repr=False, compare=False)

    def opened(self) -> contextlib.AbstractContextManager[int]:
        """Yield a descriptor of the file whose header was read. Raises ModelFormatError if it was replaced, OSError."""
        source = SourceFile(self.path) if self.source is None else self.source
        return source.opened()


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read the tensors of one safetensors file by name. Raises ModelFormatError, OSError (not a regular file)."""
    source = SourceFile(path)
    try:
        return read_source(source)[0]
    finally:
        source.close()


def read_source(file: SourceFile) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Read the tensors of an open safetensors file by name, and its metadata. Raises ModelFormatError."""
    path, size, head = file.path, file.size, file.read(8)
    if size < 8 or len(head) < 8:
        raise malformed(path, "file_too_small", f"expected at least 8 bytes, got {size}", offset=0)
    length = int(struct.unpack("<Q", head)[0])
    if length < 2:
        raise malformed(path, "header_length", f"expected a header of at least 2 bytes, got {length}", offset=0)
    if length > HEADER_LIMITS.n_bytes:
        message = f"expected a header of at most {HEADER_LIMITS.n_bytes} bytes, got {length}"
        raise malformed(path, "header_too_large", message, offset=0)
    if length > size - 8:
        raise malformed(
            path, "header_truncated", f"expected a header of at most {size - 8} bytes, got {length}", offset=0
        )
    header = file.read(length, 8)
    if len(header) < length:
        raise malformed(path, "header_truncated", f"expected {length} bytes of header, got {len(header)}", offset=8)
    entries = _parse(path, header)
    metadata = _metadata(path, entries.pop("__metadata__", None))
    return _tensors(file, entries, data_start=8 + length), metadata


def _parse(path: Path, header: bytes) -> dict[str, JsonValue]:
    codes = {"json": "header_json", "utf8": "header_utf8", "depth": "header_depth", "too_large": "header_too_large"}
    if header[:1] != b"{" and header[:3] != b"\xef\xbb\xbf":
        raise malformed(path, "header_start", f"expected the header to start with '{{', got {header[:1]!r}", offset=8)
    try:
        value = parse_strict(header.rstrip(b" "), HEADER_LIMITS)
    except JsonError as error:
        raise malformed(path, codes.get(error.code, error.code), f"header: {error}", offset=8) from None
    if not isinstance(value, dict):
        raise malformed(path, "header_json", "header: expected a JSON object", offset=8)
    return value


def _metadata(path: Path, value: JsonValue) -> dict[str, str]:
    """Return the metadata as strings; null counts as no metadata, as in the safetensors library."""
    if value is None:
        return {}
    strings = {key: item for key, item in value.items() if isinstance(item, str)} if isinstance(value, dict) else {}
    if strings != value:
        raise malformed(path, "metadata", "__metadata__: expected an object of strings", offset=8)
    for key, item in strings.items():
        if not (is_text(key) and is_text(item)):
            message = f"__metadata__: expected strings of valid Unicode, got {quote(key)}: {quote(item)}"
            raise malformed(path, "header_utf8", message, offset=8)
    return strings


def _tensors(file: SourceFile, header: dict[str, JsonValue], *, data_start: int) -> dict[str, TensorInfo]:
    path, data_bytes = file.path, file.size - data_start
    spans = {name: _span(path, name, entry) for name, entry in header.items()}
    end, last = 0, "the header"
    for name, (_, _, begin, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        offset = data_start + begin
        if begin != end:
            code, message = "overlap" if begin < end else "hole", f"where {quote(last)} ends, got {begin}"
            raise malformed(path, code, f"expected to start at byte {end}, {message}", tensor=name, offset=offset)
        if stop > data_bytes:
            message = f"expected to end by byte {data_bytes}, got {stop}"
            raise malformed(path, "data_truncated", message, tensor=name, offset=offset)
        end, last = stop, name
    if end < data_bytes:
        message = f"expected no data after the last tensor, got {data_bytes - end} bytes"
        raise malformed(path, "trailing_bytes", message, offset=data_start + end)
    return {
        name: TensorInfo(name, dtype, shape, path, data_start + begin, stop - begin, file)
        for name, (dtype, shape, begin, stop) in spans.items()
    }


def _span(path: Path, name: str, entry: JsonValue) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape, begin and end of one header entry; begin and end are byte offsets in the data."""
    if not is_text(name):
        raise malformed(path, "header_utf8", f"expected a name in UTF-8, got {quote(name)}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        found = quote(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
        raise malformed(path, "entry", f"expected dtype, shape and data_offsets, got {found}", tensor=name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        supported = ", ".join(WEIGHT_DTYPES)
        raise malformed(path, "dtype_unknown", f"dtype: expected one of {supported}, got {quote(dtype)}", tensor=name)
    sizes = _integers(shape)
    if sizes is None or len(sizes) > MAX_DIMS:
        raise malformed(path, "shape", f"shape: expected at most {MAX_DIMS} sizes, got {quote(shape)}", tensor=name)
    bits = math.prod(sizes) * DTYPE_BITS[dtype]
    if bits // 8 > MAX_SIZE:
        raise malformed(
            path, "size_overflow", f"shape: expected less than 2^63 bytes, got {quote(list(sizes), 200)}", tensor=name
        )
    places = _integers(offsets)
    if places is None or len(places) != 2 or places[0] > places[1]:
        raise malformed(path, "offsets", f"data_offsets: expected [begin, end], got {quote(offsets)}", tensor=name)
    if bits % 8 or places[1] - places[0] != bits // 8:
        expected = f"{dtype} {list(sizes)} to take {bits / 8:g} bytes"
        raise malformed(path, "span", f"expected {expected}, got {places[1] - places[0]}", tensor=name)
    return dtype, sizes, places[0], places[1]


def _integers(value: JsonValue) -> tuple[int, ...] | None:
    """Return a list of integers from 0 to 2^63 - 1 as a tuple; None for anything else."""
    if not isinstance(value, list):
        return None
    numbers = tuple(item for item in value if type(item) is int and 0 <= item <= MAX_SIZE)
    return numbers if len(numbers) == len(value) else None
