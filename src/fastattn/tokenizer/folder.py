"""The files of a folder. Each must be a regular file of bounded size; it is opened once and parsed at most once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastattn.checks import quote
from fastattn.errors import ModelFormatError
from fastattn.files import FileSet
from fastattn.jsonfile import TOKENIZER_LIMITS, JsonError, parse_lenient, read_bounded

if TYPE_CHECKING:
    from typing_extensions import Self

_BOM = "\ufeff"


class Folder:
    """The files of a directory by name. A missing file gives None, or {} for a JSON object.

    A `with` block closes the files. Every method raises ModelFormatError, which names the file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = FileSet()
        self._bytes: dict[str, bytes | None] = {}
        self._objects: dict[str, Mapping[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def path(self, name: str) -> Path:
        """Return the path of a file, for messages."""
        return self.directory / name

    def has(self, *names: str) -> bool:
        """Return whether all of these files exist."""
        return all((self.directory / name).is_file() for name in names)

    def read(self, name: str) -> bytes | None:
        """Read a regular file of at most 64 MiB."""
        if name not in self._bytes:
            self._bytes[name] = self._read(self.directory / name)
        return self._bytes[name]

    def text(self, name: str) -> str | None:
        """Read a UTF-8 file, without the byte order mark that a JSON file may have."""
        data = self.read(name)
        if data is None:
            return None
        path = self.directory / name
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise format_error(path, f"expected UTF-8, got {error.reason} at byte {error.start}", "utf8") from None
        if not text.startswith(_BOM):
            return text
        if not name.endswith(".json"):
            raise format_error(path, "expected no byte order mark; save the file as UTF-8 without one", "utf8")
        return text.removeprefix(_BOM)

    def json(self, name: str) -> Mapping[str, Any]:
        """Read the object in a JSON file."""
        if name not in self._objects:
            data = self.read(name)
            self._objects[name] = {} if data is None else _object(self.directory / name, data)
        return self._objects[name]

    def check_unchanged(self) -> None:
        """Refuse a folder if a requested file was replaced, written to, removed or added since the request."""
        self._files.check_unchanged()

    def _read(self, path: Path) -> bytes | None:
        try:
            return read_bounded(self._files.open(path), TOKENIZER_LIMITS.n_bytes)
        except FileNotFoundError:
            if path.is_symlink():
                raise format_error(path, "expected a file, got a link to a file that is missing", "file") from None
            return None
        except OSError as error:
            raise format_error(path, f"cannot be read: {error.strerror or error}", "file") from error


def format_error(path: Path | str, problem: str, code: str = "tokenizer") -> ModelFormatError:
    """Return a ModelFormatError that names a file."""
    return ModelFormatError(f"{path}: {problem}", path=str(path), code=code)


def _object(path: Path, data: bytes) -> Mapping[str, Any]:
    try:
        found = parse_lenient(data, str(path), TOKENIZER_LIMITS)
    except JsonError as error:
        raise format_error(path, quote(str(error), 200)[1:-1], error.code) from None
    if not isinstance(found, dict):
        raise format_error(path, f"expected a JSON object, got {type(found).__name__}")
    return found
