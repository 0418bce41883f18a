"""Turns the docstrings of fastattn into reStructuredText.

They are plain text with four conventions, which this module recognizes:

- `name: text` at the start of a line or sentence describes an argument; further lines may be indented. `a, b: text`
  describes two.
- A sentence that begins with "Returns" or "Raises" stands alone.
- Single backticks mark code; the name of a public class or function becomes a link.
- An indented paragraph is shown as it is.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

import fastattn

NAME = r"\*{0,2}[a-z_][a-z0-9_]*"
ARGUMENT = re.compile(rf"^({NAME}(?:(?:, | and |, and | \(or )(?:{NAME}))*\)?): (.*)$")
# The end of a sentence before an argument, or before what a function returns or raises.
SENTENCE = re.compile(rf"(?<=\.) (?=(?:{NAME}(?:, {NAME})*: |Returns |Raises ))")
# Names that the reference describes.
LINKS = {name: f"fastattn.{name}" for name in fastattn.__all__ if name[0].isalpha() and name.isidentifier()}
for _module in ("errors", "generation", "ops"):
    del LINKS[_module]
LINKS |= {
    "CallArgs": "fastattn.tokenizer.call.CallArgs",
    "CausalLMOutput": "fastattn.models.outputs.CausalLMOutput",
    "Model": "fastattn.api.model.Model",
    "PipelineLoadArgs": "fastattn.tasks.pipelines.PipelineLoadArgs",
    "PromptArgs": "fastattn.tasks.text_generation.PromptArgs",
}
ERRORS = re.compile(r"\b(" + "|".join(name for name in LINKS if name in fastattn.errors.__dict__) + r")\b")
LITERAL = "\0"
TYPES = {"int", "str", "float", "bool"}


def convert(lines: list[str]) -> list[str]:
    """Return a docstring as reStructuredText."""
    out: list[str] = []
    item = False
    for paragraph in _statements(lines):
        if paragraph.startswith(LITERAL):
            out += ["", "::", "", f"   {paragraph[1:]}", ""]
            item = False
            continue
        found = ARGUMENT.match(paragraph)
        if found:
            names = re.split(r", and | and |, | \(or ", found[1].rstrip(")"))
            if not item:
                out.append("")
            out += [", ".join(f"**{_escape(name)}**" for name in names), f"   {_inline(_capital(found[2]))}", ""]
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
    hanging = any(line.startswith(" ") for line in lines)  # then a line that is not indented may begin something new
    for line in lines:
        stripped = line.strip()
        if line.startswith("    ") and not open_text:
            joined.append(LITERAL + stripped)
        elif not stripped:
            joined.append("")
            open_text = False
        elif not open_text or (
            not line.startswith(" ")
            and (ARGUMENT.match(stripped) or (hanging and ARGUMENT.match(joined[-1]) and joined[-1].endswith(".")))
        ):
            joined.append(stripped)
            open_text = True
        else:
            joined[-1] += " " + stripped
    return [sentence for text in joined for sentence in SENTENCE.split(text)]


def _capital(text: str) -> str:
    """Begin a description with a capital letter, unless it begins with a name or a type."""
    word = re.match(r"[a-z]+(?=[ ,.;:]|$)", text)
    return text[0].upper() + text[1:] if word and word[0] not in TYPES else text


def _escape(text: str) -> str:
    return text.replace("*", "\\*")


def _inline(text: str) -> str:
    """Mark code, and escape what reStructuredText would read as markup outside it."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        _code(part[1:-1]) if part.startswith("`") else ERRORS.sub(_link, re.sub(r"([*|_\\])", r"\\\1", part))
        for part in parts
    )


def _link(found: re.Match[str]) -> str:
    """Link the name of an error. The escaped spaces end the link next to a letter, as in a plural."""
    return f"\\ :py:obj:`{found[1]} <{LINKS[found[1]]}>`\\ "


def _code(text: str) -> str:
    name = text.removeprefix("fastattn.")
    return f":py:obj:`{text} <{LINKS[name]}>`" if name in LINKS else f"``{text}``"


def process(app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring."""
    lines[:] = convert(list(lines))
    if isinstance(obj, type) and hasattr(obj, "__required_keys__"):  # a TypedDict: the keywords of a call
        lines += ["Keywords: " + ", ".join(f"``{key}``" for key in obj.__annotations__) + ".", ""]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the event."""
    app.connect("autodoc-process-docstring", process)
    return {"version": "1", "parallel_read_safe": True}
