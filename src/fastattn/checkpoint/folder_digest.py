"""One SHA-256 for the files of a model folder that decide its results: configs, weights and tokenizers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fastattn.checkpoint.digests import file_digest
from fastattn.errors import ConfigError
from fastattn.files import FileIdentity, SourceFile, changed, identity_of

_SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".tiktoken")
_MAX_FILES, _MAX_DEPTH = 1000, 3


@dataclass(frozen=True, slots=True)
class FolderStamp:
    """The files of a folder and their state at one time: name inside the folder to identity."""

    path: Path
    files: tuple[tuple[str, FileIdentity], ...]

    @classmethod
    def of(cls, path: Path) -> FolderStamp:
        """Record the files of a folder and of its subfolders, three levels deep. Raises ConfigError, OSError."""
        names = sorted(islice(_names(path, "", _MAX_DEPTH), _MAX_FILES + 1))
        if len(names) > _MAX_FILES:
            raise ConfigError(f"{path}: expected at most {_MAX_FILES} files in a model folder, got more")
        found = ((name, identity_of(path / name)) for name in names)
        return cls(Path(os.path.abspath(path)), tuple((name, known) for name, known in found if known is not None))

    def digest(self, file_digest: Callable[[Path, FileIdentity], str]) -> str:
        """Return the SHA-256 of the names and contents. Raises ModelFormatError if a file changed, OSError.

        file_digest: returns the SHA-256 of a file with this identity.
        """
        if FolderStamp.of(self.path) != self:
            raise changed(self.path, "the model was loaded", advice="load the model again")
        whole = hashlib.sha256()
        for name, identity in self.files:
            whole.update(f"{name}\0{file_digest(self.path / name, identity)}\n".encode())
        return whole.hexdigest()


def digest_of(path: Path, identity: FileIdentity) -> str:
    """Return the SHA-256 of a file. Raises ModelFormatError if it does not have this identity, OSError."""
    source = SourceFile(path)
    try:
        if source.identity != identity:
            raise changed(path, "the model was loaded", advice="load the model again")
        found = file_digest(source)
        source.check_unchanged()
        return found
    finally:
        source.close()


def _names(root: Path, inside: str, depth: int) -> Iterator[str]:
    with os.scandir(root / inside) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if depth > 1:
                    yield from _names(root, f"{inside}{entry.name}/", depth - 1)
            elif entry.name.endswith(_SUFFIXES):
                yield f"{inside}{entry.name}"
