"""Reads the files that constrain generated texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastattn.errors import InputError
from fastattn.generation.structured_checks import MAX_GRAMMAR_CHARS

_MAX_BYTES = 4 * MAX_GRAMMAR_CHARS


def read_grammars(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options whose flags name a file, with its content: grammar and json_schema.

    A json_schema that begins with { is the schema itself. Raises InputError, OSError.
    """
    found = {}
    schema, grammar = options.get("json_schema"), options.get("grammar")
    if schema is not None and not schema.lstrip().startswith("{"):
        found["json_schema"] = _content(schema)
    if grammar is not None:
        found["grammar"] = _content(grammar)
    return found


def _content(file: str) -> str:
    with open(file, "rb") as stream:
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise InputError(f"{file}: expected at most {_MAX_BYTES} bytes, got more")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: expected UTF-8, got {error.reason} at byte {error.start}") from None
