"""The input texts of a command, each with its location for messages."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from fastattn.cli import streams
from fastattn.errors import InputError
from fastattn.tokenizer import check_text
from fastattn.tokenizer.texts import MAX_TEXT_CHARS

_MAX_BYTES = 4 * MAX_TEXT_CHARS  # the longest text that `check_text` accepts, in UTF-8


@dataclass(frozen=True, slots=True)
class Text:
    """A text and its location: `text 2`, `standard input` or `lines.txt line 7`."""

    text: str
    where: str


def read_texts(
    arguments: list[str] | None, file: str | None, *, whole_stdin: bool, skip_blank: bool = False
) -> list[Text]:
    r"""Return the texts that the arguments name, in order.

    `-f FILE` reads one text per line; `-f -` reads the lines from standard input. `-p -` also reads standard input: one
    whole text with `whole_stdin`, else one text per line. Lines end with \n or \r\n; the last newline is optional. A
    blank line is a text, so result i belongs to line i; `skip_blank` omits blank lines.

    Raises InputError, OSError.
    """
    if file is not None:
        return _read_lines(file, skip_blank)
    texts: list[Text] = []
    for i, argument in enumerate(arguments or []):
        if argument == "-":
            texts += [_read_whole()] if whole_stdin else _read_lines("-", skip_blank)
        elif not (skip_blank and not argument.strip()):
            texts.append(Text(check_text(argument, f"text {i + 1}"), f"text {i + 1}"))
    if not texts:
        raise InputError("-p/--prompt: expected a text, got only blank ones")
    return texts


@dataclass(frozen=True, slots=True)
class TextStream:
    """Texts that are read when they are needed. total: their number, None if unknown."""

    texts: Iterator[Text]
    total: int | None


def stream_texts(arguments: list[str] | None, file: str | None, *, skip_blank: bool = False) -> TextStream:
    """Return the texts of `read_texts`, of which only a few are in memory. `-p -` reads lines.

    A regular file is read twice: all lines are checked and counted here. Of other inputs, only the first text is read
    and checked here. Raises InputError, OSError.
    """
    if file is not None and file != "-" and Path(file).is_file():
        total = sum(1 for _ in _open_lines(file, skip_blank))
        if not total:
            raise _no_lines(file)
        return TextStream(_again(file, skip_blank, total), total)
    if file is None and "-" not in (arguments or []):
        texts = read_texts(arguments, None, whole_stdin=False, skip_blank=skip_blank)
        return TextStream(iter(texts), len(texts))
    found = _argument_texts(arguments or [], skip_blank) if file is None else _open_lines(file, skip_blank)
    first = next(found, None)
    if first is None:
        raise _no_lines("-" if file is None else file)
    return TextStream(chain((first,), found), None)


def _again(file: str, skip_blank: bool, total: int) -> Iterator[Text]:
    """Yield the texts of a file that has been counted before. Raises InputError if it has changed."""
    found = 0
    for text in _open_lines(file, skip_blank):
        found += 1
        if found <= total:
            yield text
    if found != total:
        raise InputError(f"{file}: expected {total} texts, as before, got {found}; it was changed while it was read")


def _argument_texts(arguments: list[str], skip_blank: bool) -> Iterator[Text]:
    """Yield the texts of -p, and the lines of standard input in place of each -."""
    for i, argument in enumerate(arguments):
        if argument == "-":
            yield from _open_lines("-", skip_blank)
        elif not (skip_blank and not argument.strip()):
            yield Text(check_text(argument, f"text {i + 1}"), f"text {i + 1}")


def _read_whole() -> Text:
    """Read all of standard input as one text, without trailing newlines."""
    data = _read(streams.input_bytes(), _MAX_BYTES + 1, "standard input")
    if len(data) > _MAX_BYTES:
        raise InputError(f"standard input: expected at most {_MAX_BYTES} bytes, got more")
    text = _decode(data.removeprefix(codecs.BOM_UTF8), "standard input", first_line=1).rstrip("\r\n")
    if not text:
        raise InputError("standard input: expected a text, found none")
    return Text(check_text(text, "standard input"), "standard input")


def _read_lines(file: str, skip_blank: bool) -> list[Text]:
    """Read one text per line of a file or of standard input."""
    found = list(_open_lines(file, skip_blank))
    if not found:
        raise _no_lines(file)
    return found


def _open_lines(file: str, skip_blank: bool) -> Iterator[Text]:
    """Yield one text per line of a file or of standard input."""
    if file == "-":
        yield from _lines(streams.input_bytes(), "standard input", skip_blank)
        return
    with open(file, "rb") as stream:
        yield from _lines(stream, file, skip_blank)


def _no_lines(file: str) -> InputError:
    where = "standard input" if file == "-" else file
    return InputError(f"{where}: expected one text per line, found none")


def _lines(stream: BinaryIO, where: str, skip_blank: bool) -> Iterator[Text]:
    number = 0
    while line := _read(stream, _MAX_BYTES + 2, where, line=True):
        number += 1
        here = f"{where} line {number}"
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if not line:  # only a byte order mark
                return
        if line.endswith(b"\n"):
            line = line[:-2] if line.endswith(b"\r\n") else line[:-1]
        elif len(line) > _MAX_BYTES:
            raise InputError(f"{here}: expected at most {_MAX_BYTES} bytes, got more")
        text = _decode(line, where, first_line=number)
        if text.strip() or not skip_blank:
            yield Text(check_text(text, here), here)


def _read(stream: BinaryIO, limit: int, where: str, *, line: bool = False) -> bytes:
    """Read a line, or everything, up to a limit. Raises InputError if the stream cannot be read."""
    try:
        return stream.readline(limit) if line else stream.read(limit)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it cannot be read"
        raise InputError(f"{where}: {reason}") from None


def _decode(data: bytes, where: str, *, first_line: int) -> str:
    """Decode UTF-8. Raises InputError that names the line.

    NUL bytes are rejected although UTF-8 allows them. ASCII text in UTF-16 without a byte order mark is valid UTF-8
    with a NUL byte next to each letter; accepting it would silently give results for the wrong texts.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        start, reason = error.start, error.reason
    else:
        start, reason = data.find(b"\0"), "a NUL byte, as in UTF-16; convert it to UTF-8"
        if start < 0:
            return text
    line = first_line + data.count(b"\n", 0, start)
    raise InputError(f"{where} line {line}: expected UTF-8, got {reason}")
