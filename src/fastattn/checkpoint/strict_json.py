"""JSON of files that somebody else wrote: no duplicate keys, no NaN, bounded depth; every failure is a JsonError."""

from __future__ import annotations

import json
import re

MAX_DEPTH = 16

# No pattern of a whole string: on one that never ends it would be tried again from every quote in it.
_TOKENS = re.compile(r'\\.|["\[\]{}]', re.DOTALL)

JsonValue = dict[str, "JsonValue"] | list["JsonValue"] | str | int | float | bool | None


class JsonError(ValueError):
    """Not the JSON that was expected; `code` is a short stable word."""

    def __init__(self, message: str, code: str = "json") -> None:
        super().__init__(message)
        self.code = code


def parse(data: bytes) -> JsonValue:
    """The value that UTF-8 JSON text holds. Raises JsonError."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"expected UTF-8, got {error.reason} at byte {error.start}", "utf8") from None
    if text.startswith("\ufeff"):
        raise JsonError("expected no byte order mark", "utf8")
    if "\0" in text:
        raise JsonError(f"expected text, got NUL at character {text.index(chr(0))}", "utf8")
    check_depth(text)
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
    except JsonError:
        raise
    except (ValueError, RecursionError) as error:
        raise JsonError(f"invalid JSON: {error}") from None
    return value


def check_depth(text: str) -> None:
    """Refuse nesting deeper than MAX_DEPTH, without recursion and in time linear in the text."""
    depth, in_string = 0, False
    for token in _TOKENS.finditer(text):
        first = text[token.start()]
        if first == '"':
            in_string = not in_string
        elif in_string:
            continue
        elif first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise JsonError(f"expected nesting of at most {MAX_DEPTH}, got more", "depth")
        elif first in "]}":
            depth -= 1


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"duplicate key {key!r}", "duplicate_key")
            seen.add(key)
    return result


def _constant(name: str) -> JsonValue:
    raise JsonError(f"expected JSON numbers, got {name}")
