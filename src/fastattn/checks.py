"""Argument checks, one function per kind of argument, and bounded quotes for messages.

Messages about a value read `name: expected X, got Y`. DTypeError means the wrong type, InputError the wrong value.
"""

from __future__ import annotations

import difflib
import math
import operator
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastattn.errors import DTypeError, InputError

MAX_QUOTE_CHARS = 80
_MAX_INTEGER_BITS = 128
_CLOSE = 0.61  # minimum similarity of a suggestion; that of "greedy" and "seed" is 0.6


def quote(value: object, limit: int = MAX_QUOTE_CHARS) -> str:
    """Return a value for an error message: one line of at most about `limit` printable characters.

    Large containers and integers are summarized without formatting all of them.
    """
    text = _quote(value, limit, depth=2)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def check_flag(name: str, value: object) -> bool:
    """Return a Python or numpy bool as a bool. Raises DTypeError for anything else, including a str."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise DTypeError(f"{name}: expected True or False, got {_found(value)}")


def check_count(name: str, value: Any, *, low: int = 0, high: int = 2**31 - 1) -> int:
    """Return an integer of any type as an int from `low` to `high`. Raises DTypeError, InputError."""
    if isinstance(value, (bool, np.bool_)):
        raise DTypeError(f"{name}: expected int, got bool")
    try:
        found = operator.index(value)
    except TypeError:
        raise DTypeError(f"{name}: expected int, got {_found(value)}") from None
    if not low <= found <= high:
        raise InputError(f"{name}: expected {low} to {high}, got {quote(found)}")
    return found


def check_number(name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite real number from `low` to `high` as a float. Raises DTypeError, InputError.

    Accepts int, float, their numpy scalars, and zero-dimensional arrays.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise DTypeError(f"{name}: expected a number, got {_found(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not (math.isfinite(found) and low <= found <= high):
        bounds = (
            f" from {low} to {high}" if math.isfinite(high) else f" of at least {low}" if math.isfinite(low) else ""
        )
        raise InputError(f"{name}: expected a finite number{bounds}, got {quote(value)}")
    return found


def check_choice(name: str, value: object, choices: Collection[str]) -> str:
    """Return the value if it is one of `choices`.

    Raises DTypeError if it is not a str, or InputError with the closest choice.
    """
    expected = ", ".join(repr(choice) for choice in choices)
    if not isinstance(value, str):
        raise DTypeError(f"{name}: expected one of {expected}, got {_found(value)}")
    if value not in choices:
        raise InputError(f"{name}: expected one of {expected}, got {quote(value)}{closest(value, choices)}")
    return str(value)


def check_str(name: str, value: object) -> str:
    """Return the value if it is a str. Raises DTypeError."""
    if not isinstance(value, str):
        raise DTypeError(f"{name}: expected str, got {_found(value)}")
    return value


def check_path(name: str, value: object) -> Path:
    """Return a str or path object as a Path.

    Raises DTypeError, or InputError if the path is empty or has a NUL character.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise DTypeError(f"{name}: expected a path, got {_found(value)}")
    text = os.fspath(value)
    if not isinstance(text, str):
        raise DTypeError(f"{name}: expected a path of str, got one of {type(text).__name__}")
    if not text or "\0" in text:
        raise InputError(f"{name}: expected a path, got {quote(text)}")
    return Path(text)


def is_masked_array(value: object) -> bool:
    """Return whether a value is a numpy masked array.

    Using `np.ma` would import it. If another thread forked the process during that import, the child would hang.
    """
    masked_array = getattr(sys.modules.get("numpy.ma"), "MaskedArray", None)  # None while another thread imports it
    return masked_array is not None and isinstance(value, masked_array)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelled one probably means, or None if no known name is close."""
    found = difflib.get_close_matches(name[:100], list(known), n=1, cutoff=_CLOSE)
    return found[0] if found else None


def closest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'X'?` for a misspelled name, or "" if no known name is close."""
    found = nearest(name, known)
    return "" if found is None else f"; did you mean {found!r}?"


def one_of(name: str, value: Any, other: str, other_value: Any) -> Any:
    """Return the value of an argument that has two names. Raises InputError if both are given."""
    if value is not None and other_value is not None:
        raise InputError(
            f"{other}: expected None, because {name} is set and means the same, got both; pass one of them"
        )
    return other_value if value is None else value


def is_text(value: object) -> bool:
    """Return whether a value is a str of valid Unicode, without lone surrogates."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shown_names(names: Iterable[str], total: int, limit: int = 20, *, separator: str = ", ") -> str:
    """List the first `limit` of `total` names, and how many more there are. The caller quotes the names."""
    more = f" and {total - limit} more" if total > limit else ""
    return separator.join(islice(names, limit)) + more


def check_keywords(found: Iterable[str], known: Collection[str], where: str) -> None:
    """Raise InputError for an unknown keyword, with the closest known name."""
    for name in found:
        if name not in known:
            raise InputError(f"{where}: unknown keyword {quote(name)}{closest(name, known)}")


@dataclass(frozen=True, slots=True)
class Neutral:
    """A keyword of another library: the values, besides None, that change nothing here.

    instead: what to do instead of passing any other value. check: if given, it raises for an invalid value, and every
    other value is accepted.
    """

    values: tuple[object, ...] = ()
    instead: str = "leave it out"
    check: Callable[[str, Any], object] | None = None


def is_neutral(value: Any, values: Iterable[object], *, empty: bool = False) -> bool:
    """Return whether a value is None, one of `values`, or (if `empty` is true) an empty collection.

    Numbers of all types are compared by value. A bool is not a number.
    """
    if value is None or (empty and isinstance(value, (list, tuple, dict)) and not value):
        return True
    return any(_is_same(value, item) for item in values)


def check_neutral(
    keywords: Mapping[str, Any],
    table: Mapping[str, Neutral],
    where: str,
    known: Iterable[str],
    *,
    hint: str = "",
    empty: bool = False,
    prefix: str = "",
) -> None:
    """Raise InputError for an unknown keyword, and for a value that would change something.

    known: the names that the caller handles itself. hint: text for an unknown name that is close to no known one.
    empty: whether an empty collection changes nothing. prefix: text before the names of known keywords in messages. The
    checks of the table may raise other errors.
    """
    for key, value in keywords.items():
        entry, name = table.get(key), f"{prefix}{key}"
        if entry is None:
            near = closest(key, (*known, *table)) or hint
            raise InputError(f"{where}: unknown keyword {quote(key)}{near}")
        if entry.check is not None:
            if value is not None:
                entry.check(name, value)
        elif not is_neutral(value, entry.values, empty=empty):
            expected = " or ".join(repr(item) for item in (None, *entry.values[:3]))
            raise InputError(f"{name}: expected {expected}, got {quote(value)}; {entry.instead}")


def _is_same(value: Any, item: object) -> bool:
    if isinstance(value, (bool, np.bool_)) or isinstance(item, bool):
        return isinstance(value, (bool, np.bool_)) and isinstance(item, bool) and bool(value) == item
    kinds = (str,) if isinstance(item, str) else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and bool(value == item)


def _found(value: object) -> str:
    """Return the type of a value, and the value if it is short."""
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"{kind} of {value.dtype} with shape {quote(value.shape)}"
    short = value is not None and isinstance(value, (str, int, float, np.generic))
    return f"{kind} {quote(value)}" if short else kind


def _quote(value: object, limit: int, *, depth: int) -> str:
    if isinstance(value, (str, bytes, bytearray)):
        return repr(value if len(value) <= limit else value[:limit])
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float, complex)):
        return repr(value)
    if isinstance(value, np.generic):
        return str(value)[:limit]
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with shape {list(value.shape)[:8]}"
    if isinstance(value, (list, tuple, set, frozenset, Mapping)):
        return _quote_items(value, limit, depth)
    return f"a {type(value).__name__}"


def _quote_items(value: Collection[Any], limit: int, depth: int) -> str:
    brackets = "{}" if isinstance(value, (Mapping, set, frozenset)) else "()" if isinstance(value, tuple) else "[]"
    if depth == 0:
        return f"{brackets[0]}...{brackets[1]}"
    shown = []
    for item in islice(value, 8):
        text = _quote(item, limit, depth=depth - 1)
        if isinstance(value, Mapping):
            text += f": {_quote(value[item], limit, depth=depth - 1)}"
        shown.append(text)
    more = ", ..." if len(value) > len(shown) else ""
    return f"{brackets[0]}{', '.join(shown)}{more}{brackets[1]}"
