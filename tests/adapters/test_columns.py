"""Columns of pandas and polars, Arrow arrays and NumPy strings as texts and as classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from tests.adapters.tiny import CLASSES, TEXTS


def _with(package: str, make: Callable[[Any, list[str]], Any]) -> Callable[[list[str]], Any]:
    return lambda items: make(pytest.importorskip(package), items)


COLUMNS: dict[str, Callable[[list[str]], Any]] = {
    "pandas": _with("pandas", lambda pandas, items: pandas.Series(items, index=range(7, 7 + len(items)))),
    "pandas object": _with("pandas", lambda pandas, items: pandas.Series(items, dtype=object)),
    "polars": _with("polars", lambda polars, items: polars.Series(items)),
    "arrow": _with("pyarrow", lambda arrow, items: arrow.array(items)),
    "arrow chunks": _with("pyarrow", lambda arrow, items: arrow.chunked_array([items[:3], items[3:]])),
    "StringDType": lambda items: np.array(items, np.dtypes.StringDType()),
    "fixed width": np.array,
    "object": lambda items: np.array(items, dtype=object),
}


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_columns_are_texts_everywhere(make: Callable[[list[str]], Any]) -> None:
    column = make(TEXTS)
    with fa.pipeline("text-classification") as classify:
        assert classify(column) == classify(TEXTS)
        with fa.SentenceTransformer(classify.model.path) as st:
            assert (st.encode(column) == st.encode(TEXTS)).all()
            assert st.count_tokens(column) == st.count_tokens(TEXTS)


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_columns_in_estimators(make: Callable[[list[str]], Any]) -> None:
    pytest.importorskip("sklearn")
    from fastattn.sklearn import FastattnEmbedder, TextClassifier

    texts, classes = make(TEXTS), make(CLASSES)
    if isinstance(classes, np.ndarray) and classes.dtype.kind == "T":
        classes = CLASSES  # scikit-learn does not take a StringDType as classes
    assert (FastattnEmbedder().transform(texts) == FastattnEmbedder().transform(TEXTS)).all()
    expected, found = TextClassifier().fit(TEXTS, CLASSES), TextClassifier().fit(texts, classes)
    assert found.classes_.tolist() == expected.classes_.tolist()
    assert (found.predict_proba(texts) == expected.predict_proba(TEXTS)).all()
    assert found.score(texts, classes) == expected.score(TEXTS, CLASSES)
