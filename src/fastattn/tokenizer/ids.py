"""Reads token ids for decoding, and cleans up decoded text."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import quote
from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer.limits import MAX_IDS
from fastattn.tokenizer.texts import unwrap

_MAX_ID = 2**32 - 1
# Removes the space before punctuation and English contractions, in the same order as transformers.
CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
    (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def read_sequences(name: str, value: Any) -> tuple[list[list[int]], bool]:
    """Return rows of ids, and whether `value` is a batch: a sequence of sequences.

    `value` is an int, a sequence of ints (list, tuple, array, tensor), a sequence of those, or an encoding with
    "input_ids". Raises DTypeError, InputError.
    """
    if isinstance(value, Mapping):
        if "input_ids" not in value:
            raise InputError(f"{name}: expected token ids, got a mapping without input_ids")
        return read_sequences(name, value["input_ids"])
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        array = _to_numpy(name, value)
        if array.ndim < 2:
            return [_checked(name, array.reshape(-1))], False
        if array.ndim > 2:
            raise InputError(f"{name}: expected at most two dimensions, got shape {quote(array.shape)}")
        return [_checked(f"{name}[{i}]", row) for i, row in enumerate(array)], True
    if not isinstance(value, (list, tuple)):
        scalar = hasattr(type(value), "__index__") and not is_sequence(value)
        return [read_ids(name, [value] if scalar else value)], False
    if value and is_sequence(value[0]):
        _check_length(name, len(value))
        rows = [read_ids(f"{name}[{i}]", row) for i, row in enumerate(value)]
        return rows, True
    return [read_ids(name, value)], False


def read_ids(name: str, value: Any) -> list[int]:
    """Read a one-dimensional sequence of token ids. Raises DTypeError, InputError."""
    if isinstance(value, (str, bytes, Mapping)) or not is_sequence(value):
        found = f"{type(value).__name__} {quote(value)}" if isinstance(value, (str, float)) else type(value).__name__
        raise DTypeError(f"{name}: expected token ids, got {found}")
    if isinstance(getattr(value, "shape", None), tuple):
        array = _to_numpy(name, value)
    else:
        _check_length(name, len(value))
        ids = [item if type(item) is int else _read_item(f"{name}[{i}]", item) for i, item in enumerate(value)]
        bad = next((i for i, item in enumerate(ids) if not 0 <= item <= _MAX_ID), None)
        if bad is not None:
            raise _out_of_range(f"{name}[{bad}]", ids[bad])
        return ids
    if array.ndim != 1:
        raise InputError(f"{name}: expected one dimension, got shape {quote(array.shape)}")
    return _checked(name, array)


def clean_up(text: str) -> str:
    """Remove the spaces that WordPiece leaves before punctuation and contractions."""
    for found, replacement in CLEAN_UP:
        text = text.replace(found, replacement)
    return text


def _read_item(name: str, item: Any) -> int:
    if is_sequence(item):
        raise InputError(f"{name}: expected an int, got a sequence; decode a list of sequences of ids, not a mixture")
    if not isinstance(item, (bool, np.bool_)):
        try:
            return operator.index(unwrap(item))
        except TypeError:
            pass
    raise DTypeError(f"{name}: expected an int, got {type(item).__name__}")


def is_sequence(value: Any) -> bool:
    """Return whether a value has a length and items, like a list or an array with axes."""
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return len(shape) > 0
    return all(hasattr(type(value), method) for method in ("__len__", "__getitem__"))


def _to_numpy(name: str, value: Any) -> NDArray[Any]:
    """Convert an array or tensor to a NumPy array after checking its size."""
    size = 1
    for length in value.shape:
        size *= int(length)
    _check_length(name, max(size, *value.shape) if value.shape else 1)
    array = np.asarray(value)
    if array.size and array.dtype.kind not in "iu":
        raise DTypeError(f"{name}: expected integers, got {array.dtype}")
    return array


def _checked(name: str, array: NDArray[Any]) -> list[int]:
    bad = np.flatnonzero((array < 0) | (array > _MAX_ID))
    if bad.size:
        raise _out_of_range(f"{name}[{bad[0]}]", array[bad[0]])
    return [int(i) for i in array.tolist()]


def _check_length(name: str, length: int) -> None:
    if length > MAX_IDS:
        raise InputError(f"{name}: expected at most {MAX_IDS} ids in one call, got {length}")


def _out_of_range(name: str, found: Any) -> InputError:
    return InputError(f"{name}: expected an id of 0 or more, got {quote(int(found))}")
