"""Reads how an answer is constrained: `response_format` of OpenAI's API, and `grammar` of llama-cpp-python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastattn.checks import check_choice, check_flag, check_keywords, check_str, quote
from fastattn.errors import DTypeError, InputError

_ANY_OBJECT = {"type": "object"}
_KINDS = ("text", "json_object", "json_schema")


def read_constraint(response_format: Any, grammar: Any) -> dict[str, Any]:
    """Return the option of GenerationOptions that the two arguments mean; none if both are None.

    Raises DTypeError, InputError.
    """
    found = {} if response_format is None else _read_format(response_format)
    if grammar is None:
        return found
    if found:
        raise InputError("grammar: expected None, because response_format constrains the answer, got both")
    return {"grammar": grammar}


def _read_format(response_format: Any) -> dict[str, Any]:
    if not isinstance(response_format, Mapping):
        raise DTypeError(
            f'response_format: expected a mapping such as {{"type": "json_object"}}, got {quote(response_format)}'
        )
    kind = check_choice("response_format: type", response_format.get("type"), _KINDS)
    if kind == "text":
        check_keywords(response_format, ("type",), "response_format")
        return {}
    if kind == "json_object":  # llama-cpp-python's
        check_keywords(response_format, ("type", "schema"), "response_format")
        schema = response_format.get("schema")
        return {"json_schema": _ANY_OBJECT if schema is None else schema}
    check_keywords(response_format, ("type", "json_schema"), "response_format")
    inner = response_format.get("json_schema")
    if not isinstance(inner, Mapping):
        raise DTypeError(f'response_format: json_schema: expected a mapping with "schema", got {quote(inner)}')
    check_keywords(inner, ("name", "description", "schema", "strict"), "response_format: json_schema")
    for name in ("name", "description"):
        if inner.get(name) is not None:
            check_str(f"response_format: json_schema: {name}", inner[name])
    if inner.get("strict") is not None:  # the schema applies strictly in any case
        check_flag("response_format: json_schema: strict", inner["strict"])
    if inner.get("schema") is None:
        raise InputError('response_format: json_schema: expected "schema", got none')
    return {"json_schema": inner["schema"]}
