"""Converts token ids, masks and token types to one integer array per sequence.

Lengths are checked before values are read or converted, because an array that is broadcast from one number may be
larger than memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import is_masked_array, quote
from fastattn.errors import DTypeError, InputError

Layout = Literal["single", "dense", "ragged"]
Array = NDArray[Any]
MAX_TOKENS = 2**26  # per call, including padding; the activations would take hundreds of gigabytes
MAX_SEQUENCES = 2**20


def place(name: str, layout: Layout, row: int, column: int | None = None) -> str:
    """Format a position: input_ids[3], input_ids[1, 3] or, in a list of sequences, input_ids[1][3]."""
    if column is None:
        return name if layout == "single" else f"{name}[{row}]"
    if layout == "single":
        return f"{name}[{column}]"
    return f"{name}[{row}, {column}]" if layout == "dense" else f"{name}[{row}][{column}]"


def check_range(
    rows: Sequence[Array],
    name: str,
    layout: Layout,
    limit: int,
    expected: str,
    places: Sequence[Array] | None = None,
    explain: Callable[[int], str] | None = None,
) -> None:
    """Check that every value is from 0 to limit - 1. Raises InputError.

    places: the columns of the values before the mask was applied. explain: returns a hint for a wrong value.
    """
    if rows and all(row.dtype == np.int64 for row in rows):  # one check for all; a negative value is large as uint64
        values = rows[0] if len(rows) == 1 else np.concatenate(rows)
        if np.maximum.reduce(values.view(np.uint64), initial=0) < limit:
            return
    for i, row in enumerate(rows):
        if not len(row) or (row.min() >= 0 and row.max() < limit):
            continue
        bad = int(np.flatnonzero((row < 0) | (row >= limit))[0])
        column = bad if places is None else int(places[i][bad])
        why = "" if explain is None else explain(int(row[bad]))
        raise InputError(f"{place(name, layout, i, column)}: expected {expected}, got {row[bad]}{why}")


def read_beside(value: object, name: str, rows: Sequence[Array], layout: Layout) -> list[Array] | None:
    """Read a mask, token types or positions: one number per token id. One row of positions applies to all sequences."""
    if value is None:
        return None
    found_layout, found, _ = read_sequences(value, name, mask=name == "attention_mask")
    if name == "position_ids" and found_layout != "single" and len(found) == 1:
        found = found * len(rows)
    single = (layout == "single") == (found_layout == "single")
    if not single or [len(row) for row in found] != [len(row) for row in rows]:
        expected, got = _shape(layout, rows), _shape(found_layout, found)
        raise InputError(f"{name}: expected the shape of input_ids, {expected}, got {got}")
    return found


def _shape(layout: Layout, rows: Sequence[Array]) -> str:
    lengths = [len(row) for row in rows]
    if layout == "single":
        return str(lengths)
    if len(set(lengths)) == 1:
        return str([len(rows), lengths[0]])
    shown = ", ".join(map(str, lengths[:8])) + (", ..." if len(lengths) > 8 else "")
    return f"{len(rows)} sequences of lengths {shown}"


def read_sequences(value: object, name: str, *, mask: bool = False) -> tuple[Layout, list[Array], int]:
    """Return the layout, one integer array per sequence, and the width of a dense batch.

    mask: whether booleans, and floats that are 0 or 1, count as integers. Raises DTypeError, InputError.
    """
    if isinstance(value, list | tuple):
        kinds = set(map(type, value))
        if value and not any(_is_sequence(item) for item in value):
            return "single", [_integers(value, name, mask)], 0
        _check_total(name, len(value), 0)
        rows, total = [], 0
        for i, item in enumerate(value):
            if not _is_sequence(item):
                others = ", ".join(sorted(kind.__name__ for kind in kinds))
                raise DTypeError(f"{name}[{i}]: expected a sequence of integers like the others, got {others[:200]}")
            rows.append(_integers(item, f"{name}[{i}]", mask))
            total += len(rows[-1])
            _check_total(name, 1, total)
        return "ragged", rows, 0
    array = _integers(value, name, mask, dims=(1, 2))
    if array.ndim == 1:
        return "single", [array], 0
    return "dense", list(array), array.shape[1]


def _check_total(name: str, n_sequences: int, n_tokens: int) -> None:
    """Limit the size of a call, including padding."""
    if n_sequences > MAX_SEQUENCES:
        raise InputError(f"{name}: expected at most {MAX_SEQUENCES} sequences in one call, got {n_sequences}")
    if n_tokens > MAX_TOKENS:
        raise InputError(f"{name}: expected at most {MAX_TOKENS} tokens in one call, got {n_tokens}")


def _is_sequence(item: object) -> bool:
    if isinstance(item, list | tuple):
        return True
    if isinstance(item, np.generic | int | float | str | bytes):
        return False
    return getattr(item, "ndim", 1) > 0 and (hasattr(item, "__array__") or hasattr(item, "__dlpack__"))


def _integers(value: object, name: str, mask: bool, dims: tuple[int, ...] = (1,)) -> Array:
    """Return an integer array unchanged; convert a list after checking every item."""
    if isinstance(value, list | tuple):
        _check_total(name, 1, len(value))
        _check_items(value, name, mask)
        return np.array([int(cast(Any, item)) for item in value], dtype=np.int64)
    array = _as_array(value, name)
    if array.dtype.kind not in ("iubf" if mask else "iu"):
        raise DTypeError(f"{name}: expected an array of integers, got {array.dtype}")
    if array.ndim not in dims:
        shape = " or ".join("[seq_len]" if d == 1 else "[batch, seq_len]" for d in dims)
        raise InputError(f"{name}: expected {shape}, got shape {list(array.shape)}")
    _check_total(name, len(array) if array.ndim == 2 else 1, array.size)
    if array.dtype.kind == "f":
        places = np.argwhere((array != 0) & (array != 1))
        if len(places):
            at = ", ".join(map(str, places[0]))
            raise InputError(f"{name}[{at}]: expected 0 or 1, got {array[tuple(places[0])]}")
    return array.astype(np.int64) if array.dtype.kind in "bf" else array


def _as_array(value: object, name: str) -> Array:
    if isinstance(value, dict) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        hint = "call model(**encoding) instead of model(encoding)"
        if hasattr(value, "__array__"):  # pandas
            hint = f"pass {name}=table.to_numpy()"
        raise DTypeError(f"{name}: expected token ids (integers), got {type(value).__name__}; {hint}")
    if isinstance(value, str | bytes | set | frozenset) or value is None:
        expected, hint = ("token ids (integers)", "; encode texts first") if name == "input_ids" else ("integers", "")
        raise DTypeError(f"{name}: expected {expected}, got {type(value).__name__}{hint}")
    if is_masked_array(value):
        raise DTypeError(
            f"{name}: expected an array of integers, got a masked array; pass "
            "input_ids=a.filled(0) and attention_mask=~numpy.ma.getmaskarray(a)"
        )
    if type(value).__module__ == "torch":
        return _from_torch(value, name)
    if hasattr(value, "__array__"):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    raise DTypeError(f"{name}: expected an array or a list of integers, got {type(value).__name__}")


def _from_torch(tensor: Any, name: str) -> Array:
    """Convert a tensor in main memory with a dtype that numpy supports."""
    try:
        return np.asarray(tensor)
    except (TypeError, RuntimeError) as error:  # another device, bfloat16, a gradient
        why = quote(str(error).partition("\n")[0], 160)[1:-1]
        raise DTypeError(
            f"{name}: expected an array of integers, got a tensor that numpy cannot read ({why}); pass "
            f"{name}.detach().cpu().long()"
        ) from None


def _check_items(items: Sequence[object], name: str, mask: bool) -> None:
    """Check that all items are integers that fit in 64 bits."""
    if set(map(type, items)) <= {int}:
        integers = cast("Sequence[int]", items)
        if not integers or (min(integers) >= -(2**63) and max(integers) < 2**63):
            return
    for i, item in enumerate(items):
        is_bool = isinstance(item, bool | np.bool_) or str(getattr(item, "dtype", "")).endswith("bool")
        if is_bool and mask and getattr(item, "ndim", 0) == 0:
            continue
        if mask and isinstance(item, float | np.floating):
            if item in (0, 1):
                continue
            raise InputError(f"{name}[{i}]: expected 0 or 1, got {item}")
        try:
            value = None if is_bool else operator.index(cast(SupportsIndex, item))
        except TypeError:
            value = None
        if value is None:
            hint = "; encode texts first" if name.startswith("input_ids") and isinstance(item, str) else ""
            raise DTypeError(f"{name}[{i}]: expected an integer, got {_kind(item)}{hint}")
        if not -(2**63) <= value < 2**63:
            found = value if abs(value) < 2**128 else f"one of {value.bit_length()} bits"
            raise InputError(f"{name}[{i}]: expected an integer of 64 bits, got {found}")


def _kind(item: object) -> str:
    """Return the type of an item, and the dtype of an array."""
    kind, dtype = type(item).__name__, getattr(item, "dtype", None)
    return kind if dtype is None or isinstance(item, np.generic) else f"{kind} of {dtype}"
