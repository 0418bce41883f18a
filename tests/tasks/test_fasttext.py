"""Binary files of fastText: the results of gensim and of fastText itself, hand-written files, and damaged files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import ModelFormatError, UnknownKeyError
from fastattn.tasks.words.ngrams import Ngrams
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.word_files import fasttext_file, fnv, load_gensim, ngrams_of, write


@pytest.mark.parametrize(("low", "high"), [(3, 6), (1, 1), (0, 2), (2, 9), (5, 3), (0, 0)])
def test_the_buckets_are_those_of_fasttext(low: int, high: int) -> None:
    words = ["a", "", "café", "日本語テキスト", "x" * 50, "\N{GRINNING FACE}\N{GRINNING FACE}", "zażółć"]
    expected = [[fnv(ngram) % 1000 for ngram in ngrams_of(word, low, high)] for word in words]
    ngrams = Ngrams(low, high, 1000)
    assert [row.tolist() for row in ngrams.buckets([word.encode() for word in words])] == expected
    assert [ngrams.buckets([word.encode()])[0].tolist() for word in words] == expected
    assert ngrams.buckets([b"</s>"])[0].tolist() == []


OWN = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
GRAMS = np.arange(14, dtype=np.float32).reshape(7, 2)
FASTTEXT = ["</s>", "café", "ab"]


def test_a_fasttext_file(tmp_path: Path) -> None:
    kv = fa.load_facebook_vectors(write(tmp_path / "f", fasttext_file(FASTTEXT, OWN, GRAMS)))
    assert kv.index_to_key == FASTTEXT
    assert (kv.min_n, kv.max_n, kv.bucket, kv.vector_size) == (2, 3, 7, 2)
    for word, own in zip(FASTTEXT[1:], OWN[1:], strict=True):
        rows = [own, *(GRAMS[fnv(ngram) % 7] for ngram in ngrams_of(word, 2, 3))]
        assert kv[word].tolist() == np.mean(rows, axis=0, dtype=np.float64).astype(np.float32).tolist()
    assert kv["</s>"].tolist() == [1, 2]
    rows = [GRAMS[fnv(ngram) % 7] for ngram in ngrams_of("unseen", 2, 3)]
    assert kv["unseen"].tolist() == np.mean(rows, axis=0, dtype=np.float64).astype(np.float32).tolist()
    assert "unseen" in kv
    assert not kv.has_index_for("unseen")
    assert kv.most_similar("unseen", topn=1)[0][0] in FASTTEXT
    short = fa.load_facebook_vectors(write(tmp_path / "f", fasttext_file(FASTTEXT, OWN, GRAMS, low=5, high=6)))
    assert short["q"].tolist() == [0, 0]  # no n-gram
    plain = fa.load_facebook_vectors(write(tmp_path / "f", fasttext_file(FASTTEXT, OWN, GRAMS[:0], low=0, high=0)))
    assert np.array_equal(plain.vectors, OWN)
    with pytest.raises(UnknownKeyError):
        plain["unseen"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "expected an unsupervised model .*, got a supervised classifier"),
        ({"quantized": True}, r"quantized models \(.ftz\) are not supported"),
        ({"pruned": 5}, r"quantized models \(.ftz\) are not supported"),
        ({"version": 99}, "expected version 11 or 12 of fastText's format, got 99"),
        ({"labels": 2}, "expected only words, got 3 entries"),
        ({"kind": 1}, "word 1, b'</s>': expected a word, got an entry of type 1"),
        ({"dim": 3}, "the input matrix: expected 10 rows of 3 numbers, got 10 of 2"),
        ({"bucket": 2**31 - 1}, "bucket: expected 0 to"),
        ({"maxn": 2**20}, "maxn: expected 0 to 1000"),
        ({"n_words": 2**30}, "expected a dictionary that fits in the file"),
        ({"n_words": 2}, "the input matrix|quantized|expected"),
    ],
)
def test_other_fasttext_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "f", fasttext_file(FASTTEXT, OWN, GRAMS, **change))
    with pytest.raises(ModelFormatError, match=message):
        fa.load_facebook_vectors(path)


def test_every_truncation_of_a_fasttext_file_is_an_error(tmp_path: Path) -> None:
    data = fasttext_file(FASTTEXT, OWN, GRAMS)
    for size in range(len(data)):
        with pytest.raises(ModelFormatError, match=str(tmp_path)):
            fa.load_facebook_vectors(write(tmp_path / "f", data[:size]))
    with pytest.raises(ModelFormatError, match="expected the end of the file"):
        fa.load_facebook_vectors(write(tmp_path / "f", data + b"x"))


BINARIES = {
    "lee_fasttext.bin": "utf-8",
    "lee_fasttext_new.bin": "utf-8",
    "crime-and-punishment.bin": "utf-8",
    "toy-model.bin": "utf-8",
    "toy-model-pretrained.bin": "utf-8",
    "non_ascii_fasttext.bin": "utf-8",
}
UNSEEN = ["unseen", "z", "żółw", "日本語", "a" * 60]


@pytest.mark.parametrize("name", BINARIES)
def test_subword_vectors_equal_gensim(name: str) -> None:
    gensim, data = load_gensim()
    path = data / name
    ours = fa.load_facebook_vectors(path, BINARIES[name])
    theirs = gensim.models.fasttext.load_facebook_vectors(str(path), BINARIES[name])
    assert set(ours.index_to_key) == set(theirs.index_to_key)
    grams = theirs.vectors_ngrams.astype(np.float64)
    assert ours.vectors_ngrams.tobytes() == theirs.vectors_ngrams.tobytes()
    # gensim gives the end of a sentence n-grams; fastText, whose definition this is, does not.
    words = [word for word in ours.index_to_key if word != "</s>"]
    for word in [*words[:200], *UNSEEN]:
        rows = [grams[fnv(ngram) % ours.bucket] for ngram in ngrams_of(word, ours.min_n, ours.max_n)]
        if word in theirs.key_to_index:
            rows.append(theirs.vectors_vocab[theirs.key_to_index[word]].astype(np.float64))
        exact = np.mean(rows, axis=0) if rows else np.zeros(ours.vector_size)
        assert_as_good_as(ours[word], exact, theirs[word])


def test_vectors_equal_fasttext() -> None:
    """Vectors equal those of fastText's library, also for the end of a sentence and for words that are not UTF-8."""
    library = pytest.importorskip("fasttext", reason="needs the package fasttext-wheel")
    _, data = load_gensim()
    for name in ("lee_fasttext_new.bin", "crime-and-punishment.bin"):
        path = data / name
        model, ours = library.load_model(str(path)), fa.load_facebook_vectors(path)
        assert ours.index_to_key == model.get_words()
        matrix = model.get_input_matrix().astype(np.float64)
        for word in [*ours.index_to_key[:200], "</s>", *UNSEEN, ""]:
            rows = model.get_subwords(word)[1]
            exact = matrix[rows].mean(axis=0) if len(rows) else np.zeros(ours.vector_size)
            assert_as_good_as(ours[word], exact, model.get_word_vector(word))
