"""Writes vectors to a .npy file in parts. For a pipe or a device, all of them are collected in memory first."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

_HEADER_BYTES = 128  # a multiple of 64, as numpy aligns arrays, with room for the largest shape


class VectorFile:
    """A float32 array [n, d] in a .npy file, written in parts [n_part, d].

    A new or regular file appears, or is replaced, when all rows are written; an error leaves it unchanged. Any other
    file, such as a pipe, gets all rows at the end.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.shape = (0, 0)
        self._parts: list[NDArray[np.float32]] = []
        self._target = Path(path).resolve()  # a link continues to point to the file
        self._part: Path | None = None
        self._file: IO[bytes]
        if self._target.exists():
            if not stat.S_ISREG(self._target.stat().st_mode):
                self._file = open(path, "wb")  # noqa: SIM115  # closed by `__exit__`
                return
            with open(path, "r+b"):  # raises now if it cannot be written
                pass
        part = self._target.with_name(f".{self._target.name}.{os.getpid()}.part")
        try:
            self._file = open(part, "wb")  # noqa: SIM115  # closed by `__exit__`
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        self._part = part

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            self._file.close()
            if self._part is not None:
                self._part.unlink(missing_ok=True)

    def write(self, rows: NDArray[np.float32]) -> None:
        """Append rows [n_part, d]. Raises InputError if they cannot be written, for example to a full disk."""
        count, width = rows.shape
        if self._part is None:
            self._parts.append(rows)
        elif not self.shape[0]:
            self._write(_header((0, width)))
        if self._part is not None:
            self._write(np.ascontiguousarray(rows, "<f4").tobytes())
        self.shape = (self.shape[0] + count, width)

    def _finish(self) -> None:
        if self._part is None:
            self._write(_header(self.shape))
            for rows in self._parts:
                self._write(np.ascontiguousarray(rows, "<f4").tobytes())
            self._file.flush()
            return
        self._file.seek(0)
        self._write(_header(self.shape))
        self._file.close()
        mode = self._target.stat().st_mode if self._target.exists() else None
        if mode is not None:
            os.chmod(self._part, stat.S_IMODE(mode))
        os.replace(self._part, self._target)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise InputError(f"{self._path}: cannot be written: {error.strerror or error}") from None


def _header(shape: tuple[int, int]) -> bytes:
    """Return the header of version 1.0 of numpy's format, always of the same length."""
    text = repr({"descr": "<f4", "fortran_order": False, "shape": shape})
    length = _HEADER_BYTES - 10  # after the magic bytes and the length itself
    return np.lib.format.magic(1, 0) + length.to_bytes(2, "little") + f"{text:<{length - 1}}\n".encode("latin-1")
