"""Reads a JSON object of settings. Each key is used, known to change nothing, or reported in a warning or an error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from fastattn.checks import is_text, quote, shown_names
from fastattn.errors import ConfigError

_log = logging.getLogger("fastattn")
_Default = TypeVar("_Default")
_Kind = TypeVar("_Kind")
_recording: ContextVar[list[Settings] | None] = ContextVar("_recording", default=None)


@contextmanager
def recorded_settings() -> Iterator[list[Settings]]:
    """Collect the settings that are read inside a `with` block, for a report of what is used."""
    found: list[Settings] = []
    token = _recording.set(found)
    try:
        yield found
    finally:
        _recording.reset(token)


class Settings:
    """Reads the settings of one file key by key and checks their types. `finish` reports the unused keys.

    A missing or null key gives the default; ConfigReader refuses null for most keys. Every method raises ConfigError
    for a value of the wrong type.
    overrides: the keys whose values come from the caller, not from the file. read: the keys that were read. finished:
    whether all keys that have a meaning were read.
    """

    def __init__(self, where: str | Path, values: Mapping[str, Any], *, overrides: Collection[str] = ()) -> None:
        self.where = str(where)
        self.values = values
        self.overrides = frozenset(overrides)
        self.read: set[str] = set()
        self.finished = False
        self._taken: set[str] = set()
        recording = _recording.get()
        if recording is not None:
            recording.append(self)

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def error(self, key: str, expected: str) -> ConfigError:
        """Return the error for a key whose value is not `expected`."""
        return ConfigError(f"{self.where}: {key}: expected {expected}, got {quote(self.values.get(key))}")

    def raw(self, key: str) -> Any:
        """Return the unchecked value, or None if it is missing. The key counts as used."""
        self._taken.add(key)
        self.read.add(key)
        return self.values.get(key)

    def _missing(self, key: str, default: _Default, expected: str) -> _Default:
        """Return the default of a missing or null key. expected: the values of the key."""
        return default

    def _read(
        self,
        key: str,
        default: _Default,
        kind: type[_Kind],
        expected: str,
        accepts: Callable[[_Kind], bool] = lambda value: True,
    ) -> _Kind | _Default:
        """Read a value of one type that `accepts` accepts. A bool does not count as an int."""
        value = self.raw(key)
        if value is None:
            return self._missing(key, default, expected)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool) or not accepts(value):
            raise self.error(key, expected)
        return value

    def flag(self, key: str, default: _Default) -> bool | _Default:
        """Read true or false."""
        return self._read(key, default, bool, "true or false")

    def count(self, key: str, default: _Default, *, low: int = 0, high: int = 2**31 - 1) -> int | _Default:
        """Read an integer from `low` to `high`."""
        return self._read(key, default, int, f"an integer from {low} to {high}", lambda value: low <= value <= high)

    def number(self, key: str, default: _Default) -> float | _Default:
        """Read a number."""
        value = self.raw(key)
        if value is None:
            return self._missing(key, default, "a number")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "a number")
        return float(value)

    def text(self, key: str, default: _Default) -> str | _Default:
        """Read a string of valid Unicode."""
        return self._read(key, default, str, "a string", is_text)

    def choice(self, key: str, choices: Collection[str], default: _Default) -> str | _Default:
        """Read a string that is one of `choices`."""
        expected = f"one of {', '.join(choices)}"
        return self._read(key, default, str, expected, lambda value: value in choices)

    def texts(self, key: str) -> tuple[str, ...]:
        """Read a list of strings; () if it is missing."""
        return tuple(self._read(key, [], list, "a list of strings", lambda items: all(map(is_text, items))))

    def table(self, key: str) -> Mapping[str, Any]:
        """Read an object; {} if it is missing."""
        return self._read(key, {}, dict, "an object")

    def text_table(self, key: str) -> Mapping[str, str]:
        """Read an object of strings; {} if it is missing."""
        value = self.table(key)
        if not all(is_text(name) and is_text(item) for name, item in value.items()):
            raise self.error(key, "an object of strings")
        return value

    def ignore(self, *keys: str) -> None:
        """Mark keys as known: they change nothing here."""
        self._taken.update(keys)

    def unused(self) -> list[str]:
        """Return the keys that have a value and were not used."""
        return sorted(key for key, value in self.values.items() if value is not None and key not in self._taken)

    def finish(self) -> None:
        """Log one warning that lists the unused keys."""
        self.finished = True
        names = self.unused()
        if names:
            _log.warning(
                "%s: unknown settings are ignored: %s",
                self.where,
                shown_names((quote(name, 60) for name in names), len(names)),
            )
