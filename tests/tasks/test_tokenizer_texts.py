"""Sequences of texts: everything with a length and items, iterators, and typed errors for the rest."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer import Tokenizer, check_texts, is_list_like, load_tokenizer
from fastattn.tokenizer.texts import MAX_TEXTS
from tests.reference.names import short_repr
from tests.tasks.tokenizers import write_bert

TEXTS = ["good", "a film"]


class Column:
    """Only `__len__` and `__getitem__`, like a column of a data set."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


class Endless:
    """An iterator that never ends."""

    def __iter__(self) -> Iterator[str]:
        while True:
            yield "a"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_bert(tmp_path_factory.mktemp("bert")))


def _pandas(name: str) -> Callable[[list[Any]], Any]:
    return lambda items: getattr(pytest.importorskip("pandas"), name)(items)


def _arrow(items: list[Any]) -> Any:
    return pytest.importorskip("pyarrow").array(items)


def _chunked(items: list[Any]) -> Any:
    return pytest.importorskip("pyarrow").chunked_array([items[:1], items[1:]])


def _string_dtype(items: list[Any]) -> Any:
    return np.array(items, dtype=np.dtypes.StringDType())


SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "object array": lambda items: np.array(items, dtype=object),
    "StringDType": _string_dtype,
    "getitem": Column,
    "iterator": iter,
    "generator": lambda items: (item for item in items),
    "map": lambda items: map(str, items),
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "Series": _pandas("Series"),
    "Index": _pandas("Index"),
    "Categorical": _pandas("Categorical"),
    "arrow array": _arrow,
    "arrow chunks": _chunked,
    "polars": lambda items: pytest.importorskip("polars").Series(items),
}


@pytest.mark.parametrize("make", SEQUENCES.values(), ids=SEQUENCES)
def test_sequences(bert: Tokenizer, make: Callable[[list[Any]], Any]) -> None:
    found = check_texts(make(TEXTS), "texts")
    assert found == TEXTS
    assert all(type(text) is str for text in found)
    assert bert(make(TEXTS)).input_ids == [bert.encode(text) for text in TEXTS]
    assert [ids.tolist() for ids, _ in bert.encode_batch(make(TEXTS))] == bert(TEXTS).input_ids
    assert bert(make(TEXTS), make(TEXTS)).input_ids == [bert.encode(text, text) for text in TEXTS]
    if make is not tuple:  # a tuple of lists of words is a pair
        words = bert(make(TEXTS), is_split_into_words=True)
        assert words.input_ids == bert.encode("good a film")


@pytest.mark.parametrize("make", SEQUENCES.values(), ids=SEQUENCES)
def test_words_of_one_text(bert: Tokenizer, make: Callable[[list[Any]], Any]) -> None:
    assert bert([make(TEXTS)], is_split_into_words=True).input_ids == [bert.encode("good a film")]


def test_a_scalar_of_arrow_is_its_value(bert: Tokenizer) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    assert bert(pyarrow.scalar("good")).input_ids == bert.encode("good")
    assert bert(pyarrow.array(["good"]).dictionary_encode()).input_ids == [bert.encode("good")]


@pytest.mark.parametrize(
    "bad",
    ["text", b"ab", bytearray(b"ab"), memoryview(b"ab"), {"a": "b"}, {"a"}, frozenset("a"), 3, None],
    ids=short_repr,
)
def test_objects_that_are_not_sequences_of_texts(bert: Tokenizer, bad: Any) -> None:
    with pytest.raises(DTypeError, match="texts: expected a sequence of str, got"):
        check_texts(bad, "texts")
    with pytest.raises(DTypeError, match="texts: expected a sequence of str, got"):
        bert.encode_batch(bad)
    if not isinstance(bad, str):
        with pytest.raises(DTypeError, match="text: expected"):
            bert(bad)


def test_tables_and_arrays_of_more_dimensions(bert: Tokenizer) -> None:
    pandas = pytest.importorskip("pandas")
    for bad in (np.array([["a", "b"]]), np.array("a"), pandas.DataFrame({"a": TEXTS})):
        with pytest.raises(InputError, match="text: expected one dimension of str"):
            bert(bad)
    pyarrow = pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=r"text: expected one dimension of str, got a Table of shape \(2, 1\)"):
        bert(pyarrow.table({"a": TEXTS}))


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, np.ma.masked], ids=short_repr)
def test_missing_texts_are_named(missing: Any) -> None:
    with pytest.raises(DTypeError, match=r"^texts\[1\]: expected str, got .*; fill or drop missing texts"):
        check_texts(["a", missing], "texts")


def test_missing_rows_of_a_series_are_named() -> None:
    pandas = pytest.importorskip("pandas")
    series = pandas.Series(["a", None, "c"], index=["x", "y", "z"], dtype=object)
    with pytest.raises(DTypeError, match=r"^texts\[1\] \(row 'y'\): expected str, got None; fill or drop"):
        check_texts(series, "texts")
    with pytest.raises(DTypeError, match=r"^texts\[1\]: expected str, got float nan"):
        check_texts(pandas.Series(["a", float("nan")], dtype=object), "texts")
    with pytest.raises(DTypeError, match=r"^texts\[1\]: expected str, got NAType"):
        check_texts(pandas.array(["a", pandas.NA], dtype="string"), "texts")


def _column(library: str, make: str) -> Any:
    """Evaluate an expression that makes a column."""
    names = {"np": np, "S": np.dtypes.StringDType}
    if library != "np":
        names[library] = pytest.importorskip({"pd": "pandas", "pl": "polars", "pa": "pyarrow"}[library])
    if "ArrowDtype" in make:
        names["pa"] = pytest.importorskip("pyarrow")
    return eval(make, names)


@pytest.mark.parametrize(
    ("library", "make"),
    [
        ("pd", "pd.Series(['good', 'a film'], dtype='category')"),
        ("pd", "pd.Series(['good', 'a film'], dtype=pd.ArrowDtype(pa.string()))"),
        ("pl", "pl.Series(['good', 'a film'], dtype=pl.Categorical)"),
        ("pl", "pl.DataFrame({'t': ['good', 'a film']})['t']"),
        ("pa", "pa.array(['good', 'a film'], pa.large_string())"),
        ("pa", "pa.array(['good', 'a film'], pa.string_view())"),
        ("pa", "pa.array(['good', 'a film']).dictionary_encode()"),
        ("pa", "pa.table({'t': ['good', 'a film']})['t']"),
    ],
)
def test_columns(bert: Tokenizer, library: str, make: str) -> None:
    column = _column(library, make)
    assert check_texts(column, "texts") == TEXTS
    assert bert(column).input_ids == bert(TEXTS).input_ids


@pytest.mark.parametrize(
    ("library", "make", "message"),
    [
        ("np", "np.array(['a', None], S(na_object=None))", r"texts\[1\]: expected str, got None; fill or drop"),
        (
            "np",
            "np.array(['a', np.nan], S(na_object=np.nan))",
            r"texts\[1\]: expected str, got float nan; fill or drop",
        ),
        (
            "np",
            "np.array(['a', np.float32('nan')], object)",
            r"texts\[1\]: expected str, got float32 nan; fill or drop",
        ),
        ("np", "np.array([1])", r"texts\[0\]: expected str, got int64"),
        ("pd", "pd.Series(['a', None], ['x', 'y'], dtype='category')", r"texts\[1\] \(row 'y'\): .* float nan; fill"),
        ("pd", "pd.Series(['a', None], ['x', 'y'], dtype='string')", r"texts\[1\] \(row 'y'\): .* NAType <NA>; fill"),
        ("pl", "pl.Series(['a', None])", r"texts\[1\]: expected str, got None; fill or drop"),
        ("pl", "pl.Series([['a', 'b'], ['c']])", r"texts\[0\]: expected str, got Series"),
        ("pl", "pl.DataFrame({'t': ['a']}).lazy()", "texts: expected a sequence of str, got LazyFrame"),
        ("pl", "pl.col('t')", "texts: expected a sequence of str, got Expr"),
        ("pl", "pl.DataFrame({'t': ['a']})", "texts: expected one dimension of str, got a DataFrame"),
        ("pa", "pa.array(['a', None])", r"texts\[1\]: expected str, got None; fill or drop"),
        ("pa", "pa.chunked_array([['a'], [None]])", r"texts\[1\]: expected str, got None; fill or drop"),
        ("pa", "pa.array([b'a'])", r"texts\[0\]: expected str, got bytes"),
        ("pa", "pa.array([1])", r"texts\[0\]: expected str, got int 1"),
    ],
)
def test_columns_with_gaps_and_of_other_types(library: str, make: str, message: str) -> None:
    with pytest.raises((DTypeError, InputError), match=f"^{message}"):
        check_texts(_column(library, make), "texts")


def test_lengths_are_checked_before_anything_is_read(bert: Tokenizer) -> None:
    class Long(Column):
        def __len__(self) -> int:
            return 2**40

        def __getitem__(self, i: int) -> Any:
            raise AssertionError("read")

    for bad in (np.broadcast_to(np.array("a"), (2**40,)), Long([]), range(2**40)):
        with pytest.raises(InputError, match=f"expected at most {MAX_TEXTS} texts in one call, got {2**40}"):
            bert(bad)
    with pytest.raises(InputError, match=r"got a ndarray of shape \(33554432, 0\)"):
        bert(np.empty((2**25, 0), dtype="U1"))


def test_endless_iterators_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastattn.tokenizer.texts.MAX_TEXTS", 100)
    with pytest.raises(InputError, match="expected at most 100 texts in one call, got more"):
        check_texts(Endless(), "texts")


def test_list_like() -> None:
    assert all(is_list_like(value) for value in ([], (), np.array([]), Column([]), iter("a"), {"a"}))
    assert not any(is_list_like(value) for value in ("a", b"a", {}, 3, None, object()))


def test_pairs_with_wrong_items(bert: Tokenizer) -> None:
    for bad, message in (
        ([("a", 3)], r"text\[0\]\[1\]: expected str, got int 3"),
        ([("a", None)], r"text\[0\]\[1\]: expected str, got None"),
        ([("a",)], r"text\[0\]: expected a str or a pair of them, got 1 items"),
        ([["a", "b", "c"]], r"is_split_into_words=True reads a list as the words of one text"),
        (["a", {"text": "b"}], r"text\[1\]: expected str, got dict"),
    ):
        with pytest.raises((DTypeError, InputError), match=message):
            bert(bad)
    with pytest.raises(DTypeError, match="text_pair: expected a sequence of as many texts as in text, got str"):
        bert(["a", "b"], "cd")
    with pytest.raises(InputError, match="text_pair: expected 2 texts, as many as in text, got 1"):
        bert(["a", "b"], ["c"])
    with pytest.raises(DTypeError, match="text_pair: expected one str"):
        bert("a", ["b"])


# -- errors that come from elsewhere ----------------------------------------------------------------------------


class _Failing:
    """Replaces the library's tokenizer: its `encode` does something else first."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def encode(self, *_: object, **__: object) -> Any:
        self.action()


def _encode_after(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    monkeypatch.setattr(tokenizer._state.encoder, "_plain", _Failing(action))
    tokenizer.encode("a")


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, SystemExit, RuntimeError, Exception])
def test_exceptions_of_signal_handlers_pass(
    bert: Tokenizer, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def handler(*_: object) -> None:
        raise kind("from the handler")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(kind, match="from the handler") as caught:
            _encode_after(bert, monkeypatch, lambda: signal.raise_signal(signal.SIGUSR1))
        assert type(caught.value) is kind
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_panics_are_input_errors(bert: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = bert.raw.encode("a good film")
    with pytest.raises(InputError, match=r"^text: the tokenizer refuses it: '`stride` must be strictly less") as caught:
        _encode_after(bert, monkeypatch, lambda: encoding.truncate(2, stride=5))
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_errors_of_the_library_are_input_errors(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Raw
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer.from_object(Raw(WordLevel({"a": 0}, unk_token="[UNK]")))
    assert tokenizer.encode("a") == [0]
    with pytest.raises(InputError, match=r"^text\[1\]: the tokenizer refuses it: .*\[UNK\]"):
        tokenizer(["a", "b"])
    with pytest.raises(InputError, match=r"^texts\[1\]: the tokenizer refuses it"):
        tokenizer.encode_batch(["a", "b"])
