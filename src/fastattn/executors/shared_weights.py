"""Packed weights that several processes on one machine map: in a sealed memfd, which no process can change.

The process that loads a model first packs its weights into a memfd, and notes its process id and descriptor in a
folder of the user. Others with the same key open the memfd through /proc and map it too. Each of them notes its own
descriptor, so the weights stay available until the last process ends; the kernel then frees them. Linux only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn import _core
from fastattn.errors import ConfigError
from fastattn.files import read_at

_LINE = 64  # alignment of arrays
_MOST_HEAD_BYTES = 64 << 20

# A weight's use, format, rows, columns, and where its data, scales and sums begin.
Entry = tuple[str, str, int, int, tuple[int, int, int]]


class SharedWeights:
    """An open memfd with packed weights, and what is in it. `close` ends this process's claim, not its mappings."""

    def __init__(self, descriptor: int, n_bytes: int, entries: Mapping[str, Entry], note: Path) -> None:
        self.descriptor, self.n_bytes, self.entries, self._note = descriptor, n_bytes, dict(entries), note
        self._process = os.getpid()

    def map_into(self, engine: _core.Engine) -> None:
        """Give an engine the weights."""
        engine.load_mapped(self.descriptor, self.n_bytes, [(name, *entry) for name, entry in self.entries.items()])

    def close(self) -> None:
        """Remove the note and close the descriptor."""
        if self.descriptor >= 0:
            if self._process == os.getpid():  # not the child of a fork
                with contextlib.suppress(OSError):
                    self._note.unlink()
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def require_support() -> None:
    """Raise ConfigError if this system cannot share weights."""
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        raise ConfigError(f"share_weights: expected Linux, got {sys.platform}; load without it")


def share(
    key: Mapping[str, Any],
    pack: Callable[[], Iterator[tuple[str, Entry, list[NDArray[np.uint8]]]]],
    check: Callable[[], None],
) -> SharedWeights:
    """Return the weights of a key: those of another process, or new ones.

    key: JSON values that determine every byte. pack: yields each weight with its arrays; the offsets of its entry are
    replaced. check: raises if what was packed is not what the key names. Raises ConfigError, OSError, and what these
    two raise.
    """
    require_support()
    import fcntl

    core = os.stat(_core.__file__)
    build = [_core.version, _core.active_target(), core.st_dev, core.st_ino, core.st_size, core.st_mtime_ns]
    text = json.dumps([build, dict(key)], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()
    folder = _folder()
    with open(folder / f"{digest}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # so that processes that start together pack once
        return _find(folder, digest) or _create(folder, digest, pack, check)


def _folder() -> Path:
    """Return the folder of notes, which only this user can read. Raises ConfigError for one that others can write."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder = Path(base) / f"fastattn-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(f"share_weights: expected a folder of this user with mode 700, got another {folder}")
    return folder


def _find(folder: Path, digest: str) -> SharedWeights | None:
    """Return the weights that another process has open. Notes of processes that ended are removed."""
    for note in sorted(folder.glob(f"{digest}-*-*")):
        process, descriptor = note.name.split("-")[1:]
        opened = _open_sealed(f"/proc/{process}/fd/{descriptor}", digest)
        if opened >= 0:
            return _opened(folder, digest, opened)
        if int(process) != os.getpid():
            with contextlib.suppress(OSError):
                note.unlink()
    return None


def _seals() -> int:
    import fcntl

    return fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def _open_sealed(path: str, digest: str) -> int:
    """Open a memfd of this user for reading; -1 if the path is not the one of this digest with all seals."""
    import fcntl

    try:
        if os.readlink(path) != f"/memfd:fastattn-{digest} (deleted)":
            return -1
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        if os.fstat(descriptor).st_uid == os.getuid() and fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == _seals():
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return -1


def _opened(folder: Path, digest: str, descriptor: int) -> SharedWeights:
    """Read what a sealed memfd contains, and note this process's descriptor of it."""
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(read_at(descriptor, 8, size - 8), "little")
    if not 0 < length <= min(size - 8, _MOST_HEAD_BYTES):
        raise ConfigError(f"share_weights: expected a table of at most {_MOST_HEAD_BYTES} bytes, got {length}")
    table = json.loads(read_at(descriptor, length, size - 8 - length))
    entries = {name: (*entry[:4], tuple(entry[4])) for name, entry in table.items()}
    note = folder / f"{digest}-{os.getpid()}-{descriptor}"
    note.touch(mode=0o600)
    return SharedWeights(descriptor, size, entries, note)


def _create(
    folder: Path,
    digest: str,
    pack: Callable[[], Iterator[tuple[str, Entry, list[NDArray[np.uint8]]]]],
    check: Callable[[], None],
) -> SharedWeights:
    import fcntl

    writing = os.memfd_create(f"fastattn-{digest}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        table: dict[str, Entry] = {}
        end = 0
        for name, entry, arrays in pack():
            offsets = [0, 0, 0]
            for i, array in enumerate(arrays):
                offsets[i] = end
                _write(writing, array.data.cast("B"), end)
                end = -(-(end + array.nbytes) // _LINE) * _LINE
            table[name] = (*entry[:4], (offsets[0], offsets[1], offsets[2]))
        check()
        head = json.dumps(table).encode()
        _write(writing, memoryview(head + len(head).to_bytes(8, "little")), end)
        fcntl.fcntl(writing, fcntl.F_ADD_SEALS, _seals())
        # For reading only: some kernels do not map a sealed file that is open for writing.
        opened = _open_sealed(f"/proc/self/fd/{writing}", digest)
    finally:
        os.close(writing)
    if opened < 0:
        raise ConfigError("share_weights: expected /proc with this process's files, found none; load without it")
    return _opened(folder, digest, opened)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while len(data):
        n = os.pwrite(descriptor, data[: 1 << 30], offset)
        data, offset = data[n:], offset + n
