"""One SHA-256 for the files of a folder that a model was loaded from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fastattn.checkpoint.digests import file_digest
from fastattn.files import FileIdentity, SourceFile, changed, identity_of

_SINCE, _ADVICE = "the model was loaded", "load the model again"


@dataclass(frozen=True, slots=True)
class FolderStamp:
    """The files that a model was loaded from, and their state: names relative to the folder, and identities."""

    path: Path
    files: tuple[tuple[str, FileIdentity], ...]

    @classmethod
    def of(cls, path: Path, files: Iterable[Path]) -> FolderStamp:
        """Record the state of files of a folder. Raises ModelFormatError if one no longer exists."""
        root = os.path.abspath(path)
        found = []
        for file in files:
            identity = identity_of(file)
            if identity is None:
                raise changed(file, "it was opened", advice=_ADVICE)
            found.append((os.path.relpath(os.path.abspath(file), root), identity))
        return cls(Path(root), tuple(sorted(found, key=lambda item: item[0])))

    def digest(self, file_digest: Callable[[Path, FileIdentity], str]) -> str:
        """Return the SHA-256 of the names and contents.

        file_digest: returns the SHA-256 of a file with this identity.
        """
        whole = hashlib.sha256()
        for name, identity in self.files:
            whole.update(f"{name}\0{file_digest(self.path / name, identity)}\n".encode())
        return whole.hexdigest()


def digest_of(path: Path, identity: FileIdentity) -> str:
    """Return the SHA-256 of a file. Raises ModelFormatError if it does not have this identity, OSError."""
    try:
        source = SourceFile(path)
    except FileNotFoundError:
        raise changed(path, _SINCE, advice=_ADVICE) from None
    try:
        if source.identity != identity:
            raise changed(path, _SINCE, advice=_ADVICE)
        found = file_digest(source)
        source.check_unchanged()
        return found
    finally:
        source.close()
