"""`KeyedVectors`: word vectors of word2vec, GloVe and fastText, with the methods of gensim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count, check_flag, check_path, check_str, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.search.similarity import pair_scores
from fastattn.tasks.search.vectors import normalized
from fastattn.tasks.words.fasttext import mean_vector, read_fasttext
from fastattn.tasks.words.ngrams import Ngrams
from fastattn.tasks.words.queries import WordQueries
from fastattn.tasks.words.table import Rows, WordTable, check_encoding
from fastattn.tasks.words.word2vec import Word2vecOptions, read_binary, read_text, write

if TYPE_CHECKING:
    from typing_extensions import Self

Key: TypeAlias = "str | int"


class KeyedVectors(WordQueries):
    """Words and their vectors. The names are those of gensim 4.

    vectors: float32 [n_words, vector_size], read-only. index_to_key: the words in order. key_to_index: the row of each
    word. A key is a word, or the number of a row. Scores are cosines; a vector of zeros has the cosine 0 with every
    vector. The result for a word does not depend on the other words.
    """

    def __init__(self, vector_size: int) -> None:
        """Create an empty table; `add_vectors` adds words. Raises DTypeError, InputError."""
        self.vector_size = check_count("vector_size", vector_size, low=1)
        self._set(WordTable([], np.zeros((0, self.vector_size), np.float32)))

    @classmethod
    def _of(cls, table: WordTable) -> Self:
        found = cls(table.vectors.shape[1])
        found._set(table)
        return found

    @classmethod
    def load_word2vec_format(
        cls,
        fname: str | Path,
        fvocab: None = None,
        binary: bool = False,
        encoding: str = "utf8",
        unicode_errors: str = "strict",
        limit: int | None = None,
        datatype: Any = np.float32,
        no_header: bool = False,
    ) -> Self:
        """Read a word2vec file (text or binary), a fastText `.vec` file, or with `no_header` a GloVe file.

        The file may be compressed with gzip. limit: read only the first words. In a text file, a word may contain
        spaces if the part after its last space is not a number. If a word occurs twice, its first vector is used, with
        a warning. Raises ModelFormatError with the line or byte, ModelNotFoundError, InputError, DTypeError,
        OSError.
        """
        if fvocab is not None:
            raise InputError("fvocab: expected None, because counts of words are not read")
        if np.dtype(datatype) != np.float32:
            raise InputError(f"datatype: expected float32, got {quote(str(datatype))}")
        check_encoding(check_str("encoding", encoding), check_str("unicode_errors", unicode_errors))
        wanted = None if limit is None else check_count("limit", limit, low=1)
        options = Word2vecOptions(encoding, unicode_errors, wanted)
        path = check_path("fname", fname)
        if check_flag("binary", binary):
            if no_header:
                raise InputError("no_header: expected False with binary=True, because only text files have no header")
            return cls._of(read_binary(path, options))
        return cls._of(read_text(path, options, no_header=check_flag("no_header", no_header)))

    def save_word2vec_format(
        self, fname: str | Path, fvocab: None = None, binary: bool = False, *, write_header: bool = True
    ) -> None:
        """Write all words in order as a word2vec file.

        Raises InputError for a word that the format cannot store, DTypeError, OSError.
        """
        if fvocab is not None:
            raise InputError("fvocab: expected None, because there are no counts of words")
        for word in self.index_to_key:
            if any(mark in word for mark in " \n"):
                raise InputError(f"key {quote(word)}: expected no space and no newline, which separate words")
        table = WordTable(self.index_to_key, self.vectors)
        binary, header = check_flag("binary", binary), check_flag("write_header", write_header)
        write(check_path("fname", fname), table, binary=binary, header=header)

    def __repr__(self) -> str:
        return f"{type(self).__name__}<vector_size={self.vector_size}, {len(self)} keys>"

    # -- words --------------------------------------------------------------------------------------------------

    def __contains__(self, key: object) -> bool:
        return self.has_index_for(key)

    def has_index_for(self, key: object) -> bool:
        """Return whether the table has a row for a key."""
        return self._row(key) is not None

    def get_index(self, key: Key, default: int | None = None) -> int:
        """Return the row of a key; `default` if it is unknown. Raises UnknownKeyError."""
        row = self._row(key)
        if row is None:
            if default is None:
                raise self._unknown(key)
            return default
        return row

    def __getitem__(self, key_or_keys: Any) -> Rows:
        """Return the vector of a key [d], or those of a list of keys [n, d]. Raises UnknownKeyError."""
        if isinstance(key_or_keys, (str, int, np.integer)):
            return self.get_vector(cast(Key, key_or_keys))
        if not isinstance(key_or_keys, Sequence) and not isinstance(key_or_keys, np.ndarray):
            raise DTypeError(f"key: expected a word, a row number or a list of them, got {type(key_or_keys).__name__}")
        if not len(key_or_keys):
            return np.zeros((0, self.vector_size), np.float32)
        return np.stack([self.get_vector(key) for key in key_or_keys])

    def get_vector(self, key: Key, norm: bool = False) -> Rows:
        """Return the vector of a key [d]; with `norm`, scaled to length 1. Raises UnknownKeyError."""
        vector = self.vectors[self.get_index(key)]
        return normalized(vector) if check_flag("norm", norm) else vector

    def get_normed_vectors(self) -> Rows:
        """Return a copy of all vectors, scaled to length 1."""
        return normalized(self.vectors)

    def add_vectors(self, keys: Sequence[str], weights: object, *, replace: bool = False) -> None:
        """Add words and their vectors [n, d]. A known word keeps its vector, unless `replace` is true.

        Raises DTypeError, InputError.
        """
        names = [keys] if isinstance(keys, str) else [check_str("keys: a word", key) for key in keys]
        added = np.array(weights, np.float32, ndmin=2)
        if added.shape != (len(names), self.vector_size):
            raise InputError(f"weights: expected shape [{len(names)}, {self.vector_size}], got {list(added.shape)}")
        if not np.isfinite(added).all():
            raise InputError("weights: expected finite numbers, got NaN or infinity")
        rows: dict[str, int] = {}
        for i, name in enumerate(names):
            if check_flag("replace", replace) or name not in rows:
                rows[name] = i
        vectors, known = np.array(self.vectors), self.key_to_index
        for name, i in rows.items():
            if name in known and replace:
                vectors[known[name]] = added[i]
        new = [name for name in rows if name not in known]
        self._set(WordTable([*self.index_to_key, *new], np.concatenate([vectors, added[[rows[name] for name in new]]])))

    def _set(self, table: WordTable) -> None:
        table.vectors.setflags(write=False)
        self.vectors = table.vectors
        self.index_to_key = table.words
        self.key_to_index = {word: i for i, word in enumerate(table.words)}
        self._norms: NDArray[np.float64] | None = None

    # -- pairs of words -----------------------------------------------------------------------------------------

    def similarity(self, w1: Key, w2: Key) -> float:
        """Return the cosine of two keys. Raises UnknownKeyError."""
        return float(pair_scores("cosine", self.get_vector(w1), self.get_vector(w2)))

    def distance(self, w1: Key, w2: Key) -> float:
        """Return 1 - `similarity`. Raises UnknownKeyError."""
        return 1 - self.similarity(w1, w2)


class FastTextKeyedVectors(KeyedVectors):
    """Word vectors of fastText. A word that is not in the table gets the mean vector of its character n-grams.

    vectors_ngrams: float32 [n_buckets, vector_size]. A word without n-grams gets zeros. `in` is true for every word if
    the model has n-grams; `has_index_for` tells whether a word is in the table.
    """

    _ngrams: Ngrams = Ngrams(0, 0, 0)

    def __init__(self, vector_size: int) -> None:
        super().__init__(vector_size)
        self.vectors_ngrams: Rows = np.zeros((0, self.vector_size), np.float32)

    @property
    def min_n(self) -> int:
        """The number of characters of the shortest n-grams."""
        return self._ngrams.low

    @property
    def max_n(self) -> int:
        """The number of characters of the longest n-grams."""
        return self._ngrams.high

    @property
    def bucket(self) -> int:
        """The number of vectors of n-grams."""
        return self._ngrams.n_buckets

    def __contains__(self, key: object) -> bool:
        return self.has_index_for(key) or (bool(self._ngrams) and isinstance(key, str))

    def get_vector(self, key: Key, norm: bool = False) -> Rows:
        """Return the vector of a key [d], even of an unknown word. Raises UnknownKeyError without n-grams."""
        if self.has_index_for(key) or not self._ngrams or not isinstance(key, str):
            return super().get_vector(key, norm)
        data = key.encode(self._encoding, "surrogatepass" if self._encoding == "utf-8" else "strict")
        vector = mean_vector(None, self._ngrams.buckets([data])[0], self.vectors_ngrams)
        return normalized(vector) if check_flag("norm", norm) else vector

    _encoding = "utf-8"


def load_facebook_vectors(
    path: str | Path, encoding: str = "utf-8", *, unicode_errors: str = "strict"
) -> FastTextKeyedVectors:
    """Read a `.bin` file of an unsupervised fastText model, with the vectors of its n-grams.

    The file may be compressed with gzip. The output layer, which only training needs, is not read.
    Raises ModelFormatError (also for supervised and for quantized models), ModelNotFoundError, InputError, OSError.
    """
    check_encoding(check_str("encoding", encoding), check_str("unicode_errors", unicode_errors))
    table = read_fasttext(check_path("path", path), encoding, unicode_errors)
    found = FastTextKeyedVectors(table.words.vectors.shape[1])
    found._set(table.words)
    table.ngram_vectors.setflags(write=False)
    found.vectors_ngrams, found._ngrams, found._encoding = table.ngram_vectors, table.ngrams, encoding
    return found
