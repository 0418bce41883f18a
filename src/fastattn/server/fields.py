"""Reads the JSON of a request: each field is used, known to change nothing, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from fastattn.checks import (
    Neutral,
    check_choice,
    check_count,
    check_flag,
    check_neutral,
    check_number,
    closest,
    is_text,
    quote,
)
from fastattn.errors import DTypeError, InputError
from fastattn.jsonfile import JsonError, JsonLimits, parse_strict
from fastattn.server.problems import Problem

_Value = TypeVar("_Value")
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 64
_MAX_NAME_CHARS = 60


def parse_body(data: bytes) -> Fields:
    """Parse a body that must be a JSON object. Raises Problem."""
    try:
        value = parse_strict(data, JsonLimits(n_bytes=len(data), n_values=_MAX_VALUES, depth=_MAX_DEPTH))
    except JsonError as error:
        raise Problem(400, f"body: {error}", None, "invalid_json") from None
    except RecursionError:
        raise Problem(400, "body: expected less nesting", None, "invalid_json") from None
    if not isinstance(value, dict):
        raise Problem(400, f"body: expected a JSON object, got {quote(value)}", None, "invalid_json")
    return Fields(value)


class Fields:
    """The fields of an object. Every method raises Problem for a value of the wrong type. null is the default.

    where: the name of the object itself, if it is a field of another one.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self._values, self._where = values, where
        self._taken: set[str] = set()

    def raw(self, name: str) -> Any:
        """Return the unchecked value; None if it is missing."""
        self._taken.add(name)
        return self._values.get(name)

    def refuse(self, name: str, message: str, code: str = "invalid_value") -> Problem:
        """Return the problem with a field. message: such as "expected 1, got 2"."""
        full = f"{self._where}.{name}" if self._where else name
        return Problem(400, f"{full}: {message}", full, code)

    def check(self, name: str, default: Any, check: Callable[[str, Any], _Value]) -> _Value | Any:
        """Return what a check of fastattn.checks returns for the value."""
        value = self.raw(name)
        if value is None:
            return default
        try:
            return check(name, value)
        except (InputError, DTypeError) as error:
            raise self.refuse(name, str(error).removeprefix(f"{name}: ")) from None

    def flag(self, name: str, default: bool) -> bool:
        """Read true or false."""
        return bool(self.check(name, default, check_flag))

    def count(self, name: str, default: Any, low: int = 0, high: int = 2**31 - 1) -> Any:
        """Read an integer."""
        return self.check(name, default, lambda key, value: check_count(key, value, low=low, high=high))

    def number(self, name: str, default: Any, low: float, high: float) -> Any:
        """Read a number."""
        return self.check(name, default, lambda key, value: check_number(key, value, low=low, high=high))

    def choice(self, name: str, default: Any, choices: Collection[str]) -> Any:
        """Read one of some words."""
        return self.check(name, default, lambda key, value: check_choice(key, value, choices))

    def text(self, name: str, default: Any = None) -> Any:
        """Read a text of valid Unicode."""
        value = self.raw(name)
        if value is None:
            return default
        if not is_text(value):
            raise self.refuse(name, f"expected a string, got {_kind(value)}")
        return value

    def texts(self, name: str, high: int) -> list[str] | None:
        """Read a list of texts, or one text as a list of one."""
        value = self.raw(name)
        if value is None or isinstance(value, str):
            found = self.text(name)
            return None if found is None else [found]
        if not isinstance(value, list) or not all(map(is_text, value)):
            raise self.refuse(name, "expected a string or a list of strings")
        if len(value) > high:
            raise self.refuse(name, f"expected at most {high} items, got {len(value)}")
        return value

    def table(self, name: str) -> Fields | None:
        """Read an object."""
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(name, f"expected an object, got {_kind(value)}")
        return Fields(value, f"{self._where}.{name}" if self._where else name)

    def finish(self, neutral: Mapping[str, Neutral] | None = None) -> None:
        """Refuse the fields that were not read, except those of the table whose values change nothing."""
        table = {} if neutral is None else neutral
        for name, value in self._values.items():
            if name in self._taken:
                continue
            if name not in table:
                near = closest(name, (*self._taken, *table))
                shown = name if name.isidentifier() and len(name) <= _MAX_NAME_CHARS else quote(name)
                raise self.refuse(shown, f"unknown field{near}", "unknown_field")
            try:
                check_neutral({name: value}, table, "request", (), empty=True)
            except (InputError, DTypeError) as error:
                raise self.refuse(name, str(error).removeprefix(f"{name}: "), "unsupported") from None


def token_ids(value: Any) -> bool:
    """Return whether a value is a list of integers, at least one."""
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def read_prompts(fields: Fields, name: str, high: int, *, empty_text: bool) -> Sequence[str] | Sequence[list[int]]:
    """Read a text, texts, token ids, or lists of token ids, at least one. Raises Problem."""
    value = fields.raw(name)
    if value is None:
        raise fields.refuse(name, "expected a value, got none", "missing")
    found: list[Any] = [value] if isinstance(value, str) or token_ids(value) else value
    if not isinstance(found, list):
        raise fields.refuse(name, f"expected a string, a list of strings or token ids, got {_kind(value)}")
    if not found or len(found) > high:
        raise fields.refuse(name, f"expected 1 to {high} items, got {len(found)}")
    if not (all(isinstance(item, str) for item in found) or all(map(token_ids, found))):
        raise fields.refuse(name, "expected a string, a list of strings, or lists of token ids, all of one kind")
    for i, item in enumerate(found):
        place = name if found is not value else f"{name}[{i}]"
        if isinstance(item, str) and not is_text(item):
            raise fields.refuse(name, f"{place}: expected valid Unicode")
        if item == "" and not empty_text:
            raise fields.refuse(name, f"{place}: expected a text that is not empty")
    return found


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )
