"""Creates a folder atomically: it is written under a temporary name, then renamed.

The unfinished folder is next to the target. Its name begins with a dot and ends with `.fastattn-part`. Its process
holds a flock on it. An unlocked one is left over from a killed process; the next run for the same target removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from fastattn.errors import ConfigError
from fastattn.files import open_raw

SUFFIX = ".fastattn-part"
_MAX_NAME_BYTES = 100
_LAST = ("model.safetensors", "config.json")  # moved last, in this order: a model does not load before the last one
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_FREE = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF, errno.ENOSYS)  # some network file systems
_NOT_BESIDE = (errno.EACCES, errno.EPERM, errno.EROFS)


class NewFolder:
    """Creates files in an unfinished folder. Use `new_folder` to get one."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def create(self, name: str) -> io.BufferedWriter:
        """Create a file, and its subfolder if the name has one. It never opens an existing file or follows a link."""
        parent, _, _ = name.rpartition("/")
        if parent:
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent, dir_fd=self._descriptor)
        return io.BufferedWriter(open_raw(name, _CREATE, "wb", dir_fd=self._descriptor))


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[NewFolder]:
    """Yield a folder that becomes `target` at the end of the `with` block; an exception discards it.

    The target must be new or an empty folder. If its parent is not writable, or the target is the root of a file
    system, the files are written in a subfolder of the target and moved up at the end, config.json last. Raises
    ConfigError if the target is neither new nor empty, or if another process created it first; OSError.
    """
    real = Path(os.path.realpath(target))
    missing = [path for path in (real.parent, *real.parent.parents) if not path.exists()]
    with contextlib.ExitStack() as cleanup:
        mode = _mode_of_free(target, real)
        real.parent.mkdir(parents=True, exist_ok=True)
        cleanup.callback(_remove_empty, missing)
        unfinished, descriptor, own_mode, inside = _start(target, real, exists=mode is not None, cleanup=cleanup)
        yield NewFolder(unfinished, descriptor)
        if inside:
            _move_up(target, real, unfinished, descriptor)
            return
        os.fchmod(descriptor, own_mode if mode is None else mode)
        try:
            os.rename(unfinished, real)
        except OSError as error:
            if error.errno in _NOT_FREE:
                raise _not_free(target, "; another process wrote to it in the meantime") from None
            raise


def _not_free(target: Path, why: str = "") -> ConfigError:
    return ConfigError(f"{target}: expected a new or an empty folder{why}")


def _mode_of_free(target: Path, real: Path) -> int | None:
    """Return the permissions of an empty folder, or None if there is nothing. Raises ConfigError for anything else."""
    try:
        status = os.lstat(real)
    except FileNotFoundError:
        if os.path.lexists(target):
            raise _not_free(target, ", got a broken link") from None
        return None
    if not stat.S_ISDIR(status.st_mode):
        raise _not_free(target, ", got a file")
    names = [name for name in os.listdir(real) if not _is_unfinished(name, real.name)]
    if names:
        raise _not_free(target)
    return stat.S_IMODE(status.st_mode)


def _start(target: Path, real: Path, *, exists: bool, cleanup: contextlib.ExitStack) -> tuple[Path, int, int, bool]:
    """Return the unfinished folder, its descriptor, its original mode, and whether it is inside the target."""
    inside = exists and (os.path.ismount(real) or any(_is_unfinished(entry, real.name) for entry in os.listdir(real)))
    if not inside:
        _remove_dead(real.parent, real.name)
        try:
            return (*_make_unfinished(real.parent, real.name, cleanup), False)
        except OSError as error:
            if not exists or error.errno not in _NOT_BESIDE:
                raise
    # Only one process at a time may write inside the target.
    if _lock(_open_directory(real, cleanup)) is False:
        raise _not_free(target, "; another process is writing to it")
    _remove_dead(real, real.name)
    return (*_make_unfinished(real, real.name, cleanup), True)


def _make_unfinished(parent: Path, name: str, cleanup: contextlib.ExitStack) -> tuple[Path, int, int]:
    """Create, open and lock a folder; return its path, descriptor and mode. `cleanup` removes it."""
    while True:
        path = parent / f"{_prefix(name)}{secrets.token_hex(8)}{SUFFIX}"
        cleanup.callback(shutil.rmtree, path, ignore_errors=True)
        os.mkdir(path)
        try:
            descriptor = _open_directory(path, cleanup)
            if _lock(descriptor) is not False and os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
                os.fchmod(descriptor, 0o700)
                return path, descriptor, mode
        except FileNotFoundError:  # another process removed it as a leftover before it was locked: try another name
            continue


def _open_directory(path: Path, cleanup: contextlib.ExitStack) -> int:
    descriptors: list[int] = []

    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    cleanup.callback(close)
    descriptors.extend(map(os.open, (path,), (_OPEN_DIRECTORY,)))  # one C call: no signal handler runs in between
    return descriptors[0]


def _lock(descriptor: int) -> bool | None:
    """Lock a file. Returns True on success, False if another process has the lock, None if locks are unsupported."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _prefix(name: str) -> str:
    short = os.fsencode(name)[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
    return f".{short}."


def _is_unfinished(entry: str, name: str) -> bool:
    token = entry.removeprefix(_prefix(name)).removesuffix(SUFFIX)
    return entry == f"{_prefix(name)}{token}{SUFFIX}" and len(token) == 16 and set(token) <= set("0123456789abcdef")


def _remove_dead(parent: Path, name: str) -> None:
    """Remove the unfinished folders of dead processes for a target. Locked ones and those of other users stay."""
    for entry in os.listdir(parent):
        if not _is_unfinished(entry, name):
            continue
        path = parent / entry
        with contextlib.ExitStack() as cleanup, contextlib.suppress(OSError):
            descriptor = _open_directory(path, cleanup)
            status = os.fstat(descriptor)
            # A finished process renamed its folder before it released the lock, so check the name after locking.
            if status.st_uid == os.geteuid() and _lock(descriptor) and os.path.samestat(status, os.lstat(path)):
                shutil.rmtree(path, ignore_errors=True)


def _move_up(target: Path, real: Path, unfinished: Path, descriptor: int) -> None:
    """Move the files of an unfinished folder into its parent, in an order in which no partial result loads."""
    if any(not _is_unfinished(entry, real.name) for entry in os.listdir(real)):
        raise _not_free(target, "; another process wrote to it in the meantime")
    names = sorted(os.listdir(descriptor), key=lambda name: (_LAST.index(name) + 1 if name in _LAST else 0, name))
    moved: list[str] = []
    try:
        for name in names:
            moved.append(name)
            os.rename(name, real / name, src_dir_fd=descriptor)
    except BaseException:
        for name in moved:
            with contextlib.suppress(OSError):
                os.rename(real / name, name, dst_dir_fd=descriptor)
        raise


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, until one is not empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
