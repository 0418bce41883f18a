"""Reads a file of word vectors, plain or gzip, piece by piece. Every error names the file and the byte."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ModelFormatError, ModelNotFoundError
from fastattn.files import malformed, open_file

CHUNK_BYTES = 1 << 20
MAX_WORD_BYTES = 1 << 16
# A DEFLATE stream expands to at most 1032 times its size, so a gzip file cannot contain more.
_MAX_EXPANSION = 1032
_GZIP_MAGIC = b"\x1f\x8b"
_OTHER_MAGIC = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd"}


class WordStream:
    """The bytes of a file, decompressed if it is a gzip file.

    max_bytes: the largest number of bytes that the file can contain. position: the bytes read so far.
    """

    def __init__(self, path: Path, file: BinaryIO, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._file = file
        self._buffer = b""
        self._start = 0  # of the unread bytes in the buffer
        self.position = 0

    @property
    def remaining(self) -> int:
        """The largest number of bytes that can follow."""
        return self.max_bytes - self.position

    def _fill(self) -> bool:
        """Read another chunk; return whether there was one."""
        chunk = self._file.read(CHUNK_BYTES)
        self._buffer = self._buffer[self._start :] + chunk
        self._start = 0
        return bool(chunk)

    def until(self, mark: bytes, limit: int) -> bytes | None:
        """Return the bytes before the next `mark`, and skip the mark; None if `limit` bytes or the end come first."""
        searched = 0
        while True:
            found = self._buffer.find(mark, self._start + searched)
            if 0 <= found <= self._start + limit:
                data = self._buffer[self._start : found]
                self._advance(len(data) + 1)
                return data
            searched = len(self._buffer) - self._start
            if found >= 0 or searched > limit or not self._fill():
                return None

    def line(self, limit: int) -> bytes | None:
        """Return the next line without its newline, which the last line may lack; None at the end of the file.

        Raises ModelFormatError if the line has more than `limit` bytes.
        """
        data = self.until(b"\n", limit)
        if data is not None:
            return data
        data = self.read(limit + 1)
        if len(data) > limit:
            raise self.error(
                f"expected a line of at most {limit} bytes, got a longer one", at=self.position - len(data)
            )
        return data or None

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes; fewer only at the end of the file."""
        while len(self._buffer) - self._start < size and self._fill():
            pass
        data = self._buffer[self._start : self._start + size]
        self._advance(len(data))
        return data

    def exactly(self, size: int, what: str) -> bytes:
        """Return the next `size` bytes. Raises ModelFormatError if the file ends earlier."""
        data = self.read(size)
        if len(data) < size:
            raise self.error(f"expected {what}, but the file ends")
        return data

    def floats(self, target: NDArray[np.float32], what: str) -> None:
        """Read little-endian float32 numbers into a contiguous array, chunk by chunk.

        Raises ModelFormatError if the file ends earlier, or if a number is NaN or infinite.
        """
        flat = target.reshape(-1)
        for first in range(0, flat.size, CHUNK_BYTES // 4):
            part = flat[first : first + CHUNK_BYTES // 4]
            part[:] = np.frombuffer(self.exactly(part.nbytes, what), "<f4")
            if not np.isfinite(part).all():
                at = int(np.flatnonzero(~np.isfinite(part))[0])
                place = self.position - part.nbytes + 4 * at
                raise self.error(f"expected finite numbers in {what}, got {part[at]}", at=place)

    def skip(self, size: int, what: str) -> None:
        """Skip bytes. Raises ModelFormatError if the file ends earlier."""
        while size > 0:
            size -= len(self.exactly(min(size, CHUNK_BYTES), what))

    def _advance(self, size: int) -> None:
        self._start += size
        self.position += size

    def error(self, message: str, *, at: int | None = None, code: str = "malformed") -> ModelFormatError:
        """Return the error for a place in this file: the byte `at`, else the next byte."""
        place = self.position if at is None else at
        return malformed(self.path, code, f"byte {place}: {message}", offset=place)


@contextmanager
def open_stream(path: Path) -> Iterator[WordStream]:
    """Open a file of word vectors. Raises ModelNotFoundError, ModelFormatError, OSError."""
    try:
        raw = open_file(path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: expected a file of word vectors, found no such file") from None
    with raw:
        size = raw.seek(0, io.SEEK_END)
        raw.seek(0)
        magic = raw.read(6)
        raw.seek(0)
        for start, name in _OTHER_MAGIC.items():
            if magic.startswith(start):
                raise malformed(path, "compressed", f"expected a plain or a gzip file, got {name}; decompress it first")
        packed = magic.startswith(_GZIP_MAGIC)
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if packed else raw)
        stream = WordStream(path, file, size * _MAX_EXPANSION if packed else size)
        try:
            yield stream
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise stream.error(f"expected a complete gzip file, got a damaged one: {error}") from None
