"""Describes an option once: its default, its check, and its flag of the `fastattn` command.

A dataclass of checked options, such as `GenerationOptions`, is the table of its options: each field calls `option`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from fastattn.checks import check_choice, check_count, check_number, check_str
from fastattn.errors import InputError

INT32_MAX = 2**31 - 1


class Count:
    """An integer from `low` to `high`; high=None means no upper limit."""

    __slots__ = ("high", "low")

    def __init__(self, low: int = 0, high: int | None = INT32_MAX) -> None:
        self.low, self.high = low, high

    def __call__(self, name: str, value: Any) -> int:
        return check_count(name, value, low=self.low, high=sys.maxsize if self.high is None else self.high)


class Number:
    """A finite number from `low` to `high`."""

    __slots__ = ("high", "low")

    def __init__(self, low: float = -math.inf, high: float = math.inf) -> None:
        self.low, self.high = low, high

    def __call__(self, name: str, value: Any) -> float:
        return check_number(name, value, low=self.low, high=self.high)


class Text:
    """A text of `low` to `high` characters."""

    __slots__ = ("high", "low")

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def __call__(self, name: str, value: Any) -> str:
        text = check_str(name, value)
        if not self.low <= len(text) <= self.high:
            raise InputError(f"{name}: expected {self.low} to {self.high} characters, got {len(text)}")
        return text


class Choice:
    """One of some names."""

    __slots__ = ("names",)

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, name: str, value: Any) -> str:
        return check_choice(name, value, self.names)


class Named:
    """One of some values, each with the name that a flag takes."""

    __slots__ = ("names",)

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.names = names


class Each:
    """Values that a flag takes as a comma-separated list. of: the check of each."""

    __slots__ = ("of",)

    def __init__(self, of: Count | Number) -> None:
        self.of = of


class Pair:
    """A key and a value that a flag takes as KEY=VALUE, or as two items of a comma-separated list."""

    __slots__ = ("key", "separator", "value")

    def __init__(self, key: Count | Each, value: Number, *, separator: str = "=") -> None:
        self.key, self.value, self.separator = key, value, separator


Values: TypeAlias = "Count | Number | Text | Choice | Named | Each | Pair"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """The command-line flag of an option.

    help: one line; it states the default. names: None is the option's name with dashes. values: the check of one
    value; None uses the option's check. default: the command's, which may differ from the library's. repeatable:
    whether the flag collects a list (a mapping for a Pair whose key is a Count).
    """

    help: str
    names: tuple[str, ...] | None = None
    values: Values | None = None
    metavar: str | None = None
    default: Any = None
    repeatable: bool = False


class Option:
    """One option. check: called with the name and value, and for loading options the device; None: no check.

    no_flag: why the command has no flag of it.
    """

    __slots__ = ("check", "default", "flag", "no_flag")

    def __init__(self, default: Any, check: Callable[..., Any] | None, flag: Flag | None, no_flag: str | None) -> None:
        self.default, self.check, self.flag, self.no_flag = default, check, flag, no_flag


def option(
    default: Any,
    check: Callable[..., Any] | None = None,
    *,
    flag: Flag | None = None,
    no_flag: str | None = None,
) -> Any:
    """Return a dataclass field that declares an option. None is a valid value if it is the default."""
    return field(default=default, metadata={"option": Option(default, check, flag, no_flag)})


def check_fields(table: Any) -> None:
    """Check the options of a frozen dataclass in its __post_init__. None needs no check if it is the default."""
    for name, entry in options_of(table).items():
        value = getattr(table, name)
        if entry.check is not None and not (value is None and entry.default is None):
            object.__setattr__(table, name, entry.check(name, value))


def options_of(table: Any) -> Mapping[str, Option]:
    """Return the options of a dataclass by name, in the order of its fields."""
    return {item.name: item.metadata["option"] for item in fields(table) if "option" in item.metadata}
