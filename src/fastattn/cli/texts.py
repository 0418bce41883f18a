"""The texts of a command, each with the place that messages name."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from fastattn.errors import InputError
from fastattn.tokenizer import check_text


@dataclass(frozen=True, slots=True)
class Text:
    """A text and where it stands: `text 2`, `standard input` or `lines.txt line 7`."""

    text: str
    where: str


def read_texts(arguments: list[str] | None, file: str | None, *, whole_stdin: bool) -> list[Text]:
    """The texts that the arguments name, in order.

    `-f FILE` is a text a line, `-f -` the same from standard input. `-p -` is standard input too: one whole text with
    `whole_stdin`, else a text a line. Blank lines are left out. Raises InputError, OSError.
    """
    if file is not None:
        return _lines(*_read(file))
    texts: list[Text] = []
    for i, argument in enumerate(arguments or []):
        if argument != "-":
            texts.append(Text(check_text(argument, f"text {i + 1}"), f"text {i + 1}"))
        elif not whole_stdin:
            texts += _lines(*_read("-"))
        else:
            text, where = _read("-")
            text = text.rstrip("\r\n")
            if not text:
                raise InputError(f"{where}: expected a text, found none")
            texts.append(Text(check_text(text, where), where))
    return texts


def _read(file: str) -> tuple[str, str]:
    """A file of UTF-8, with or without a byte order mark, and its name."""
    where = "standard input" if file == "-" else file
    data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        return data.decode("utf-8-sig"), where
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where} line {line}: expected UTF-8, got {error.reason}") from None


def _lines(text: str, where: str) -> list[Text]:
    texts = []
    for i, line in enumerate(text.split("\n")):
        if line.strip():
            here = f"{where} line {i + 1}"
            texts.append(Text(check_text(line.rstrip("\r"), here), here))
    if not texts:
        raise InputError(f"{where}: expected a text a line, found none")
    return texts
