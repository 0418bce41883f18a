"""The searches of `KeyedVectors`: nearest words, analogies and ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count, quote
from fastattn.errors import DTypeError, InputError, UnknownKeyError
from fastattn.tasks.search.similarity import pair_scores, product
from fastattn.tasks.search.top_k import TopK
from fastattn.tasks.search.vectors import block_rows, blocks, lengths, normalized
from fastattn.tasks.words.table import Rows

Wide: TypeAlias = "NDArray[np.float64]"
Item: TypeAlias = "str | int | NDArray[Any]"
_MANY = 2**31 - 1


class WordQueries(ABC):
    """Searches over a table of words and vectors."""

    vector_size: int
    vectors: Rows
    index_to_key: list[str]
    key_to_index: dict[str, int]
    _norms: Wide | None

    def __len__(self) -> int:
        return len(self.index_to_key)

    @abstractmethod
    def get_vector(self, key: str | int, norm: bool = False) -> Rows: ...

    @abstractmethod
    def get_index(self, key: str | int, default: int | None = None) -> int: ...

    @abstractmethod
    def similarity(self, w1: str | int, w2: str | int) -> float: ...

    def _row(self, key: object) -> int | None:
        """Return the row of a word or a row number; None if there is none."""
        if isinstance(key, str):
            return self.key_to_index.get(key)
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            return int(key) if 0 <= key < len(self) else None
        raise DTypeError(f"key: expected a word or a row number, got {type(key).__name__}")

    def _unknown(self, key: object) -> UnknownKeyError:
        return UnknownKeyError(f"key: expected one of the {len(self)} words, got {quote(key)}")

    # -- nearest words ------------------------------------------------------------------------------------------

    def most_similar(
        self,
        positive: object = None,
        negative: object = None,
        topn: int | None = 10,
        clip_start: int = 0,
        clip_end: int | None = None,
        restrict_vocab: int | None = None,
    ) -> Any:
        """Return the `topn` words nearest to a sum of vectors, with their cosines, the nearest first.

        positive, negative: a key, a vector [d], or a list of keys, vectors and (key or vector, weight). The vectors are
        scaled to length 1, multiplied by their weights (1 and -1) and added: king - man + woman is
        `most_similar(["king", "woman"], ["man"])`. The given keys are left out. restrict_vocab: search only the first
        words; clip_start, clip_end: only these rows. topn=None returns the cosines of all words as float32 [n_words].
        Raises UnknownKeyError, DTypeError, InputError.
        """
        items, weights = _weighted(positive, negative)
        target = self._mean(items, weights, pre_normalize=True, post_normalize=True)
        first, last = self._range(clip_start, clip_end, restrict_vocab)
        if topn is None:
            return self._cosines(target, first, last)
        wanted = check_count("topn", topn, high=_MANY)
        given = self._rows_of(items)
        return self._nearest(target, wanted, given, first, last)

    def similar_by_word(self, word: str, topn: int | None = 10, restrict_vocab: int | None = None) -> Any:
        """Call `most_similar` for one word."""
        return self.most_similar([word], topn=topn, restrict_vocab=restrict_vocab)

    similar_by_key = similar_by_word

    def similar_by_vector(self, vector: NDArray[Any], topn: int | None = 10, restrict_vocab: int | None = None) -> Any:
        """Call `most_similar` for one vector [d]."""
        return self.most_similar([vector], topn=topn, restrict_vocab=restrict_vocab)

    def most_similar_cosmul(
        self, positive: object = None, negative: object = None, topn: int | None = 10, restrict_vocab: int | None = None
    ) -> Any:
        """Return the words with the largest product of shifted cosines (Levy and Goldberg 2014, equation 4).

        A score is the product of (1 + cosine) / 2 over the positive items, divided by that over the negative ones plus
        1e-6. The arguments are those of `most_similar`, without weights. Raises UnknownKeyError, DTypeError,
        InputError.
        """
        above, below = (_listed(items) for items in (positive, negative))
        if not above:
            raise InputError("positive: expected at least one word, got none")
        first, last = self._range(0, None, restrict_vocab)
        factors = [
            [(1 + self._cosines(self._vector(item), first, last).astype(np.float64)) / 2 for item in items]
            for items in (above, below)
        ]
        ones = np.ones(last - first)
        scores = (np.prod([ones, *factors[0]], axis=0) / (np.prod([ones, *factors[1]], axis=0) + 1e-6)).astype(
            np.float32
        )
        if topn is None:
            return scores
        given = self._rows_of([*above, *below])
        wanted = check_count("topn", topn, high=_MANY)
        best = TopK(1, wanted + len(given))
        best.add(0, first, scores[None])
        return self._named(best, wanted, given)

    def _nearest(self, target: Rows, wanted: int, given: set[int], first: int, last: int) -> list[tuple[str, float]]:
        if not wanted:
            return []
        best = TopK(1, wanted + len(given))
        for rows in blocks(last - first, block_rows(self.vector_size)):
            best.add(0, first + rows.start, self._cosines(target, first + rows.start, first + rows.stop)[None])
        return self._named(best, wanted, given)

    def _named(self, best: TopK, wanted: int, given: set[int]) -> list[tuple[str, float]]:
        scores, rows = best.of(0)
        found = [
            (self.index_to_key[row], float(score))
            for row, score in zip(rows.tolist(), scores, strict=True)
            if row not in given
        ]
        return found[:wanted]

    def _cosines(self, target: Rows, first: int, last: int) -> Rows:
        """Return the cosines of rows `first` to `last` with a vector [d]: the product divided by both lengths."""
        if self._norms is None:
            norms = np.empty(len(self))
            for rows in blocks(len(self), block_rows(self.vector_size)):
                norms[rows] = lengths(np.ascontiguousarray(self.vectors[rows], np.float64))[:, 0]
            self._norms = norms
        unit = normalized(target)[None]
        found = np.empty(last - first, np.float32)
        for rows in blocks(last - first, block_rows(self.vector_size)):
            part = slice(first + rows.start, first + rows.stop)
            scores = product(self.vectors[part], unit)[:, 0].astype(np.float64)
            found[rows] = scores / np.maximum(self._norms[part], 1e-12)
        return found

    def _range(self, first: int, last: int | None, restrict_vocab: int | None) -> tuple[int, int]:
        """Return the rows to search."""
        if restrict_vocab is not None:
            first, last = 0, check_count("restrict_vocab", restrict_vocab, low=1)
        end = len(self) if last is None else min(len(self), check_count("clip_end", last, low=1))
        return min(check_count("clip_start", first), end), end

    # -- means and ranks ----------------------------------------------------------------------------------------

    def get_mean_vector(
        self,
        keys: Sequence[Item],
        weights: Sequence[float] | NDArray[Any] | None = None,
        pre_normalize: bool = True,
        post_normalize: bool = False,
        ignore_missing: bool = True,
    ) -> Rows:
        """Return the weighted mean [d] of keys and vectors, divided by the sum of the absolute weights.

        pre_normalize: scale the vectors of keys to length 1 first. ignore_missing: skip unknown words. Raises
        UnknownKeyError, InputError.
        """
        if not len(keys):
            raise InputError("keys: expected at least one word, got none")
        numbers = np.ones(len(keys)) if weights is None else np.asarray(weights, np.float64)
        if numbers.shape != (len(keys),):
            raise InputError(f"weights: expected shape [{len(keys)}], got {list(numbers.shape)}")
        kept = list(range(len(keys)))
        if ignore_missing:
            kept = [i for i in kept if isinstance(keys[i], np.ndarray) or self._has_vector(keys[i])]
        return self._mean(
            [keys[i] for i in kept], numbers[kept], pre_normalize=pre_normalize, post_normalize=post_normalize
        )

    def _has_vector(self, key: object) -> bool:
        return key in self  # type: ignore[operator]

    def _mean(self, items: Sequence[Any], weights: Wide, *, pre_normalize: bool, post_normalize: bool) -> Rows:
        if not len(items) and post_normalize:
            raise InputError("positive: expected at least one word, got none")
        total = np.zeros(self.vector_size)
        for item, weight in zip(items, weights, strict=True):
            vector = self._vector(item)
            unit = pre_normalize and not isinstance(item, np.ndarray)
            wide = vector.astype(np.float64)
            total += weight * (wide / max(float(lengths(wide)[0]), 1e-12) if unit else wide)
        divisor = float(np.abs(weights).sum())
        mean = total / divisor if divisor else total
        found = mean / max(float(lengths(mean)[0]), 1e-12) if post_normalize else mean
        return found.astype(np.float32)

    def _vector(self, item: Any) -> Rows:
        if not isinstance(item, np.ndarray):
            return self.get_vector(item)
        if item.shape != (self.vector_size,):
            raise InputError(f"vector: expected shape [{self.vector_size}], got {list(item.shape)}")
        return item.astype(np.float32)

    def _rows_of(self, items: Sequence[Any]) -> set[int]:
        """Return the rows of the items that are known keys."""
        rows = [self._row(item) for item in items if not isinstance(item, np.ndarray)]
        return {row for row in rows if row is not None}

    def rank_by_centrality(self, words: Sequence[str], use_norm: bool = True) -> list[tuple[float, str]]:
        """Return (cosine with the mean of all given words, word), the most central first; unknown words are skipped.

        Raises InputError if no word is known.
        """
        used = [word for word in words if self._has_vector(word)]
        if not used:
            raise InputError("words: expected at least one known word, got none")
        vectors = [self.get_vector(word, use_norm) for word in used]
        mean = self._mean(vectors, np.ones(len(used)), pre_normalize=False, post_normalize=True)
        scores = [(float(pair_scores("dot", vector, mean)), word) for vector, word in zip(vectors, used, strict=True)]
        return sorted(scores, reverse=True)

    def doesnt_match(self, words: Sequence[str]) -> str:
        """Return the word that is farthest from the mean of the given words. Raises InputError."""
        return self.rank_by_centrality(words)[-1][1]

    def distances(self, word_or_vector: Any, other_words: Iterable[str | int] = ()) -> Rows:
        """Return 1 - cosine of a key or vector with other keys, or with all words. Raises UnknownKeyError."""
        vector = self._vector(word_or_vector)
        rows = [self.get_index(word) for word in other_words]
        cosines = self._cosines(vector, 0, len(self)) if not rows else self._cosines_of(vector, rows)
        found: Rows = np.subtract(np.float32(1), cosines)
        return found

    def _cosines_of(self, vector: Rows, rows: Sequence[int]) -> Rows:
        return np.array([self._cosines(vector, row, row + 1)[0] for row in rows], np.float32)

    def closer_than(self, key1: str | int, key2: str | int) -> list[str]:
        """Return all words that are closer to key1 than key2 is. Raises UnknownKeyError."""
        distances = self.distances(key1)
        own = self._row(key1)
        nearer = np.flatnonzero(distances < distances[self.get_index(key2)])
        return [self.index_to_key[row] for row in nearer if row != own]

    def rank(self, key1: str | int, key2: str | int) -> int:
        """Return the rank of key2 among all words by their distance from key1; 1 is the nearest.

        Raises UnknownKeyError.
        """
        return len(self.closer_than(key1, key2)) + 1

    def most_similar_to_given(self, key1: str | int, keys_list: Sequence[str]) -> str:
        """Return the key of the list that is most similar to key1. Raises UnknownKeyError, InputError."""
        if not len(keys_list):
            raise InputError("keys_list: expected at least one word, got none")
        return keys_list[int(np.argmax([self.similarity(key1, key) for key in keys_list]))]

    def n_similarity(self, ws1: Sequence[str], ws2: Sequence[str]) -> float:
        """Return the cosine of the mean vectors of two lists of keys; unknown words are skipped. Raises InputError."""
        first, second = (self.get_mean_vector(words, pre_normalize=False) for words in (ws1, ws2))
        return float(pair_scores("cosine", first, second))


def _listed(items: object) -> list[Any]:
    """Return a key, a vector, a matrix or a list of items as a list."""
    if items is None:
        return []
    if isinstance(items, (str, int, np.integer)) or (isinstance(items, np.ndarray) and items.ndim == 1):
        return [items]
    if isinstance(items, (Sequence, np.ndarray)):
        return list(items)
    raise DTypeError(f"expected a word, a vector or a list of them, got {type(items).__name__}")


def _weighted(positive: object, negative: object) -> tuple[list[Any], Wide]:
    """Return the items and their weights."""
    items, weights = [], []
    for sign, given in ((1.0, positive), (-1.0, negative)):
        for item in _listed(given):
            if isinstance(item, (tuple, list)) and len(item) == 2:
                items.append(item[0])
                weights.append(float(item[1]))
            else:
                items.append(item)
                weights.append(sign)
    return items, np.array(weights)
