"""Turns the docstrings of fastattn into reStructuredText.

They are plain text with three habits, which this module recognizes:

- `name: text` at the start of a line describes an argument; further lines may be indented. `a, b: text` describes two.
- A sentence that begins with "Raises" lists errors.
- Single backticks mark code.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

NAME = r"\*{0,2}[a-z_][a-z0-9_]*"
ARGUMENT = re.compile(rf"^({NAME}(?:(?:, | and |, and | \(or )(?:{NAME}))*\)?): (.*)$")
RAISES = re.compile(r"(?:^|(?<=[.;)] ))(Raises [^`]*?[A-Z]\w+.*)$", re.DOTALL)


def names_of(obj: object) -> set[str]:
    """Return the names of the arguments or fields of an object; empty if they are unknown."""
    try:
        return set(inspect.signature(obj).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return set()


def convert(lines: list[str]) -> list[str]:
    """Return a docstring as reStructuredText."""
    out: list[str] = []
    item = False
    for paragraph in _statements(lines):
        found = ARGUMENT.match(paragraph)
        if found:
            names = re.split(r", and | and |, | \(or ", found[1].rstrip(")"))
            if not item:
                out.append("")
            out += [", ".join(f"**{_escape(name)}**" for name in names), f"   {_inline(found[2])}", ""]
            item = True
        else:
            if item and paragraph:
                out.append("")
            out += [_inline(paragraph), ""] if paragraph else [""]
            item = False
    return out


def _statements(lines: list[str]) -> list[str]:
    """Join the lines of each paragraph and of each argument; split off what a function raises."""
    joined: list[str] = []
    open_text = False
    for line in lines:
        stripped = line.strip()
        if not stripped:
            joined.append("")
            open_text = False
        elif not open_text or (not line.startswith(" ") and ARGUMENT.match(stripped)):
            joined.append(stripped)
            open_text = True
        else:
            joined[-1] += " " + stripped
    out: list[str] = []
    for text in joined:
        found = RAISES.search(text)
        if found and found.start():
            out += [text[: found.start()].rstrip(), found[1]]
        else:
            out.append(text)
    return out


def _escape(text: str) -> str:
    return text.replace("*", "\\*")


def _inline(text: str) -> str:
    """Mark code, and escape what reStructuredText would read as markup outside it."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        f"`{part}`" if part.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", part) for part in parts
    )


def process(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring."""
    lines[:] = convert(list(lines))


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the event."""
    app.connect("autodoc-process-docstring", process)
    return {"version": "1", "parallel_read_safe": True}
