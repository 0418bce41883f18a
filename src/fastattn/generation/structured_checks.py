"""Checks of the options that constrain a text: `json_schema` and `choices`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastattn.checks import quote
from fastattn.errors import DTypeError, InputError
from fastattn.jsonfile import JsonError, JsonLimits, parse_strict
from fastattn.options import Text

MAX_GRAMMAR_CHARS = 1_000_000
GRAMMAR = Text(1, MAX_GRAMMAR_CHARS)  # also a regular expression
CHOICE = Text(0, 10_000)
_MAX_CHOICES = 10_000
_LIMITS = JsonLimits(n_bytes=4 * MAX_GRAMMAR_CHARS, n_values=500_000, depth=100)
_KINDS = "a JSON schema as a dict or JSON text, or a pydantic model"
# Keywords that the library applies, or rejects with an error that names them.
_APPLIED = """
    $ref $defs $id $schema $anchor $dynamicAnchor $dynamicRef $recursiveAnchor $recursiveRef definitions id type enum
    const anyOf oneOf allOf not if then else items prefixItems additionalItems contains minContains maxContains minItems
    maxItems uniqueItems unevaluatedItems properties patternProperties additionalProperties propertyNames required
    minProperties maxProperties dependencies dependentRequired dependentSchemas unevaluatedProperties minLength
    maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf x-guidance
"""
# Keywords that describe a value and do not restrict it.
_DESCRIBING = """
    title description default example examples deprecated readOnly writeOnly $comment $vocabulary discriminator
    contentEncoding contentMediaType contentSchema
"""
_KNOWN = frozenset((*_APPLIED.split(), *_DESCRIBING.split()))
_OF_SCHEMAS = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")  # by name
_MAX_NAMED = 20


def check_json_schema(name: str, schema: Any) -> str:
    """Return a schema as JSON text. Raises DTypeError, InputError."""
    make_schema = getattr(schema, "model_json_schema", None)
    if isinstance(schema, type) and callable(make_schema):
        try:
            schema = make_schema()
        except Exception as error:  # pydantic's, for a field without a JSON schema, or the user's own
            raise InputError(f"{name}: expected a JSON schema of {schema.__name__}, got an error: {error}") from error
    if isinstance(schema, Mapping):
        schema = _dumped(name, dict(schema))
    if not isinstance(schema, str):
        raise DTypeError(f"{name}: expected {_KINDS}, got {quote(schema)}")
    if len(schema) > MAX_GRAMMAR_CHARS:
        raise InputError(
            f"{name}: expected at most {MAX_GRAMMAR_CHARS} characters of JSON, got {len(schema)}; shorten it"
        )
    try:
        found = parse_strict(schema.encode("utf-8"), _LIMITS)
    except (JsonError, UnicodeEncodeError) as error:
        raise InputError(f"{name}: expected {_KINDS}, got {quote(schema)}: {error}") from None
    if not isinstance(found, dict):
        raise DTypeError(f"{name}: expected a JSON object, got {quote(found)}")
    return schema


def _dumped(name: str, schema: dict[Any, Any]) -> str:
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: expected values that JSON has, got {quote(schema)}: {error}") from None


def check_choices(name: str, choices: Any) -> tuple[str, ...]:
    """Return the texts to choose from, without repetitions. Raises DTypeError, InputError."""
    if not isinstance(choices, (list, tuple, set, frozenset)):
        raise DTypeError(f"{name}: expected a list of str, got {type(choices).__name__}; pass the texts to choose from")
    if not 0 < len(choices) <= _MAX_CHOICES:
        raise InputError(f"{name}: expected 1 to {_MAX_CHOICES} texts, got {len(choices)}")
    return tuple(dict.fromkeys(CHOICE(f"{name}[{i}]", choice) for i, choice in enumerate(choices)))


def unapplied_keywords(schema: Mapping[str, Any]) -> list[str]:
    """Return the places of keywords that JSON Schema lacks, which therefore restrict nothing: at most 20."""
    found: dict[str, None] = {}
    for place, key in _keywords(schema, ""):
        if key not in _KNOWN and not key.startswith("x-"):
            found[f"{place}{key}"] = None
        if len(found) == _MAX_NAMED:
            break
    return list(found)


def _keywords(schema: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield the place of each subschema with each of its keywords."""
    if isinstance(schema, Sequence) and not isinstance(schema, str):
        for i, item in enumerate(schema):
            yield from _keywords(item, f"{place}{i}.")
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        yield place, key
        if key in _OF_SCHEMAS and isinstance(value, Mapping):
            for name, item in value.items():
                yield from _keywords(item, f"{place}{key}.{name}.")
        elif key in _APPLIED.split() and key not in ("enum", "const", "x-guidance", *_OF_SCHEMAS):
            yield from _keywords(value, f"{place}{key}.")
