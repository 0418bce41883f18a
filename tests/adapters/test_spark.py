"""`fastattn.spark` in a local Spark session."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastattn as fa
from fastattn.tasks.columns import ClassifyTexts, EmbedTexts
from fastattn.tasks.demo import demo_model

pytest.importorskip("pyspark", reason="pyspark is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs java"),
]
TEXTS = ["a fine film", "a dull film", "", "the captain"] * 5


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.shuffle.partitions", "2")
    found = builder.config("spark.pyspark.python", sys.executable).getOrCreate()
    yield found
    found.stop()


def frame(session: Any, texts: list[Any]) -> Any:
    rows = [(i, text) for i, text in enumerate(texts)]
    return session.createDataFrame(rows, "i int, text string").repartition(3, "i")


def test_vectors_are_those_of_encode(session: Any) -> None:
    from fastattn.spark import map_texts, text_udf

    expected = fa.SentenceTransformer(demo_model("text-classification")).encode(TEXTS)
    found = frame(session, TEXTS)
    mapped = map_texts(found, EmbedTexts()).orderBy("i").collect()
    assert np.array([row.embedding for row in mapped], np.float32).tobytes() == expected.tobytes()
    assert [(row.i, row.text, row.error) for row in mapped] == [(i, text, None) for i, text in enumerate(TEXTS)]
    rows = found.select("i", text_udf(EmbedTexts(), batch_size=3)("text").alias("found")).orderBy("i").collect()
    assert np.array([row.found.embedding for row in rows], np.float32).tobytes() == expected.tobytes()


def test_texts_that_fail_do_not_fail_the_job(session: Any) -> None:
    from fastattn.spark import map_texts, text_udf

    found = frame(session, ["a fine film", None, "word " * 400])
    expected = fa.pipeline("text-classification")("a fine film")[0]
    for rows in (
        map_texts(found, ClassifyTexts()).orderBy("i").collect(),
        found.select("i", text_udf(ClassifyTexts())("text").alias("f")).orderBy("i").select("f.*").collect(),
    ):
        assert (rows[0].label, rows[0].score, rows[0].error) == (expected["label"], expected["score"], None)
        assert [(row.label, row.score) for row in rows[1:]] == [(None, None)] * 2
        assert [row.error.startswith("text: ") for row in rows[1:]] == [True, True]


def test_wrong_columns(session: Any) -> None:
    from fastattn.spark import map_texts

    with pytest.raises(fa.InputError, match="column: expected one of i, text, got 'words'"):
        map_texts(frame(session, ["a"]), EmbedTexts(), column="words")
    with pytest.raises(fa.InputError, match="expected no column 'error'"):
        map_texts(frame(session, ["a"]).withColumnRenamed("i", "error"), EmbedTexts())
