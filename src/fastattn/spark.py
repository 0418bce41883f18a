"""Functions for Spark DataFrames. Needs the extra `spark`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

try:
    import pyspark
    from pyspark.sql import types
except ModuleNotFoundError as error:
    raise ImportError(
        'fastattn.spark: expected the package pyspark, found none; run pip install "fastattn[spark]"'
    ) from error

from fastattn.errors import InputError
from fastattn.tasks.columns import ClassifyTexts, EmbedTexts, GenerateTexts, Kind, TextWork, stacked
from fastattn.tasks.parts import write_part

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ClassifyTexts", "EmbedTexts", "GenerateTexts", "map_texts", "text_udf", "write_part"]

_TYPES: Mapping[Kind, Any] = {
    "vector": types.ArrayType(types.FloatType()),
    "text": types.StringType(),
    "number": types.DoubleType(),
}


def _with_cpus(work: TextWork) -> TextWork:
    """Set a work's threads to the CPUs of a Spark task (spark.task.cpus)."""
    context = pyspark.TaskContext.get()
    return work if work.threads is not None or context is None else replace(work, threads=max(1, context.cpus()))


def _fields(work: TextWork) -> list[Any]:
    return [types.StructField(name, _TYPES[kind]) for name, kind in (*work.outputs.items(), ("error", "text"))]


def text_udf(work: TextWork, *, batch_size: int = 1024) -> Callable[..., Any]:
    """Return a function of a column of strings: the column of a struct with the results and the error of each text.

    It is a `pyspark.ml.functions.predict_batch_udf`, to be used as `text_udf(EmbedTexts())("text").alias("found")`. A
    Python worker loads the model once and shares it between tasks. A failed text has null results, but a vector of NaN,
    because such a function has no null vectors. batch_size: rows of a call; it changes no result.
    """
    from pyspark.ml.functions import predict_batch_udf

    def make() -> Callable[[Any], dict[str, Any]]:
        own = _with_cpus(work)

        def predict(texts: Any) -> dict[str, Any]:
            found = own(texts)
            columns = {
                name: stacked(found.values[name])
                if kind == "vector"
                else np.array([*found.values[name], ""], object)[:-1]
                for name, kind in work.outputs.items()
            }
            return {**columns, "error": np.array([*found.errors, ""], object)[:-1]}

        return predict

    udf: Callable[..., Any] = predict_batch_udf(
        make, return_type=types.StructType(_fields(work)), batch_size=batch_size
    )
    return udf


def map_texts(frame: Any, work: TextWork, *, column: str = "text") -> Any:
    """Return a DataFrame with the columns of the work and `error` after those of `frame`, by `mapInPandas`.

    A failed text, such as a null, has null results. The order of rows and partitions does not change. Raises
    InputError if `frame` does not have the column, or has one of the new ones.
    """
    if column not in frame.columns:
        raise InputError(f"column: expected one of {', '.join(frame.columns)}, got {column!r:.80}")
    for name in (*work.outputs, "error"):
        if name in frame.columns:
            raise InputError(f"frame: expected no column {name!r}, which is a result; rename it")

    def run(parts: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        own = _with_cpus(work)
        for part in parts:
            found = own(part[column])
            yield part.assign(**found.values, error=found.errors)

    return frame.mapInPandas(run, types.StructType([*frame.schema.fields, *_fields(work)]))
