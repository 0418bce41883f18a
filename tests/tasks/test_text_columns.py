"""Columns of texts with errors per text, and files of parts, without an engine."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.errors import ConfigError, FastattnError, InputError, OutOfMemory
from fastattn.tasks import columns, parts
from fastattn.tasks.columns import ClassifyTexts, EmbedTexts, GenerateTexts, TextWork
from fastattn.tasks.demo import demo_model

LONG = "word " * 400
MIXED = ["a fine film", None, LONG, "", "\ud800", 3.5, float("nan"), "a dull film", LONG]
GOOD = [i for i, item in enumerate(MIXED) if isinstance(item, str) and item not in (LONG, "\ud800")]
WORKS: list[TextWork] = [
    EmbedTexts(threads=1, truncation=False),
    ClassifyTexts(threads=1),
    GenerateTexts(threads=1, max_new_tokens=3),
    GenerateTexts(threads=1, max_new_tokens=3, do_sample=True, seed=5),
]


def plain(work: TextWork, texts: Any) -> list[Any]:
    """Return the results as values that can be compared."""
    found = work(texts).values
    return [[None if v is None else v.tobytes() if isinstance(v, np.ndarray) else v for v in found[n]] for n in found]


@pytest.mark.parametrize("work", WORKS, ids=repr)
def test_texts_that_fail_have_an_error_and_the_others_their_results(work: TextWork) -> None:
    found = work(MIXED)
    assert [i for i, error in enumerate(found.errors) if error is None] == GOOD
    assert all(values[i] is None for values in found.values.values() for i in range(len(MIXED)) if i not in GOOD)
    alone = [plain(work, [MIXED[i]]) for i in GOOD]
    assert [[column[i] for i in GOOD] for column in plain(work, MIXED)] == [
        [one[k][0] for one in alone] for k in range(len(work.outputs))
    ]
    assert found.errors[1] == "text: expected str, got None; fill or drop missing texts"
    assert str(found.errors[5]).startswith("text: expected str, got float 3.5")
    assert str(found.errors[2]).startswith("text: ")
    assert found.errors[2] == found.errors[8]  # the position in a batch is not part of it


def test_results_are_those_of_the_usual_calls() -> None:
    texts = ["a fine film", "a dull film", "the captain"]
    folder = demo_model("text-classification")
    vectors = fa.SentenceTransformer(folder, threads=1).encode([*texts, LONG])
    assert plain(EmbedTexts(threads=1), [*texts, LONG]) == [[vector.tobytes() for vector in vectors]]
    labels = fa.pipeline("text-classification", threads=1)(texts)
    assert plain(ClassifyTexts(), texts) == [[x["label"] for x in labels], [x["score"] for x in labels]]
    written = fa.pipeline("text-generation")(texts, max_new_tokens=3, do_sample=False, return_full_text=False)
    assert plain(GenerateTexts(max_new_tokens=3), texts) == [[row[0]["generated_text"] for row in written]]


def test_an_empty_column() -> None:
    assert plain(EmbedTexts(), []) == [[]]
    assert parts.to_arrays(EmbedTexts()([]), EmbedTexts())["embedding"].shape == (0, 0)


def test_a_process_loads_a_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[EmbedTexts] = []
    original = EmbedTexts.load
    monkeypatch.setattr(EmbedTexts, "load", lambda self: (loads.append(self), original(self))[1])
    work = EmbedTexts(threads=1, batch_size=7)
    threads = [threading.Thread(target=pickle.loads(pickle.dumps(work)), args=(["a"],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [work]
    assert len(pickle.dumps(work)) < 1000


def test_errors_that_are_about_no_text_are_raised() -> None:
    def run(texts: list[str]) -> Any:
        raise OutOfMemory("memory: expected 1 GB")

    with pytest.raises(OutOfMemory):
        columns._rows(run, ["a", "b"])


def test_most_texts_are_computed_once() -> None:
    calls: list[list[str]] = []

    def run(texts: list[str]) -> Any:
        calls.append(texts)
        for i, text in enumerate(texts):
            if text == "bad":
                error = FastattnError(f"inputs[{i}]: it is bad")
                error.index, error.item = i, f"inputs[{i}]"
                raise error
        return [(text.upper(),) for text in texts]

    rows = columns._rows(run, ["a", "bad", "b", "c", "bad"])
    assert rows == [("A",), "text: it is bad", ("B",), ("C",), "text: it is bad"]
    assert calls == [["a", "bad", "b", "c", "bad"], ["a"], ["b", "c", "bad"], ["b", "c"]]


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_a_part_is_written_once(suffix: str, tmp_path: Path) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    work, path = EmbedTexts(threads=1, truncation=False), tmp_path / f"part.{suffix}"
    assert parts.write_part(path, work, lambda: MIXED)
    before = path.stat().st_mtime_ns
    assert not parts.write_part(path, work, lambda: pytest.fail("the texts are not needed"))
    assert (path.stat().st_mtime_ns, [file.name for file in tmp_path.iterdir()]) == (before, [path.name])
    expected = work(MIXED)
    if suffix == "npz":
        with np.load(path) as arrays:
            assert arrays["embedding"].tobytes() == columns.stacked(expected.values["embedding"]).tobytes()
            assert arrays["error"].tolist() == [error or "" for error in expected.errors]
    else:
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        assert table["error"].to_pylist() == expected.errors
        assert table["text"].to_pylist()[:3] == MIXED[:3]
        rows = [None if v is None else np.array(v, np.float32).tobytes() for v in table["embedding"].to_pylist()]
        assert rows == plain(work, MIXED)[0]
    with pytest.raises(ConfigError, match=r"expected results of EmbedTexts\(.*dtype='int8'"):
        parts.write_part(path, EmbedTexts(dtype="int8"), MIXED)
    # Options that change no result do not matter.
    assert not parts.write_part(path, EmbedTexts(threads=2, truncation=False, batch_size=5), MIXED)


def test_a_part_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(parts.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        parts.write_part(tmp_path / "a.npz", EmbedTexts(threads=1), ["a"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"path: expected a name that ends with \.npz or \.parquet, got 'a.csv'"):
        parts.write_part(tmp_path / "a.csv", EmbedTexts(), ["a"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EmbedTexts(threads=0), "threads: expected"),
        (lambda: EmbedTexts(truncation=1), "truncation: expected"),  # type: ignore[arg-type]
        (lambda: GenerateTexts(stop_strings="ab"), "stop_strings: expected a tuple"),  # type: ignore[arg-type]
        (lambda: GenerateTexts(top_p=2.0)(["a"]), "top_p: expected"),
        (lambda: EmbedTexts(prompt_name="none")(["a"]), "prompt_name: expected"),
    ],
)
def test_wrong_options_are_raised(make: Any, words: str) -> None:
    with pytest.raises(FastattnError, match=words):
        make()
