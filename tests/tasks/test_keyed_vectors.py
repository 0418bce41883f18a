"""KeyedVectors: the results of gensim and of fastText on their files, hand-written files, and damaged files."""

from __future__ import annotations

import gzip
import logging
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn as fa
from fastattn.errors import DTypeError, FastattnError, InputError, ModelFormatError, ModelNotFoundError, UnknownKeyError
from fastattn.tasks.words import fasttext, stream
from tests.tasks.bounds import assert_as_good_as
from tests.tasks.word_files import fasttext_file, load_gensim, write

WORDS = ["king", "queen", "man", "woman", "apple"]
VECTORS = np.array([[2, 1, 0], [2, -1, 0], [0, 1, 0.5], [0, -1, 0.5], [0, 0, -3]], np.float32)
TEXT = "5 3\n" + "".join(
    f"{word} {' '.join(map(str, row))}\n" for word, row in zip(WORDS, VECTORS.tolist(), strict=True)
)
BINARY = b"5 3\n" + b"".join(w.encode() + b" " + v.tobytes() + b"\n" for w, v in zip(WORDS, VECTORS, strict=True))


def load(path: Path, data: str | bytes, **options: Any) -> fa.KeyedVectors:
    return fa.KeyedVectors.load_word2vec_format(write(path / "v", data), **options)


@pytest.fixture
def kv(tmp_path: Path) -> fa.KeyedVectors:
    return load(tmp_path, TEXT)


def test_the_formats_give_the_same_table(tmp_path: Path) -> None:
    lines = TEXT.partition("\n")[2]
    found = [
        load(tmp_path, TEXT),
        load(tmp_path, TEXT.rstrip("\n")),
        load(tmp_path, TEXT.replace("\n", " \n")),  # fastText ends lines with a space
        load(tmp_path, TEXT.replace("\n", "\r\n")),
        load(tmp_path, lines, no_header=True),
        load(tmp_path, BINARY, binary=True),
        load(tmp_path, BINARY.replace(b"\n", b"").replace(b"5 3", b"5 3\n"), binary=True),
        load(tmp_path, gzip.compress(TEXT.encode(), mtime=0)),
        load(tmp_path, gzip.compress(BINARY, mtime=0), binary=True),
        load(tmp_path, TEXT + "rest 1 2 3\n", limit=5),
    ]
    for table in found:
        assert table.index_to_key == WORDS
        assert table.key_to_index == {word: i for i, word in enumerate(WORDS)}
        assert table.vectors.dtype == np.float32
        assert np.array_equal(table.vectors, VECTORS)
    assert load(tmp_path, TEXT, limit=2).index_to_key == WORDS[:2]
    assert load(tmp_path, BINARY, binary=True, limit=2).index_to_key == WORDS[:2]


def test_pieces_of_the_file_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (4, 8, 12):
        monkeypatch.setattr(stream, "CHUNK_BYTES", size)
        assert np.array_equal(load(tmp_path, TEXT).vectors, VECTORS)
        assert np.array_equal(load(tmp_path, BINARY, binary=True).vectors, VECTORS)


@pytest.mark.parametrize("binary", [False, True])
def test_save(kv: fa.KeyedVectors, tmp_path: Path, binary: bool) -> None:
    kv.save_word2vec_format(tmp_path / "w", binary=binary)
    again = fa.KeyedVectors.load_word2vec_format(tmp_path / "w", binary=binary)
    assert again.index_to_key == WORDS
    assert again.vectors.tobytes() == VECTORS.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v", "w"]


def test_analogies_and_neighbors(kv: fa.KeyedVectors) -> None:
    assert kv.most_similar(["king", "woman"], ["man"], topn=1)[0][0] == "queen"
    assert [word for word, _ in kv.most_similar("king")] == ["queen", "man", "apple", "woman"]
    assert kv.most_similar("king", topn=0) == []
    assert kv.most_similar(["king"], topn=2, restrict_vocab=2) == kv.most_similar("king", topn=1)
    assert kv.doesnt_match(["king", "queen", "apple"]) == "apple"
    assert kv.rank("king", "queen") == 1
    assert kv.rank("king", "man") == 2
    assert kv.closer_than("king", "man") == ["queen"]
    assert kv.most_similar_to_given("king", ["apple", "man"]) == "man"
    assert kv.similarity("king", "king") == 1
    assert kv.distance("king", "king") == 0
    assert kv.similarity("king", "queen") == np.float32(3 / 5)
    assert kv[0].tolist() == kv["king"].tolist() == [2, 1, 0]
    assert kv[["king", "man"]].shape == (2, 3)
    assert kv[[]].shape == (0, 3)
    assert "king" in kv
    assert "prince" not in kv
    assert len(kv) == 5
    assert kv.get_index("prince", default=7) == 7


def test_scores_do_not_depend_on_other_words(kv: fa.KeyedVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    large = fa.KeyedVectors(33)
    large.add_vectors([str(i) for i in range(300)], rng.standard_normal((300, 33)))
    whole = large.most_similar(["3", "7"], ["9"], topn=None)
    part = fa.KeyedVectors(33)
    part.add_vectors(large.index_to_key[:50], large.vectors[:50])
    assert part.most_similar(["3", "7"], ["9"], topn=None).tobytes() == whole[:50].tobytes()
    assert large.most_similar(["3", "7"], ["9"], topn=None, clip_start=13).tobytes() == whole[13:].tobytes()
    monkeypatch.setattr("fastattn.tasks.search.vectors.BLOCK_ELEMENTS", 100)
    assert large.most_similar(["3", "7"], ["9"], topn=None).tobytes() == whole.tobytes()
    assert dict(large.most_similar(["3", "7"], ["9"], topn=297)) == {
        word: score
        for word, score in zip(large.index_to_key, whole.tolist(), strict=True)
        if word not in ("3", "7", "9")
    }


def test_a_zero_vector_has_the_cosine_0(tmp_path: Path) -> None:
    kv = load(tmp_path, "2 2\na 0 0\nb 1 1\n")
    assert kv.most_similar("b") == [("a", 0.0)]
    assert kv.similarity("a", "b") == 0
    assert kv.most_similar("a") == [("b", 0.0)]


def test_add_vectors() -> None:
    kv = fa.KeyedVectors(2)
    kv.add_vectors(["a", "b", "a"], [[1, 2], [3, 4], [5, 6]])
    assert kv.index_to_key == ["a", "b"]
    assert kv["a"].tolist() == [1, 2]
    kv.add_vectors(["a", "c"], np.array([[7, 8], [9, 9]]), replace=True)
    assert kv["a"].tolist() == [7, 8]
    kv.add_vectors("b", [0, 0])
    assert kv["b"].tolist() == [3, 4]
    with pytest.raises(ValueError, match="read-only"):
        kv["a"][0] = 1
    for keys, rows in ((["x"], [[1, 2, 3]]), (["x"], [[np.nan, 1]]), ([1], [[1, 2]])):
        with pytest.raises((InputError, DTypeError)):
            kv.add_vectors(keys, rows)  # type: ignore[arg-type]


def test_words_with_spaces_and_repeated_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = "a 5 6\n. . . 1 2\nat name@x 3 4\na 7 8\n\N{NO-BREAK SPACE}x 1 1\n"
    kv = load(tmp_path, data, no_header=True)
    assert kv.index_to_key == ["a", ". . .", "at name@x", "\N{NO-BREAK SPACE}x"]
    assert kv["a"].tolist() == [5, 6]
    assert "1 words occur again, for example 'a'" in caplog.text
    with pytest.raises(InputError, match="expected no space"):
        kv.save_word2vec_format(tmp_path / "w")


@pytest.mark.parametrize(
    ("data", "message", "options"),
    [
        ("", "byte 0: expected the header", {}),
        ("king 1 2 3\n", "pass no_header=True", {}),
        ("5 3 1\n", "expected the header", {}),
        ("-5 3\n", "expected the header", {}),
        ("5 0\na\n", "expected a width of 1 to", {}),
        ("999999999999 300\n", "found at most 0; the file is incomplete or its header is wrong", {}),
        ("5 99999999999\n", "expected a width", {}),
        ("2 3\nking 1 2 3\n" + " " * 40, "line 3: expected a word and 3 numbers, separated by spaces, got 0", {}),
        ("2 2\na 1 2\n\n  \n   ", "line 3: expected a word and 2 numbers", {}),
        ("2 2\na 1 2\nb 3 4\nc 5 6\n", "byte 16: expected the end of the file after the 2 words", {}),
        ("2 2\na 1 2\nb 3\n", "line 3: expected a word and 2 numbers, separated by spaces, got 1 after b'b'", {}),
        ("2 2\na 1 2\nb 3 4 5\n", "line 3: expected a word and 2 numbers, separated by spaces, got 3", {}),
        ("2 2\na 1 2\nb 3 x\n", "line 3: expected a number, got b'x'", {}),
        ("2 2\na 1 2\nb 1_0 3\n", "line 3: expected a number, got b'1_0'", {}),
        ("2 2\na 1 2\nb 3 nan\n", "line 3: expected finite float32 numbers, got nan", {}),
        ("2 2\na 1 2\nb 3 1e39\n", "line 3: expected finite float32 numbers, got inf", {}),
        (b"1 2\n\xff\xfe 1 2\n", r"line 2: expected a word in utf8, got b'\\xff\\xfe'", {}),
        ("a 1 2\nb 3\n", "line 2: expected a word and 2 numbers", {"no_header": True}),
        ("a\n", "line 1: expected a word and numbers", {"no_header": True}),
        ("", "found an empty file", {"no_header": True}),
        (BINARY[:-5], "header: expected at least 65 bytes|but the file ends", {"binary": True}),
        (BINARY[:40], "header: expected at least 65 bytes for 5 words, found at most 36", {"binary": True}),
        (BINARY + b"xxxxx", "expected the end of the file after the 5 words", {"binary": True}),
        (b"1 2\na " + struct.pack("<2f", 1, np.inf), "byte 10: expected finite numbers", {"binary": True}),
        (b"1 2\n" + b"a" * 20, "expected word 1 of 1 and a space, found none", {"binary": True}),
        (gzip.compress(TEXT.encode(), mtime=0)[:-20], "expected a complete gzip file", {}),
        (b"PK\x03\x04" + b"0" * 50, "expected a plain or a gzip file, got zip; decompress it first", {}),
        (b"BZh91AY", "got bzip2", {}),
        (b"5 3\n" + b"a" * 300_000, "byte 4: expected a line of at most 65728 bytes, got a longer one", {}),
    ],
)
def test_damaged_files(tmp_path: Path, data: str | bytes, message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ModelFormatError, match=message) as found:
        load(tmp_path, data, **options)
    assert str(tmp_path / "v") in str(found.value)


@pytest.mark.parametrize("kind", ["text", "binary", "no header", "gzip", "fasttext"])
def test_memory_is_the_table_and_a_few_pieces(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1 << 13)
    monkeypatch.setattr(fasttext, "_BLOCK_WORDS", 20)
    rows = np.random.default_rng(0).integers(-9, 9, (500, 256)).astype(np.float32)
    words = [f"w{i}" for i in range(len(rows))]
    numbers = [" ".join(map(str, row)) for row in rows.astype(int).tolist()]
    lines = "".join(f"{word} {row}\n" for word, row in zip(words, numbers, strict=True))
    data = {
        "text": f"500 256\n{lines}".encode(),
        "no header": lines.encode(),
        "binary": b"500 256\n" + b"".join(b"w%d " % i + row.tobytes() for i, row in enumerate(rows)),
        "fasttext": fasttext_file(words, rows, rows[:100]),
    }
    path = write(tmp_path / "v", gzip.compress(data["text"], 1, mtime=0) if kind == "gzip" else data[kind])
    del data, lines, numbers

    def read() -> fa.KeyedVectors:
        if kind == "fasttext":
            return fa.load_facebook_vectors(path)
        return fa.KeyedVectors.load_word2vec_format(path, binary=kind == "binary", no_header=kind == "no header")

    read()  # imports modules
    tracemalloc.start()
    table = read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == 500
    # Without a header, the table begins with 1,024 rows. The words are str and entries of a dict.
    tables = {"no header": 3, "fasttext": 1.5}.get(kind, 1.25)  # of n-grams: one fifth
    assert peak <= tables * rows.nbytes + len(rows) * 400 + 8 * stream.CHUNK_BYTES


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    for data, options in ((TEXT.encode(), {}), (BINARY.rstrip(b"\n"), {"binary": True})):
        for size in range(len(data) - (1 if not options else 0)):
            try:
                table = load(tmp_path, data[:size], **options)
            except ModelFormatError:
                continue
            # A text file that is cut inside its last number is still valid.
            assert not options
            assert size >= len(data) - 4
            assert len(table) == 5


def test_wrong_arguments(kv: fa.KeyedVectors, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="found no such file"):
        fa.KeyedVectors.load_word2vec_format(tmp_path / "none")
    with pytest.raises(OSError, match="got a directory"):
        fa.KeyedVectors.load_word2vec_format(tmp_path)
    for options in ({"fvocab": "x"}, {"datatype": "float16"}, {"limit": 0}, {"encoding": "x"}, {"unicode_errors": "x"}):
        with pytest.raises(InputError):
            load(tmp_path, TEXT, **options)
    with pytest.raises(InputError, match="no_header: expected False"):
        load(tmp_path, BINARY, binary=True, no_header=True)
    with pytest.raises(UnknownKeyError, match="key: expected one of the 5 words, got 'prince'") as found:
        kv["prince"]
    assert isinstance(found.value, KeyError)
    with pytest.raises(KeyError):
        kv.most_similar(["king", "prince"])
    for call in (
        lambda: kv.most_similar(),
        lambda: kv.most_similar([np.zeros(2)]),
        lambda: kv.most_similar(3.5),
        lambda: kv.doesnt_match(["prince"]),
        lambda: kv.get_mean_vector([]),
        lambda: kv.get_mean_vector(["king"], [1, 2]),
        lambda: kv[3.5],
        lambda: kv[9],
        lambda: kv.most_similar_to_given("king", []),
        lambda: kv.most_similar_cosmul([]),
    ):
        with pytest.raises(FastattnError):
            call()


# -- gensim and fastText ----------------------------------------------------------------------------------------------


FILES: dict[str, dict[str, Any]] = {
    "euclidean_vectors.bin": {"binary": True},
    "poincare_vectors.bin": {"binary": True},
    "high_precision.kv.bin": {"binary": True},
    "high_precision.kv.txt": {},
    "word2vec_pre_kv_c": {},
    "lee_fasttext.vec": {},
    "crime-and-punishment.vec": {},
    "test_glove.txt": {"no_header": True},
    "pang_lee_polarity_fasttext.vec": {"encoding": "latin-1"},
}


def unit(x: NDArray[Any]) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)


@pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")  # gensim calls its own old names
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", FILES)
def test_results_equal_gensim(name: str) -> None:
    gensim, data = load_gensim()
    path = data / name
    ours = fa.KeyedVectors.load_word2vec_format(path, **FILES[name])
    theirs = gensim.models.KeyedVectors.load_word2vec_format(str(path), **FILES[name])
    assert ours.index_to_key == theirs.index_to_key
    assert ours.vectors.tobytes() == theirs.vectors.tobytes()
    words = ours.index_to_key[: min(len(ours), 12)]
    exact = unit(ours.vectors)
    for positive, negative in ([words[:1], []], [words[:2], words[1:2]], [[(words[-1], 0.5), words[0]], words[1:2]]):
        weights = [item[1] if isinstance(item, tuple) else 1.0 for item in positive] + [-1.0] * len(negative)
        rows = [ours.get_index(item[0] if isinstance(item, tuple) else item) for item in (*positive, *negative)]
        target = (np.array(weights)[:, None] * exact[rows]).sum(axis=0)
        found, expected = (kv.most_similar(positive, negative, topn=None) for kv in (ours, theirs))
        if np.linalg.norm(target) > 1e-3:
            assert_as_good_as(found, exact @ unit(target), expected)
            best, known = (kv.most_similar(positive, negative, topn=5) for kv in (ours, theirs))
            gaps = np.diff([score for _, score in known])
            if not len(gaps) or np.abs(gaps).min() > 1e-5:  # else rounding decides the order
                assert [word for word, _ in best] == [word for word, _ in known]
    first, second = words[:2]
    pair = exact[0] @ exact[1]
    assert_as_good_as(np.float32(ours.similarity(first, second)), pair, np.float32(theirs.similarity(first, second)))
    assert ours.rank(first, second) == theirs.rank(first, second)
    assert ours.doesnt_match(words) == theirs.doesnt_match(words)
    cosines = [1 - kv.distances(first).astype(np.float64) for kv in (ours, theirs)]
    assert_as_good_as(cosines[0], exact @ exact[0], cosines[1])
    assert ours.most_similar_to_given(first, words[1:]) == theirs.most_similar_to_given(first, words[1:])
    if len(ours) > 3:
        cosmul = [kv.most_similar_cosmul(words[:2], words[2:3], topn=None) for kv in (ours, theirs)]
        shifted = (1 + exact @ exact[:3].T) / 2
        assert_as_good_as(cosmul[0], shifted[:, 0] * shifted[:, 1] / (shifted[:, 2] + 1e-6), cosmul[1])


def test_wrong_encodings(caplog: pytest.LogCaptureFixture) -> None:
    _, data = load_gensim()
    with pytest.raises(ModelFormatError, match="expected a word in utf-8"):
        fa.load_facebook_vectors(data / "cp852_fasttext.bin")
    assert len(fa.load_facebook_vectors(data / "cp852_fasttext.bin", "cp852")) == 171
    with pytest.raises(ModelFormatError, match="supervised"):
        fa.load_facebook_vectors(data / "pang_lee_polarity_fasttext.bin", "latin-1")
    with pytest.raises(ModelFormatError, match="expected 3 words, as the header says, found 1"):
        fa.KeyedVectors.load_word2vec_format(data / "pretrained.vec")
    with caplog.at_level(logging.WARNING, "fastattn"):
        fa.KeyedVectors.load_word2vec_format(data / "pang_lee_polarity_fasttext.vec", unicode_errors="replace")
