"""The binary files of fastText (`.bin`), of unsupervised models.

https://github.com/facebookresearch/fastText/blob/main/src (FastText::saveModel, Args::save, Dictionary::save and
DenseMatrix::save) defines the format. Older files have no magic number and begin with the same arguments. All numbers
are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastattn.checks import quote
from fastattn.files import malformed
from fastattn.tasks.words.ngrams import Ngrams
from fastattn.tasks.words.stream import MAX_WORD_BYTES, WordStream, open_stream
from fastattn.tasks.words.table import Rows, Words, WordTable

_MAGIC = 793712314
_VERSIONS = (11, 12)
_ARGUMENTS = ("dim", "ws", "epoch", "minCount", "neg", "wordNgrams", "loss", "model", "bucket", "minn", "maxn",
              "lrUpdateRate")  # fmt: skip
_SUPERVISED = 3
_MAX_DIM, _MAX_NGRAM, _MAX_BUCKETS = 1 << 20, 1000, 1 << 30
_ENTRY_BYTES = 10  # of an empty word in the dictionary: its end, its count and its type
_BLOCK_WORDS = 4096


@dataclass(frozen=True, slots=True)
class FastTextTable:
    """The words with their finished vectors, and the vectors of the n-grams [n_buckets, d]."""

    words: WordTable
    ngrams: Ngrams
    ngram_vectors: Rows


def read_fasttext(path: Path, encoding: str, unicode_errors: str) -> FastTextTable:
    """Read the vectors of an unsupervised model. Raises ModelFormatError, ModelNotFoundError."""
    with open_stream(path) as stream:
        arguments, new_format = _arguments(stream)
        words, raw = _dictionary(stream, Words(path, encoding, unicode_errors), new_format=new_format)
        dim, n_buckets = arguments["dim"], arguments["bucket"]
        _matrix_header(stream, len(raw) + n_buckets, dim, "the input matrix", new_format=new_format)
        vectors = np.empty((len(raw), dim), np.float32)
        stream.floats(vectors, "the vectors of the words")
        ngram_vectors = np.empty((n_buckets, dim), np.float32)
        stream.floats(ngram_vectors, "the vectors of the n-grams")
        _output_matrix(stream, dim, new_format=new_format)
    ngrams = Ngrams(arguments["minn"], arguments["maxn"], n_buckets)
    _add_ngrams(vectors, raw, ngrams, ngram_vectors)
    return FastTextTable(words.table(vectors), ngrams, ngram_vectors)


def mean_vector(own: Rows | None, buckets: np.ndarray, ngram_vectors: Rows) -> Rows:
    """Return the mean of a word's own vector, if it has one, and those of its n-grams; zeros if there are none."""
    rows = ngram_vectors[buckets]
    if own is not None:
        rows = np.concatenate([own[None], rows])
    if not len(rows):
        return np.zeros(ngram_vectors.shape[1], np.float32)
    mean: Rows = (rows.sum(axis=0, dtype=np.float64) / len(rows)).astype(np.float32)
    return mean


def _add_ngrams(vectors: Rows, words: list[bytes], ngrams: Ngrams, ngram_vectors: Rows) -> None:
    """Replace the vector of each word with the mean of itself and its n-grams."""
    for first in range(0, len(words) if ngrams else 0, _BLOCK_WORDS):
        for i, buckets in enumerate(ngrams.buckets(words[first : first + _BLOCK_WORDS]), first):
            vectors[i] = mean_vector(vectors[i], buckets, ngram_vectors)


def _unpack(stream: WordStream, layout: str, what: str) -> tuple[int, ...]:
    return struct.unpack(f"<{layout}", stream.exactly(struct.calcsize(f"<{layout}"), what))


def _arguments(stream: WordStream) -> tuple[dict[str, int], bool]:
    """Return the arguments of the model, and whether the file begins with the magic number."""
    magic, version = _unpack(stream, "2i", "the header")
    new_format = magic == _MAGIC
    if new_format and version not in _VERSIONS:
        raise malformed(stream.path, "version", f"expected version 11 or 12 of fastText's format, got {version}")
    first = () if new_format else (magic, version)
    values = (*first, *_unpack(stream, f"{len(_ARGUMENTS) - len(first)}i", "the arguments"))
    stream.exactly(8, "the arguments")  # the sampling threshold
    arguments = dict(zip(_ARGUMENTS, values, strict=True))
    if arguments["model"] == _SUPERVISED:
        raise malformed(
            stream.path, "supervised", "expected an unsupervised model (cbow or skipgram), got a supervised classifier"
        )
    limits = {"dim": (1, _MAX_DIM), "model": (1, 2), "bucket": (0, _MAX_BUCKETS), "minn": (0, _MAX_NGRAM),
              "maxn": (0, _MAX_NGRAM)}  # fmt: skip
    for name, (low, high) in limits.items():
        if not low <= arguments[name] <= high:
            raise malformed(
                stream.path,
                "header",
                f"{name}: expected {low} to {high}, got {arguments[name]}; this is not a .bin file of fastText, or it "
                "is damaged",
            )
    return arguments, new_format


def _dictionary(stream: WordStream, words: Words, *, new_format: bool) -> tuple[Words, list[bytes]]:
    """Return the words, and their bytes in the order of the file."""
    size, n_words, n_labels = _unpack(stream, "3i", "the dictionary")
    stream.exactly(8, "the dictionary")  # the number of tokens
    pruned = _unpack(stream, "q", "the dictionary")[0] if new_format else -1
    if n_labels or size != n_words:
        raise stream.error(f"expected only words, got {size} entries, {n_words} of them words and {n_labels} labels")
    if pruned > 0:
        raise malformed(stream.path, "quantized", "quantized models (.ftz) are not supported; use the .bin file")
    if not 0 <= size * _ENTRY_BYTES <= stream.remaining:
        raise stream.error(f"expected a dictionary that fits in the file, got {size} words", code="truncated")
    raw = []
    for i in range(size):
        start = stream.position
        data = stream.until(b"\0", MAX_WORD_BYTES)
        if data is None:
            raise stream.error(f"expected word {i + 1} of {size}, found none", at=start)
        _, kind = _unpack(stream, "qb", f"word {i + 1}")
        if kind != 0:
            raise stream.error(f"word {i + 1}, {quote(data)}: expected a word, got an entry of type {kind}", at=start)
        if not words.add(data, f"byte {start}: word {i + 1}", start):
            raise stream.error(f"word {i + 1}: expected a new word, got {quote(data)} again", at=start)
        raw.append(data)
    return words, raw


def _matrix_header(stream: WordStream, rows: int, dim: int, what: str, *, new_format: bool) -> None:
    """Check the size of a matrix."""
    if new_format and stream.exactly(1, what) != b"\0":
        raise malformed(stream.path, "quantized", "quantized models (.ftz) are not supported; use the .bin file")
    found = _unpack(stream, "2q", what)
    if found != (rows, dim):
        raise stream.error(f"{what}: expected {rows} rows of {dim} numbers, got {found[0]} of {found[1]}")
    if rows * dim * 4 > stream.remaining:
        raise stream.error(
            f"{what}: expected {rows * dim * 4} bytes, found at most {stream.remaining}; the file is incomplete",
            code="truncated",
        )


def _output_matrix(stream: WordStream, dim: int, *, new_format: bool) -> None:
    """Skip the output matrix, which only training needs, and check that the file ends after it."""
    what = "the output matrix"
    if new_format and stream.exactly(1, what) != b"\0":
        raise malformed(stream.path, "quantized", "quantized models (.ftz) are not supported; use the .bin file")
    rows, width = _unpack(stream, "2q", what)
    if rows < 0 or width != dim or rows * width * 4 > stream.remaining:
        raise stream.error(f"{what}: expected rows of {dim} numbers within the file, got {rows} of {width}")
    stream.skip(rows * width * 4, what)
    if stream.read(1):
        raise stream.error(f"expected the end of the file after {what}, found more")
