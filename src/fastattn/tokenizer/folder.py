"""The files of one folder: each is opened once, must be a regular file of bounded size, and is parsed at most once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastattn.checkpoint.files import open_regular, read_at
from fastattn.checks import quote
from fastattn.errors import ModelFormatError

MAX_FILE_BYTES = 64 * 2**20
VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "source.spm",
    "bpe.codes",
    "tekken.json",
    "tiktoken.model",
)


class Folder:
    """The files of a directory by name. A file that is missing is None, or {} where an object is wanted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._bytes: dict[str, bytes | None] = {}
        self._objects: dict[str, Mapping[str, Any]] = {}

    def path(self, name: str) -> Path:
        """The path of a file, for messages."""
        return self.directory / name

    def has(self, *names: str) -> bool:
        """True where all of these files exist."""
        return all((self.directory / name).is_file() for name in names)

    def read(self, name: str) -> bytes | None:
        """The content of a file. Raises ModelFormatError for what is no regular file of at most 64 MiB."""
        if name not in self._bytes:
            self._bytes[name] = read_bounded(self.directory / name)
        return self._bytes[name]

    def text(self, name: str) -> str | None:
        """The content of a UTF-8 file without a byte order mark."""
        data = self.read(name)
        return None if data is None else _decoded(self.directory / name, data)

    def json(self, name: str) -> Mapping[str, Any]:
        """The object in a JSON file."""
        if name not in self._objects:
            text = self.text(name)
            self._objects[name] = {} if text is None else _parsed(self.directory / name, text)
        return self._objects[name]


def read_bounded(path: Path) -> bytes | None:
    """A regular file of at most 64 MiB, None where there is none. Raises ModelFormatError."""
    try:
        with open_regular(path) as (descriptor, size):
            if size > MAX_FILE_BYTES:
                raise format_error(path, f"expected at most {MAX_FILE_BYTES} bytes, got {size}", "too_large")
            return read_at(descriptor, size, 0)
    except FileNotFoundError:
        if path.is_symlink():
            raise format_error(path, "expected a file, got a link to a file that is missing", "file") from None
        return None
    except OSError as error:
        raise format_error(path, f"cannot be read: {error.strerror or error}", "file") from error


def format_error(path: Path | str, problem: str, code: str = "tokenizer") -> ModelFormatError:
    """A ModelFormatError that names a file."""
    return ModelFormatError(f"{path}: {problem}", path=str(path), code=code)


def _decoded(path: Path, data: bytes) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise format_error(path, f"expected UTF-8, got {error.reason} at byte {error.start}", "utf8") from None
    if text.startswith("\ufeff"):
        raise format_error(path, "expected no byte order mark; save the file as UTF-8 without one", "utf8")
    return text


def _parsed(path: Path, text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise format_error(path, f"invalid JSON: {quote(str(error), 200)}", "json") from None
    if not isinstance(found, dict):
        raise format_error(path, f"expected a JSON object, got {type(found).__name__}")
    return found
