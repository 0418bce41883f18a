"""`fastattn.dask` with Dask's threads and with its processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.tasks.columns import ClassifyTexts, EmbedTexts
from fastattn.tasks.demo import demo_model

pytest.importorskip("dask.dataframe", reason="dask.dataframe is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")
TEXTS = ["a fine film", "a dull film", "", "the captain"] * 5


def frame(texts: list[Any]) -> Any:
    import dask.dataframe as dd
    import pandas as pd

    return dd.from_pandas(pd.DataFrame({"i": range(len(texts)), "text": texts}), npartitions=3)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_vectors_are_those_of_encode(scheduler: str) -> None:
    from fastattn.dask import map_texts

    mapped = map_texts(frame(TEXTS), EmbedTexts())
    found = mapped.compute(scheduler=scheduler, num_workers=2)
    expected = fa.SentenceTransformer(demo_model("text-classification")).encode(TEXTS)
    assert np.array(found["embedding"].to_list(), np.float32).tobytes() == expected.tobytes()
    assert found["text"].to_list() == TEXTS
    assert found["error"].isna().all()
    assert found.dtypes.to_dict() == mapped.dtypes.to_dict()


def test_texts_that_fail_do_not_fail_the_job() -> None:
    from fastattn.dask import map_texts

    found = map_texts(frame(["a fine film", None, "word " * 400]), ClassifyTexts()).compute(scheduler="threads")
    expected = fa.pipeline("text-classification")("a fine film")[0]
    assert (found["label"].iloc[0], found["score"].iloc[0]) == (expected["label"], expected["score"])
    assert found[["label", "score"]].isna().to_numpy().tolist() == [[False] * 2, [True] * 2, [True] * 2]
    assert [error.startswith("text: ") for error in found["error"].iloc[1:]] == [True, True]


def test_wrong_columns() -> None:
    from fastattn.dask import map_texts

    with pytest.raises(fa.InputError, match="column: expected one of i, text, got 'words'"):
        map_texts(frame(["a"]), EmbedTexts(), column="words")
    with pytest.raises(fa.InputError, match="expected no column 'error'"):
        map_texts(frame(["a"]).rename(columns={"i": "error"}), EmbedTexts())
