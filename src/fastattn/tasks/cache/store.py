"""The SQLite file of an embeddings cache: entries of bytes by key, each with a checksum.

Several threads and processes can use one file: reads need no lock (write-ahead log), and a write waits for other
writes. Each write is atomic, even if the process is killed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastattn.errors import CacheError

_APPLICATION_ID = 0x66617461  # "fata" in the header of the file
_FORMAT = 1
_WAIT_SECONDS = 30.0
_CHECKSUM_BYTES = 8
_MAX_PARAMETERS = 500  # SQLite allows 999 or more in one statement
_PAGE_BYTES = 4096
_SCHEMA = f"""
CREATE TABLE entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX by_use ON entries (used);
CREATE TABLE digests (file TEXT PRIMARY KEY, digest TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_FORMAT};
"""
# SQLite's primary error codes (sqlite3.h): a lock of another process, damaged pages, a file that is not a database.
_BUSY, _CORRUPT, _NOT_A_DATABASE = 5, 11, 26
_log = logging.getLogger("fastattn")


class Store:
    """Entries of bytes in a file. max_bytes: the least recently used ones are deleted to stay below; None: no limit."""

    _connection: sqlite3.Connection | None = None  # on the class, so `__del__` finds it even if `__init__` failed
    _owner = 0  # the process that opened the connection

    def __init__(self, path: Path, max_bytes: int | None) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        self._closed = False
        self._inherited: list[sqlite3.Connection] = []  # of the parent process, which must stay open
        try:
            with self._using() as connection:
                self._check_format(connection)
        except BaseException:
            self.close()
            raise

    # -- the connection -----------------------------------------------------------------------------------------

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection of this process and convert errors to CacheError."""
        if self._owner not in (0, os.getpid()):
            self._lock = threading.RLock()  # another thread of the parent process may have held the lock
        with self._lock:
            try:
                yield self._open()
            except sqlite3.Error as error:
                raise self._error(error) from error
            except (TypeError, ValueError) as error:  # a value of a type that the tables do not allow, or invalid text
                raise self._damaged(str(error)) from error

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise CacheError(f"{self.path}: expected an open cache, got one after close()")
        if self._connection is None or self._owner != os.getpid():  # SQLite must not be used across a fork
            if self._connection is not None:
                self._inherited.append(self._connection)
            self._connection = self._connect()
            self._owner = os.getpid()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=16
        )
        try:
            _use_write_ahead_log(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_format(self, connection: sqlite3.Connection) -> None:
        """Create the tables in a new file, and refuse files of other programs."""
        with self._writing(connection):
            found = _number(connection, "PRAGMA application_id")
            version = _number(connection, "PRAGMA user_version")
            if not _number(connection, "SELECT count(*) FROM sqlite_master"):
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
            elif found != _APPLICATION_ID:
                raise CacheError(f"{self.path}: expected an embeddings cache, got another SQLite database")
            elif version != _FORMAT:
                raise CacheError(f"{self.path}: expected format {_FORMAT} of the cache, got {version}; delete the file")

    @contextmanager
    def _writing(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Write everything inside the block, or nothing."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _error(self, error: sqlite3.Error) -> CacheError:
        if _code(error) in (_CORRUPT, _NOT_A_DATABASE):
            return self._damaged(str(error))
        return CacheError(f"{self.path}: the embeddings cache cannot be used: {error}")

    def _damaged(self, why: str) -> CacheError:
        return CacheError(f"{self.path}: expected an embeddings cache, got a damaged file ({why}); delete it")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None and self._owner == os.getpid():
                self._connection.close()
                self._connection = None
            self._closed = True

    def __del__(self) -> None:
        if self._connection is not None and self._owner == os.getpid():
            self._connection.close()

    # -- entries ------------------------------------------------------------------------------------------------

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the data of the known keys. Raises CacheError, also for an entry with a wrong checksum."""
        found: dict[bytes, bytes] = {}
        with self._using() as connection:
            for part in _parts(keys):
                rows = connection.execute(f"SELECT key, data FROM entries WHERE key IN ({_marks(part)})", part)
                for key, data in rows:
                    if not isinstance(data, bytes) or data[:_CHECKSUM_BYTES] != _checksum(key, data[_CHECKSUM_BYTES:]):
                        raise self._damaged("an entry has a wrong checksum")
                    found[key] = data[_CHECKSUM_BYTES:]
        return found

    def touch(self, keys: Sequence[bytes]) -> None:
        """Record that the keys were used now, if the size is limited."""
        if self.max_bytes is None or not keys:
            return
        with self._storing(), self._using() as connection, self._writing(connection):
            now = self._next_use(connection)
            for part in _parts(keys):
                connection.execute(f"UPDATE entries SET used = ? WHERE key IN ({_marks(part)})", (now, *part))

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Add entries. If they cannot be written, for example to a full disk, log a warning and go on."""
        with self._storing(), self._using() as connection, self._writing(connection):
            now = self._next_use(connection)
            self._evict(connection, sum(_room(data) for data in entries.values()))
            connection.executemany(
                "INSERT OR IGNORE INTO entries (key, used, data) VALUES (?, ?, ?)",
                [(key, now, _checksum(key, data) + data) for key, data in entries.items()],
            )

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Log failures to write instead of raising them: the results are valid anyway. Damage is still an error."""
        try:
            yield
        except CacheError as error:
            cause = error.__cause__
            if not isinstance(cause, sqlite3.OperationalError) or _code(cause) in (_CORRUPT, _NOT_A_DATABASE):
                raise
            _log.warning("%s: results are not stored: %s", self.path, cause)

    def _next_use(self, connection: sqlite3.Connection) -> int:
        return 1 + _number(connection, "SELECT coalesce(max(used), 0) FROM entries")

    def _evict(self, connection: sqlite3.Connection, needed_bytes: int) -> None:
        """Delete the least recently used entries until the new ones fit."""
        if self.max_bytes is None:
            return
        while (excess := self._used_bytes(connection) + needed_bytes - self.max_bytes) > 0:
            rows = connection.execute("SELECT id, length(data) FROM entries ORDER BY used, id LIMIT 1000").fetchall()
            doomed, freed = [], 0
            for row, size in rows:
                if freed >= excess:
                    break
                doomed.append((row,))
                freed += _room_of(size)
            if not doomed:
                return
            connection.executemany("DELETE FROM entries WHERE id = ?", doomed)

    @staticmethod
    def _used_bytes(connection: sqlite3.Connection) -> int:
        pages, free = (_number(connection, f"PRAGMA {name}") for name in ("page_count", "freelist_count"))
        return (pages - free) * _number(connection, "PRAGMA page_size")

    # -- the whole cache ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._using() as connection:
            return _number(connection, "SELECT count(*) FROM entries")

    def size_bytes(self) -> int:
        """Return the bytes that the entries use in the file."""
        with self._using() as connection:
            return self._used_bytes(connection)

    def clear(self) -> None:
        """Delete all entries and free the space."""
        with self._using() as connection:
            with self._writing(connection):
                connection.execute("DELETE FROM entries")
                connection.execute("DELETE FROM digests")
            connection.execute("VACUUM")

    def digest(self, file: str) -> str | None:
        """Return the stored SHA-256 of a file. file: describes the file and its last change."""
        with self._using() as connection:
            row = connection.execute("SELECT digest FROM digests WHERE file = ?", (file,)).fetchone()
        return None if row is None else str(row[0])

    def put_digest(self, file: str, digest: str) -> None:
        """Store the SHA-256 of a file."""
        with self._storing(), self._using() as connection, self._writing(connection):
            connection.execute("INSERT OR REPLACE INTO digests VALUES (?, ?)", (file, digest))


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Change the journal mode. SQLite fails at once if another process has a lock on the file, so this waits for it."""
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _code(error) != _BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _code(error: sqlite3.Error) -> int | None:
    """Return SQLite's primary error code; before Python 3.11, only the codes that this module names, else None."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        texts = {"locked": _BUSY, "malformed": _CORRUPT, "not a database": _NOT_A_DATABASE}
        return next((known for text, known in texts.items() if text in str(error)), None)
    return int(code) & 0xFF


def _number(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])


def _checksum(key: bytes, data: bytes) -> bytes:
    return hashlib.sha256(key + data).digest()[:_CHECKSUM_BYTES]


def _room(data: bytes) -> int:
    return _room_of(len(data) + _CHECKSUM_BYTES)


def _room_of(size: int) -> int:
    """Return the bytes of the file that an entry needs: its data in whole pages if it is large, and its index rows."""
    overhead = 150
    return size + overhead if size < _PAGE_BYTES // 4 else -(-(size + overhead) // _PAGE_BYTES) * _PAGE_BYTES


def _parts(keys: Sequence[bytes]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(keys), _MAX_PARAMETERS):
        yield keys[start : start + _MAX_PARAMETERS]


def _marks(keys: Sequence[bytes]) -> str:
    return ",".join("?" * len(keys))
