"""Turns the options of a table into flags of a command, and the parsed flags back into keyword arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from fastattn.cli.values import characters, integer, named, number, pair, several
from fastattn.errors import InputError
from fastattn.options import Choice, Count, Each, Flag, Named, Number, Pair, Text, options_of


def flags_of(table: Any) -> dict[str, Flag]:
    """Return the flags of a dataclass of options, by the name of the option."""
    return {name: entry.flag for name, entry in options_of(table).items() if entry.flag is not None}


def add_flags(
    parser: argparse.ArgumentParser, table: Any, *, only: Iterable[str] = (), without: Iterable[str] = ()
) -> None:
    """Add the flags of all options of a table, or of some."""
    left_out = tuple(without)
    for name in tuple(only) or flags_of(table):
        if name not in left_out:
            add_flag(parser, table, name)


def add_flag(parser: argparse.ArgumentParser, table: Any, name: str, **changes: Any) -> None:
    """Add the flag of an option. changes: arguments of `add_argument` that replace those of the table."""
    entry = options_of(table)[name]
    flag = flags_of(table)[name]
    values = entry.check if flag.values is None else flag.values
    given: dict[str, Any] = {"dest": name, "default": flag.default, "help": flag.help}
    if flag.metavar is not None:
        given["metavar"] = flag.metavar
    if flag.repeatable:
        given["action"] = "append"
    if isinstance(values, Choice):
        given["choices"] = values.names
    elif isinstance(values, Named):
        given["type"], given["metavar"] = named(values.names), f"{{{','.join(values.names)}}}"
    else:
        given["type"] = _word(values)
    parser.add_argument(*(flag.names or (f"--{name.replace('_', '-')}",)), **{**given, **changes})


def given_options(table: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a table that the command has, by name."""
    return {
        name: _collected(name, flag, getattr(args, name))
        for name, flag in flags_of(table).items()
        if hasattr(args, name)
    }


def _collected(name: str, flag: Flag, value: Any) -> Any:
    """Return the value of an option from what the parser collected. Raises InputError for a key that occurs twice."""
    if not isinstance(flag.values, Pair) or not isinstance(flag.values.key, Count) or not flag.repeatable or not value:
        return value
    found = dict(value)
    if len(found) < len(value):
        twice = next(key for key in found if sum(key == other for other, _ in value) > 1)
        raise InputError(f"--{name.replace('_', '-')}: expected one value for {twice}, got several")
    return found


def _word(values: object) -> Callable[[str], Any]:
    """Return the parser of one word."""
    if isinstance(values, Count):
        return integer(values.low, values.high)
    if isinstance(values, Number):
        return number(values.low, values.high)
    if isinstance(values, Text):
        return characters(values.low, values.high)
    if isinstance(values, Each):
        return several(_word(values.of))
    if isinstance(values, Pair):
        return pair(_word(values.key), _word(values.value), values.separator)
    raise TypeError(f"flag: expected values or a check that can parse a word, got {values!r}")
