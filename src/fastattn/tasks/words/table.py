"""A table of words and vectors, as stored in a file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import quote
from fastattn.errors import InputError
from fastattn.files import malformed

Rows = NDArray[np.float32]
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True)
class WordTable:
    """Words in the order of the file, each once, and their vectors [n_words, d]."""

    words: list[str]
    vectors: Rows


class Words:
    """Collects the words of a file; a word that occurs again is skipped, as in gensim."""

    def __init__(self, path: Path, encoding: str, errors: str) -> None:
        self.path = path
        self.index: dict[str, int] = {}
        self._encoding, self._errors = encoding, errors
        self._n_repeated, self._repeated = 0, ""

    def __len__(self) -> int:
        return len(self.index)

    def add(self, data: bytes, where: str, offset: int) -> bool:
        """Add a word; return False if it is known. where: its place for messages. Raises ModelFormatError."""
        try:
            word = data.decode(self._encoding, self._errors)
        except UnicodeDecodeError as error:
            raise malformed(
                self.path,
                "encoding",
                f"{where}: expected a word in {self._encoding}, got {quote(data)} ({error.reason}); pass encoding=, or "
                'unicode_errors="replace"',
                offset=offset,
            ) from None
        if word in self.index:
            self._n_repeated += 1
            self._repeated = self._repeated or word
            return False
        self.index[word] = len(self.index)
        return True

    def table(self, vectors: Rows) -> WordTable:
        """Return the words and the first rows of `vectors`; warn about repeated words."""
        if self._n_repeated:
            _log.warning(
                "%s: %d words occur again, for example %s; the first vector of each is used",
                self.path, self._n_repeated, quote(self._repeated),
            )  # fmt: skip
            vectors = np.ascontiguousarray(vectors[: len(self)])
        return WordTable(list(self.index), vectors)


def check_encoding(encoding: str, errors: str) -> None:
    """Check the names of a text encoding and of an error handler. Raises InputError."""
    try:
        b"\xff".decode(encoding, "replace")
        b"\xff".decode("ascii", errors)
    except LookupError as error:
        raise InputError(f"encoding, unicode_errors: expected names that Python knows: {error}") from None
    except UnicodeDecodeError:
        pass
