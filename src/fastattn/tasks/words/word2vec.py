"""The file formats of word2vec: text, with or without a header (GloVe), and binary.

Text: a header `n_words width`, then one line per word: the word and its numbers, separated by spaces. GloVe's files
have no header. Binary: the same header, then for each word its bytes, a space and little-endian float32 numbers.
https://code.google.com/archive/p/word2vec (function SaveModel) defines both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fastattn.checks import quote
from fastattn.errors import ModelFormatError
from fastattn.files import replaced_file
from fastattn.tasks.words.stream import MAX_WORD_BYTES, WordStream, open_stream
from fastattn.tasks.words.table import Rows, Words, WordTable

_MAX_HEADER_BYTES = 100
_MAX_WIDTH = 1 << 20
_MAX_NUMBER_BYTES = 64  # of one number in a text file, including its space
_FIRST_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Word2vecOptions:
    """How to read a file. limit: the number of words to read; None: all of them."""

    encoding: str
    unicode_errors: str
    limit: int | None


def read_text(path: Path, options: Word2vecOptions, *, no_header: bool) -> WordTable:
    """Read a text file. Raises ModelFormatError, ModelNotFoundError."""
    with open_stream(path) as stream:
        if no_header:
            return _read_lines(stream, options, None, None)
        n_words, width = _header(stream)
        # A number needs at least one digit and a space, and a line at least a newline.
        _check_room(stream, n_words, 2 * width + 1, last=1)
        return _read_lines(stream, options, n_words, width)


def read_binary(path: Path, options: Word2vecOptions) -> WordTable:
    """Read a binary file. Raises ModelFormatError, ModelNotFoundError."""
    with open_stream(path) as stream:
        n_words, width = _header(stream)
        _check_room(stream, n_words, 4 * width + 1)
        wanted = n_words if options.limit is None else min(n_words, options.limit)
        words = Words(path, options.encoding, options.unicode_errors)
        vectors = np.empty((wanted, width), np.float32)
        for i in range(wanted):
            start = stream.position
            data = stream.until(b" ", MAX_WORD_BYTES)
            if data is None:
                raise stream.error(f"expected word {i + 1} of {n_words} and a space, found none", at=start)
            data = data.lstrip(b"\n")  # some programs write a newline after each vector
            if words.add(data, f"byte {start}: word {i + 1}", start):
                stream.floats(vectors[len(words) - 1], f"the vector of word {i + 1}")
            else:
                stream.skip(4 * width, f"the vector of word {i + 1}")
        start = stream.position
        if options.limit is None and stream.read(2) not in (b"", b"\n"):
            raise _too_long(stream, n_words, start)
        return words.table(vectors)


def _header(stream: WordStream) -> tuple[int, int]:
    """Return the number of words and the width of the vectors."""
    line = stream.until(b"\n", _MAX_HEADER_BYTES)
    parts = [] if line is None else line.split()
    if line is None or len(parts) != 2 or not all(part.isdigit() and len(part) <= 18 for part in parts):
        found = "none" if line is None else quote(line)
        raise stream.error(
            f'expected the header "n_words width", got {found}; for a text file without a header, like those of GloVe, '
            "pass no_header=True",
            at=0,
            code="header",
        )
    n_words, width = int(parts[0]), int(parts[1])
    if not 1 <= width <= _MAX_WIDTH:
        raise stream.error(f"header: expected a width of 1 to {_MAX_WIDTH}, got {width}", at=0, code="header")
    return n_words, width


def _check_room(stream: WordStream, n_words: int, word_bytes: int, last: int = 0) -> None:
    """Reject a header that announces more than the file can contain, before memory is allocated."""
    if n_words * word_bytes - last > stream.remaining:
        raise stream.error(
            f"header: expected at least {n_words * word_bytes} bytes for {n_words} words, found at most "
            f"{stream.remaining}; the file is incomplete or its header is wrong",
            at=0,
            code="truncated",
        )


def _too_long(stream: WordStream, n_words: int, start: int) -> ModelFormatError:
    return stream.error(
        f"expected the end of the file after the {n_words} words of its header, found more; to ignore the rest, pass "
        f"limit={n_words}",
        at=start,
        code="count",
    )


def _read_lines(stream: WordStream, options: Word2vecOptions, n_words: int | None, width: int | None) -> WordTable:
    """Read one word per line: n_words of them, or all if that is None."""
    wanted = min((n for n in (n_words, options.limit) if n is not None), default=None)
    words = Words(stream.path, options.encoding, options.unicode_errors)
    offset = 1 if n_words is None else 2  # the number of the first line
    limit = MAX_WORD_BYTES + _MAX_NUMBER_BYTES * (_MAX_WIDTH if width is None else width)
    # A header was compared with the size of the file, so its number of rows can be allocated.
    n_rows = 0 if n_words is None or wanted is None else wanted
    vectors = np.empty((n_rows, width or 0), np.float32)
    n_lines = 0
    while wanted is None or n_lines < wanted:
        start = stream.position
        line = stream.line(limit)
        if line is None:
            break
        where = f"line {n_lines + offset}"
        data, numbers = _parse_line(stream, line, where, start, width)
        if width is None:
            width = len(numbers)
            vectors = np.empty((_FIRST_ROWS, width), np.float32)
        n_lines += 1
        if words.add(data, where, start):
            if len(words) > len(vectors):
                vectors.resize((2 * len(vectors), width), refcheck=False)  # moves no numbers if the memory has room
            with np.errstate(over="ignore"):  # the next line reports infinity
                vectors[len(words) - 1] = numbers
            _check_finite(stream, vectors[len(words) - 1], where, start)
    if wanted is not None and n_lines < wanted and n_words is not None:
        raise stream.error(f"expected {n_words} words, as the header says, found {n_lines}", code="truncated")
    if n_words is not None and options.limit is None:
        start = stream.position
        rest = stream.line(limit)
        if rest is not None and (rest.strip() or stream.read(1)):
            raise _too_long(stream, n_words, start)
    if width is None:
        raise stream.error("expected words and vectors, found an empty file", code="truncated")
    vectors.resize((len(words), width), refcheck=False)
    return words.table(vectors)


def _parse_line(
    stream: WordStream, line: bytes, where: str, start: int, width: int | None
) -> tuple[bytes, list[float]]:
    """Return the word and the numbers of a line. The word may contain spaces unless its last part is a number."""
    parts = line.rstrip().split(b" ")
    if width is not None and len(parts) > width + 1 and _number(parts[-width - 1]) is None:
        parts = [b" ".join(parts[:-width]), *parts[-width:]]
    if len(parts) < 2 or (width is not None and len(parts) != width + 1):
        expected = "numbers" if width is None else f"{width} numbers"
        found = f"{len(parts) - 1} after {quote(parts[0])}"
        raise stream.error(
            f"{where}: expected a word and {expected}, separated by spaces, got {found}",
            at=start,
        )
    numbers = []
    for part in parts[1:]:
        number = _number(part)
        if number is None:
            raise stream.error(f"{where}: expected a number, got {quote(part)}", at=start)
        numbers.append(number)
    return parts[0], numbers


def _number(text: bytes) -> float | None:
    """Return a number in C's notation; None for any other text."""
    try:
        return None if b"_" in text else float(text)
    except ValueError:
        return None


def _check_finite(stream: WordStream, vector: Rows, where: str, start: int) -> None:
    total = float(vector.sum(dtype=np.float64))
    if not math.isfinite(total) and not np.isfinite(vector).all():
        bad = vector[~np.isfinite(vector)][0]
        raise stream.error(f"{where}: expected finite float32 numbers, got {bad}", at=start, code="nonfinite")


def write(path: Path, table: WordTable, *, binary: bool, header: bool) -> None:
    """Write a file of word2vec. It replaces an existing file only when it is complete. Raises OSError."""
    with replaced_file(path) as file:
        _write(file, table, binary=binary, header=header)


def _write(file: BinaryIO, table: WordTable, *, binary: bool, header: bool) -> None:
    if header:
        file.write(f"{len(table.words)} {table.vectors.shape[1]}\n".encode())
    for word, vector in zip(table.words, table.vectors, strict=True):
        numbers = vector.astype("<f4").tobytes() if binary else " ".join(map(str, vector)).encode() + b"\n"
        file.write(word.encode() + b" " + numbers)
