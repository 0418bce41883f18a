"""Reads the metadata of a GGUF file key by key. Each key is used, known to change nothing, or named in an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from fastattn.checkpoint.gguf.reader import GgufFile, Value
from fastattn.checks import quote, shown_names
from fastattn.errors import ConfigError

MAX_SIZE = 2**31 - 1
_MAX_SHOWN = 5


class Keys:
    """The keys that begin with a prefix. A missing key gives the default; it is required if the default is None.

    Every method raises ConfigError for a value of the wrong type.
    """

    def __init__(self, gguf: GgufFile, prefix: str) -> None:
        self._metadata: Mapping[str, Value] = gguf.metadata
        self._prefix, self._path = prefix, gguf.path
        self._taken: set[str] = set()

    def raw(self, key: str) -> Any:
        """Return the unchecked value, None if it is missing. The key counts as used."""
        self._taken.add(key)
        return self._metadata.get(self._prefix + key)

    def fail(self, key: str, expected: str) -> NoReturn:
        found = self.raw(key)
        shown = "none" if found is None else quote(found.tolist() if isinstance(found, np.ndarray) else found, 80)
        raise ConfigError(f"{self._path}: {self._prefix}{key}: expected {expected}, got {shown}")

    def size(self, key: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE) -> int:
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not low <= value <= high:
            self.fail(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Read a finite number. A float32 is returned as the shortest decimal number that rounds to it."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not math.isfinite(value):
            self.fail(key, "a finite number")
        if abs(value) > float(np.finfo(np.float32).max):
            return float(value)
        rounded = np.float32(value)
        return float(str(rounded)) if rounded == value else float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            self.fail(key, "a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if type(value) is not bool:
            self.fail(key, "true or false")
        return value

    def texts(self, key: str) -> list[str] | None:
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, list):
            self.fail(key, "an array of texts")
        return value

    def numbers(self, key: str, kinds: str) -> np.ndarray[Any, np.dtype[Any]] | None:
        """Read an array of numbers. kinds: the allowed kinds of numpy dtypes, such as "iu"."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
            self.fail(key, "an array of numbers")
        return value

    def must_be(self, key: str, *allowed: object) -> None:
        """Refuse a value other than the supported ones. A missing key is allowed."""
        value = self.raw(key)
        if value is not None and not any(type(value) is type(other) and value == other for other in allowed):
            self.fail(key, " or ".join(map(repr, allowed)))

    def ignore(self, *keys: str) -> None:
        """Mark keys that change nothing here."""
        self._taken.update(keys)

    def finish(self) -> None:
        """Refuse the keys that were not read, because they may change results."""
        found = (key for key in self._metadata if key.startswith(self._prefix))
        others = [key for key in found if key[len(self._prefix) :] not in self._taken]
        if others:
            shown = shown_names((quote(key, 80) for key in others), len(others), _MAX_SHOWN)
            raise ConfigError(f"{self._path}: expected only keys that fastattn supports, got {shown}")
