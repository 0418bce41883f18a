"""Turns the options of a table into flags of a command, and the parsed flags back into keyword arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from fastattn.cli.values import characters, integer, number
from fastattn.options import Choice, Count, Flag, Number, Text, options_of


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
    else:
        given["type"] = _word(values)
    parser.add_argument(*(flag.names or (f"--{name.replace('_', '-')}",)), **{**given, **changes})


def given_options(table: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a table that the command has, by name."""
    return {name: getattr(args, name) for name in flags_of(table) if hasattr(args, name)}


def _word(values: object) -> Callable[[str], Any]:
    """Return the parser of one word."""
    if isinstance(values, Count):
        return integer(values.low, values.high)
    if isinstance(values, Number):
        return number(values.low, values.high)
    if isinstance(values, Text):
        return characters(values.low, values.high)
    raise TypeError(f"flag: expected values or a check that can parse a word, got {values!r}")
