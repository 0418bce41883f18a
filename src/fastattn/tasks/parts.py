"""Results of parts of a column in files: NumPy arrays, Arrow tables, and one file per part, written atomically."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn.checks import check_path
from fastattn.errors import ConfigError, InputError
from fastattn.files import replaced_file
from fastattn.tasks.columns import Columns, Kind, TextWork, stacked

if TYPE_CHECKING:
    import pyarrow as pa

_WORK = "fastattn.work"


def to_arrays(columns: Columns, work: TextWork) -> dict[str, Any]:
    """Return columns as arrays without None, so that their types do not depend on the rows.

    Vectors are float32 [n, d] and numbers float64 [n], with NaN for failed rows.
    Labels, generated texts and errors are str
    [n] as objects, with "" for no label or no error.
    """
    found = {name: _array(columns.values[name], kind) for name, kind in work.outputs.items()}
    return {**found, "error": _array(columns.errors, "text")}


def _array(values: Sequence[Any], kind: Kind) -> Any:
    if kind == "vector":
        return stacked(values)
    if kind == "number":
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return np.array([value or "" for value in values], object)


def to_arrow(columns: Columns, work: TextWork) -> dict[str, Any]:
    """Return columns as Arrow arrays, with null for failed rows: list<float32>, float64 and string. Needs pyarrow."""
    import pyarrow as pa

    types: dict[Kind, pa.DataType] = {"vector": pa.list_(pa.float32()), "number": pa.float64(), "text": pa.string()}
    found = {name: pa.array(columns.values[name], types[kind]) for name, kind in work.outputs.items()}
    return {**found, "error": pa.array(columns.errors, pa.string())}


def write_part(
    path: str | os.PathLike[str], work: TextWork, texts: Iterable[object] | Callable[[], Iterable[object]]
) -> bool:
    """Compute a part of a column and write it to a file, unless that file exists. Return whether it was written.

    path: ends with .npz or .parquet; the latter needs pyarrow. texts: the texts, or a function that returns them and
    is called only if the part must be computed. The file has the results and the error of each text, in order;
    .parquet also has the texts.
    It appears with all its rows or not at all, even if the process is killed. Two workers may write the same part; the
    second file replaces the first and has equal results. An existing file may come from other files of the model:
    they are not compared.
    Raises ConfigError if the file is from a different TextWork (model name, dtype or options), InputError for another
    suffix, OSError, and what the work raises.
    """
    target = check_path("path", path)
    if target.suffix not in (".npz", ".parquet"):
        raise InputError(f"path: expected a name that ends with .npz or .parquet, got {target.name!r:.80}")
    if target.exists():
        _check_same(target, work)
        return False
    items = list(texts() if callable(texts) else texts)
    columns = work(items)
    save = _save_npz if target.suffix == ".npz" else _save_parquet
    with replaced_file(target) as file:
        save(file, work, items, columns)
        file.flush()
        os.fsync(file.fileno())
    return True


def _save_npz(file: Any, work: TextWork, items: list[object], columns: Columns) -> None:
    """Write arrays that load without pickle."""
    arrays = to_arrays(columns, work)
    named: dict[str, Any] = {_WORK: np.array(work.describe())}
    for name, values in arrays.items():
        named[name] = values.astype(np.str_) if values.dtype == object else values
    buffer = io.BytesIO()  # np.savez seeks while it writes; keywords name the arrays
    np.savez(buffer, **named)
    file.write(buffer.getbuffer())


def _save_parquet(file: Any, work: TextWork, items: list[object], columns: Columns) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Null for what is not a text; UTF-8 has no lone surrogates.
    texts = [item.encode("utf-8", "replace").decode() if isinstance(item, str) else None for item in items]
    table = pa.table({"text": pa.array(texts, pa.string()), **to_arrow(columns, work)})
    pq.write_table(table.replace_schema_metadata({_WORK: work.describe()}), file)


def _check_same(path: Path, work: TextWork) -> None:
    """Raise ConfigError if a file is from a different TextWork."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            found = str(arrays[_WORK]) if _WORK in arrays else None
    else:
        import pyarrow.parquet as pq

        data = (pq.read_schema(path).metadata or {}).get(_WORK.encode())
        found = None if data is None else data.decode()
    if found != work.describe():
        raise ConfigError(
            f"{path}: expected results of {work.describe()}, got those of {found}; use another folder, or remove it"
        )
