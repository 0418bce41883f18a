"""Regular files, opened once: a FIFO or a device is refused instead of being read, and a replaced file is noticed."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastattn.errors import ModelFormatError

if TYPE_CHECKING:
    from typing_extensions import Self

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def open_file(path: Path, *, follow_links: bool = True) -> io.FileIO:
    """Open a regular file for reading. Raises OSError for anything else; never blocks."""
    _require_regular(os.stat(path, follow_symlinks=follow_links), path)
    file = open_raw(path, _FLAGS if follow_links else _FLAGS | os.O_NOFOLLOW)
    try:
        _require_regular(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def open_raw(path: Path | str, flags: int, mode: str = "rb", *, dir_fd: int | None = None) -> io.FileIO:
    """os.open with a file object in place of the bare descriptor; the path must not be a directory.

    A signal handler can raise between two Python instructions, where a descriptor would be lost. Here it goes from
    os.open to the object that closes it within one call of C code.
    """
    opened = map(functools.partial(os.open, mode=0o666, dir_fd=dir_fd), (path,), (flags,))
    return next(map(io.FileIO, opened, (mode,)))


def _require_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file, got a directory", str(path))
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "expected a regular file, got a symbolic link", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "expected a regular file, got a device, pipe or socket", str(path))


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, int]]:
    """A file descriptor and the size in bytes of a regular file. Raises OSError for anything else; never blocks."""
    with open_file(path) as file:
        yield file.fileno(), os.fstat(file.fileno()).st_size


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes from `offset`; fewer only at the end of the file."""
    chunks = []
    while size > 0:
        chunk = os.pread(descriptor, min(size, 1 << 30), offset)
        if not chunk:
            break
        chunks.append(chunk)
        size -= len(chunk)
        offset += len(chunk)
    return b"".join(chunks)


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Which file it is, and when it was last changed."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def same_content(self, other: FileIdentity) -> bool:
        """Whether nothing was written to the file, whose mode, owner or number of links may have changed.

        Only the owner of a file can set its mtime back after writing to it.
        """
        return replace(self, ctime_ns=other.ctime_ns) == other


class SourceFile:
    """A regular file that was opened once. It stays open until `close`, so that every read is of the same file.

    After `close`, `opened` opens it again and refuses another file.
    """

    _file: io.FileIO | None = None  # of the class, so that `__del__` finds it whatever interrupts `__init__`

    def __init__(self, path: Path, *, follow_links: bool = True) -> None:
        """Raises OSError for what is no regular file."""
        self.path = path
        self._file = open_file(path, follow_links=follow_links)
        self.identity = FileIdentity.of(os.fstat(self._file.fileno()))

    @property
    def size(self) -> int:
        """Bytes when it was opened."""
        return self.identity.size

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """The descriptor. Raises ModelFormatError (code "changed") where a closed file was replaced or written to."""
        if self._file is not None:
            yield self._file.fileno()
            return
        with open_file(self.path) as file:
            found = FileIdentity.of(os.fstat(file.fileno()))
            if (found.device, found.inode) != (self.identity.device, self.identity.inode):
                raise changed(self.path)
            yield file.fileno()
            self._require_same(os.fstat(file.fileno()))

    def read(self, size: int, offset: int = 0) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        with self.opened() as descriptor:
            return read_at(descriptor, size, offset)

    def check_unchanged(self) -> None:
        """Raise ModelFormatError (code "changed") where the path names another file now, or the file was written to."""
        if self._file is not None:
            self._require_same(os.fstat(self._file.fileno()))
        try:
            status = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise changed(self.path) from None
        self._require_same(status)

    def close(self) -> None:
        """Close the descriptor; its identity stays known."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()

    def _require_same(self, status: os.stat_result) -> None:
        if FileIdentity.of(status) != self.identity:
            raise changed(self.path)


class FileSet:
    """Files that are read as one set, each opened once and stored open until `close`; `check_unchanged` compares all.

    A `with` block closes them.
    """

    def __init__(self) -> None:
        self._files: dict[Path, SourceFile] = {}
        self._absent: set[Path] = set()

    def open(self, path: Path, *, follow_links: bool = True) -> SourceFile:
        """The file at a path, opened when first asked for. Raises OSError; a file that is missing must stay so."""
        found = self._files.get(path)
        if found is None:
            try:
                found = SourceFile(path, follow_links=follow_links)
            except FileNotFoundError:
                self.expect_missing(path)
                raise
            self._files[path] = found
        return found

    def expect_missing(self, path: Path) -> None:
        """Record that there is no file at a path, which must stay so."""
        self._absent.add(path)

    def check_unchanged(self) -> None:
        """Raise ModelFormatError (code "changed") where a file was replaced, written to, removed or added since."""
        for file in self._files.values():
            file.check_unchanged()
        for path in self._absent:
            if os.path.exists(path):
                raise changed(path)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def identity_of(path: Path) -> FileIdentity | None:
    """The identity of the file at a path, None where there is none."""
    try:
        return FileIdentity.of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def changed(path: Path, since: str = "it was opened", *, advice: str = "load it again") -> ModelFormatError:
    """The error (code "changed") for a file that is not the one that was read before."""
    message = f"{path}: expected the file as it was when {since}, got another; {advice}"
    return ModelFormatError(message, path=str(path), code="changed")
