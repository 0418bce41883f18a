"""Turns the messages of llguidance into one line that says what is wrong, and where."""

from __future__ import annotations

import re
from typing import Literal

_MAX_CHARS = 500
_QUOTES_GRAMMAR = re.compile(r"\n\s*\d+ \| |<non-verbose")  # the grammar, or a place for it, that follows
_PLACE = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")
_SCHEMA = re.compile(r"^failed to compile JSON schema: ")
_REGEX = re.compile(r"^(?P<before>.*?)regex parse error:\n(?P<quoted>.*)\nerror: (?P<reason>.*)$", re.DOTALL)
_PATTERN = re.compile(r"invalid regex (?P<pattern>.*) \(in regex\): $", re.DOTALL)
_KEYS = re.compile(r"^Unimplemented keys: \[(?P<keys>[^\]]*)\]$")
_GBNF = re.compile(r"^Expected ::= at line (?P<line>\d+), (?P<after>'.*') \^ (?P<before>'.*')$", re.DOTALL)
_STOPS = {
    "NoExtension": "nothing can follow",
    "NoExtensionBias": "nothing can follow",
    "ParserTooComplex": "it is too complex; make it simpler",
    "LexerTooComplex": "it is too complex; make it simpler",
    "EndOfSentence": "the text is complete",
}


def reason_of(message: str, *, syntax: Literal["lark", "gbnf"] | None = None) -> str:
    """Return a message of the library in one line, without the text that it repeats.

    syntax: of the user's grammar; None: there is none. Only a grammar in the library's own syntax, Lark's, has its
    lines and columns.
    """
    message = _QUOTES_GRAMMAR.split(message)[0].strip()
    place = _PLACE.match(message)
    where = ""
    if place is not None:
        message = message[place.end() :]
        where = f"line {place[1]}, column {place[2]}: " if syntax == "lark" else ""
    message = _SCHEMA.sub("", message)
    found = _REGEX.match(message)
    if found is not None:
        pattern = _PATTERN.search(found["before"])
        named = f"the regular expression {pattern['pattern']}: " if pattern is not None and syntax is not None else ""
        message = f"{named}{found['reason']}{_column(found['quoted'])}"
    return (where + " ".join(_plain(message).split()))[:_MAX_CHARS]


def stop_of(reason: object) -> str:
    """Return why a text cannot go on, from the library's name for it."""
    return _STOPS.get(str(reason), str(reason))


def _column(quoted: str) -> str:
    """Return the place that a line of carets marks below a pattern of one line."""
    lines = quoted.split("\n")
    if len(lines) != 2 or not lines[1].strip() or lines[1].strip(" ^"):
        return ""
    return f", at character {lines[1].index('^') - 3}"  # both lines begin with four spaces


def _plain(message: str) -> str:
    message = message.split("; following special tokens are available")[0]
    keys, gbnf = _KEYS.match(message), _GBNF.match(message)
    if keys is not None:
        return f"keywords that are not supported: {keys['keys']}"
    if gbnf is not None:
        return (
            f"expected ::= in line {gbnf['line']} between {gbnf['after']} and {gbnf['before']}, as in GBNF; a "
            "grammar in Lark's syntax "
            'needs a rule "start:"'
        )
    if message.startswith("oneOf constraints are not supported"):
        return 'oneOf is not supported; "x-guidance": {"coerce_one_of": true} in the schema treats it as anyOf'
    return message
