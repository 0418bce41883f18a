"""Regular files that are opened once. FIFOs and devices are refused, and a replaced file is detected."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from fastattn.checks import quote
from fastattn.errors import ModelFormatError

if TYPE_CHECKING:
    from typing_extensions import Self

_recording: ContextVar[set[Path] | None] = ContextVar("_recording", default=None)
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def recorded_files() -> Iterator[set[Path]]:
    """Collect the paths of the files that are opened inside a `with` block, for a report of what is used."""
    found: set[Path] = set()
    token = _recording.set(found)
    try:
        yield found
    finally:
        _recording.reset(token)


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
    """Call os.open and return a file object instead of a bare descriptor. The path must not be a directory.

    A signal handler can raise between two Python instructions, and a descriptor would leak there. Here os.open hands it
    to the object that closes it within one call of C code.
    """
    opened = map(functools.partial(os.open, mode=0o666, dir_fd=dir_fd), (path,), (flags,))
    return next(map(io.FileIO, opened, (mode,)))


@contextlib.contextmanager
def replaced_file(target: Path) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `target` at the end of the `with` block; an error leaves `target` unchanged.

    Raises OSError that names `target`, not the unfinished file in the same folder.
    """
    # Random, because processes on several machines may write the same file.
    part = target.with_name(f".{target.name}.{os.urandom(8).hex()}.fastattn-part")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(target)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(part), part):  # not about this file
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _require_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "expected a file, got a directory", str(path))
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "expected a regular file, got a symbolic link", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "expected a regular file, got a device, pipe or socket", str(path))


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read up to `size` bytes from `offset`; fewer only at the end of the file."""
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
    """Identifies a file and its last change."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def same_content(self, other: FileIdentity) -> bool:
        """Return whether the content is unchanged; mode, owner or number of links may have changed.

        Only the owner of a file can reset its mtime after writing to it.
        """
        return replace(self, ctime_ns=other.ctime_ns) == other


class SourceFile:
    """A regular file that stays open until `close`, so every read is from the same file.

    After `close`, `opened` opens the path again and refuses a different file.
    """

    _file: io.FileIO | None = None  # on the class, so `__del__` finds it even if `__init__` was interrupted

    def __init__(self, path: Path, *, follow_links: bool = True) -> None:
        """Open the file. Raises OSError if it is not a regular file."""
        self.path = path
        self._file = open_file(path, follow_links=follow_links)
        recording = _recording.get()
        if recording is not None:
            recording.add(path)
        self.identity = FileIdentity.of(os.fstat(self._file.fileno()))

    @property
    def size(self) -> int:
        """The size in bytes when the file was opened."""
        return self.identity.size

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Yield the descriptor. Raises ModelFormatError (code "changed") if a closed file was changed."""
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
        """Read up to `size` bytes from `offset`; fewer only at the end of the file."""
        with self.opened() as descriptor:
            return read_at(descriptor, size, offset)

    def check_unchanged(self) -> None:
        """Raise ModelFormatError (code "changed") if the path now names another file, or the file was written to."""
        if self._file is not None:
            self._require_same(os.fstat(self._file.fileno()))
        try:
            status = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise changed(self.path) from None
        self._require_same(status)

    def close(self) -> None:
        """Close the descriptor. The identity remains available."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()

    def _require_same(self, status: os.stat_result) -> None:
        if FileIdentity.of(status) != self.identity:
            raise changed(self.path)


class FileSet:
    """Files that are read as one set. Each is opened once and stays open until `close`.

    `check_unchanged` checks all of them. A `with` block closes them.
    """

    def __init__(self) -> None:
        self._files: dict[Path, SourceFile] = {}
        self._absent: set[Path] = set()

    def open(self, path: Path, *, follow_links: bool = True) -> SourceFile:
        """Return the file at a path, and open it on first use. Raises OSError; a missing file must stay missing."""
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
        """Record that there is no file at a path. `check_unchanged` fails if one appears."""
        self._absent.add(path)

    def check_unchanged(self) -> None:
        """Raise ModelFormatError (code "changed") if a file was replaced, written to, removed or added."""
        for file in self._files.values():
            file.check_unchanged()
        for path in self._absent:
            if os.path.exists(path):
                raise changed(path)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def identity_of(path: Path) -> FileIdentity | None:
    """Return the identity of the file at a path, or None if there is no file."""
    try:
        return FileIdentity.of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def changed(path: Path, since: str = "it was opened", *, advice: str = "load it again") -> ModelFormatError:
    """Return the error (code "changed") for a file that differs from the one read before."""
    return malformed(path, "changed", f"expected the file as it was when {since}, got a different one; {advice}")


def malformed(
    path: Path, code: str, message: str, *, tensor: str | None = None, offset: int | None = None
) -> ModelFormatError:
    """Return the error for a file, or for a tensor in it."""
    where = str(path) if tensor is None else f"{path}: tensor {quote(tensor)}"
    return ModelFormatError(f"{where}: {message}", path=str(path), tensor=tensor, offset=offset, code=code)
