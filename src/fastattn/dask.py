"""A function for Dask DataFrames. Needs the extra `dask`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

try:
    import dask.dataframe
except ModuleNotFoundError as error:
    raise ImportError(
        'fastattn.dask: expected the package dask with its DataFrame, found none; run pip install "fastattn[dask]"'
    ) from error

from fastattn.errors import InputError
from fastattn.tasks.columns import ClassifyTexts, Columns, EmbedTexts, GenerateTexts, TextWork
from fastattn.tasks.parts import to_arrow, write_part

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ClassifyTexts", "EmbedTexts", "GenerateTexts", "map_texts", "write_part"]


def map_texts(frame: dask.dataframe.DataFrame, work: TextWork, *, column: str = "text") -> dask.dataframe.DataFrame:
    """Return a Dask DataFrame with the columns of the work and `error` after those of `frame`, by `map_partitions`.

    The new columns have Arrow types: list<float32>, float64 and string. A failed text, such as None, has nulls.
    work.threads: None is 1, because Dask runs one task per thread of a worker; tasks of a process share one model.
    Raises InputError if `frame` does not have the column, or has one of the new ones.
    """
    if column not in frame.columns:
        raise InputError(f"column: expected one of {', '.join(map(str, frame.columns))}, got {column!r:.80}")
    for name in (*work.outputs, "error"):
        if name in frame.columns:
            raise InputError(f"frame: expected no column {name!r}, which is a result; rename it")
    own = work if work.threads is not None else replace(work, threads=1)
    meta = _assigned(frame._meta, own, Columns({name: [] for name in own.outputs}, []))
    return frame.map_partitions(_map_part, own, column, meta=meta)


def _map_part(part: pd.DataFrame, work: TextWork, column: str) -> pd.DataFrame:
    return _assigned(part, work, work(part[column]))


def _assigned(part: pd.DataFrame, work: TextWork, found: Columns) -> pd.DataFrame:
    import pandas as pd

    arrays = to_arrow(found, work)
    typed = {name: pd.Series(pd.arrays.ArrowExtensionArray(array), part.index) for name, array in arrays.items()}
    return part.assign(**typed)
