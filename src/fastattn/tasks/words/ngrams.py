"""The character n-grams of fastText and their buckets.

https://github.com/facebookresearch/fastText/blob/main/src/dictionary.cc (computeSubwords and hash) defines both: the
n-grams of `<word>`, counted in UTF-8 characters, in the order of their first character and then of their length. A
bucket is the 32-bit FNV-1a hash of the bytes, each taken as a signed char, modulo the number of buckets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

_START, _PRIME = 2166136261, 16777619
_END_OF_SENTENCE = b"</s>"  # a word without n-grams


@dataclass(frozen=True, slots=True)
class Ngrams:
    """The n-grams of a model: from `low` to `high` characters, in n_buckets buckets."""

    low: int
    high: int
    n_buckets: int

    def __bool__(self) -> bool:
        return self.n_buckets > 0 and self.high > 0

    def buckets(self, words: Sequence[bytes]) -> list[NDArray[np.int64]]:
        """Return the buckets of the n-grams of each word, in order."""
        if not self or not words:
            return [np.zeros(0, np.int64) for _ in words]
        marked = [b"" if word == _END_OF_SENTENCE else b"<" + word + b">" for word in words]
        data = np.frombuffer(b"".join(marked), np.uint8)
        starts = np.append(np.flatnonzero((data & 0xC0) != 0x80), len(data))  # of each character, and the end
        word_ends = np.fromiter(accumulate(map(len, marked)), np.int64, len(marked))
        word_of = np.searchsorted(word_ends, starts[:-1], side="right")
        last = np.searchsorted(starts, word_ends)  # the number of the character after each word
        first = np.searchsorted(starts, word_ends - [len(word) for word in marked])
        hashes = self._hashes(data, starts, last[word_of], first[word_of])
        kept = hashes >= 0
        rows = np.flatnonzero(kept.any(axis=1))
        counts = np.bincount(word_of[rows], weights=kept[rows].sum(axis=1), minlength=len(words)).astype(np.int64)
        return np.split(hashes[kept], np.cumsum(counts)[:-1])

    def _hashes(
        self, data: NDArray[np.uint8], starts: NDArray[np.int64], last: NDArray[np.int64], first: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the bucket of each n-gram [n_characters, n_lengths] by first character and length; -1: there is none.

        first, last: the first character of the word of each character, and the one after the word.
        """
        n = len(last)
        character = np.arange(n)
        values = np.full(n, _START, np.uint32)
        longest = int(np.diff(starts).max(initial=0))  # bytes of a character; more than 4 in invalid UTF-8
        found = np.full((n, max(0, self.high - self.low + 1)), -1, np.int64)
        for length in range(1, self.high + 1):
            added = np.minimum(character + length - 1, n - 1)
            inside = character + length <= last
            begin, end = starts[added], starts[added + 1]
            for i in range(longest):
                here = inside & (begin + i < end)
                signed = data[np.minimum(begin + i, len(data) - 1)].astype(np.int8).astype(np.int32).view(np.uint32)
                values = np.where(here, (values ^ signed) * np.uint32(_PRIME), values)
            # A single `<` or `>` is not an n-gram.
            marker = (length == 1) & ((character == first) | (character + 1 == last))
            if length >= self.low:
                found[:, length - self.low] = np.where(inside & ~marker, values.astype(np.int64) % self.n_buckets, -1)
        return found
