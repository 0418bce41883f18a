"""Argument types: a value out of range is a usage error (exit code 2) that names its flag."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from fastattn.checks import closest, quote


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a parser for an integer of at least `low`, and at most `high` if given."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected an integer, got {quote(text)}") from None
        if value < low or (high is not None and value > high):
            expected = f"at least {low}" if high is None else f"{low} to {high}"
            raise argparse.ArgumentTypeError(f"expected {expected}, got {quote(value)}")
        return value

    return read


def integers(text: str) -> list[int]:
    """Parse a comma-separated list of integers of at least 0."""
    return [integer(0)(part.strip()) for part in text.split(",")]


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return a parser for a finite number of at least `low`, and at most `high` if given."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {quote(text)}") from None
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"expected a finite number, got {value}")
        if not low <= value <= high:
            expected = f"at least {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"expected {expected}, got {value:g}")
        return value

    return read


def named(values: Mapping[str, Any]) -> Callable[[str], Any]:
    """Return a parser for one of some names; it returns the value of the name."""

    def read(text: str) -> Any:
        if text not in values:
            raise argparse.ArgumentTypeError(f"expected {', '.join(values)}, got {quote(text)}")
        return values[text]

    return read


def several(one: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return a parser for a comma-separated list of values that `one` parses."""

    def read(text: str) -> list[Any]:
        return [one(part.strip()) for part in text.split(",")]

    return read


def pair(key: Callable[[str], Any], value: Callable[[str], Any], separator: str) -> Callable[[str], tuple[Any, Any]]:
    """Return a parser for a key and a value with a separator between them."""

    def read(text: str) -> tuple[Any, Any]:
        first, found, second = text.partition(separator)
        if not found:
            raise argparse.ArgumentTypeError(f"expected two values with {separator!r} between them, got {quote(text)}")
        return key(first.strip()), value(second.strip())

    return read


def some_text(what: str) -> Callable[[str], str]:
    """Return a parser for a text that is not blank; `what` names it in the message."""

    def read(text: str) -> str:
        if not text.strip():
            raise argparse.ArgumentTypeError(f"expected {what}, got an empty text")
        return text

    return read


def names(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Return a parser for a comma-separated list of known names."""

    def read(text: str) -> tuple[str, ...]:
        found = tuple(name.strip() for name in text.split(","))
        for name in found:
            if name not in known:
                got = f"got {quote(name)}{closest(name, known)}"
                raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, {got}")
        return found

    return read


def some_names(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of at least one name."""
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"expected names, got {quote(text)}")
    return found


def file_name(*endings: str) -> Callable[[str], str]:
    """Return a parser for a file name with one of these extensions."""

    def read(text: str) -> str:
        if not text.lower().endswith(endings):
            raise argparse.ArgumentTypeError(f"expected {' or '.join('FILE' + e for e in endings)}, got {quote(text)}")
        return text

    return read


def characters(low: int, high: int) -> Callable[[str], str]:
    """Return a parser for a text of `low` to `high` characters; white space counts."""

    def read(text: str) -> str:
        if not low <= len(text) <= high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high} characters, got {len(text)}")
        return text

    return read


def assignment(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE; the value is JSON, or else a text."""
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {quote(text)}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
