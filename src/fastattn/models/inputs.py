"""The door: whatever people pass as token ids becomes a ragged step, or a typed error that names the place.

Masked positions leave here and come back as zeros on the way out, so a row of output depends on its own real tokens
alone: left padding, right padding and holes give the same numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.graph.ir import Step

Layout = Literal["single", "dense", "ragged"]
Array = NDArray[Any]
MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Checked input, unpadded.

    layout: "single" [seq_len], "dense" [batch, seq_len] or "ragged" (lists); token_ids: int32, the real tokens of all
    sequences, one behind the other; counts: how many of each sequence; token_type_ids: like token_ids, or None; keep:
    where a mask was given, which of the positions are real tokens; lengths: of the sequences with their padding; width:
    seq_len of a dense batch.
    """

    layout: Layout
    token_ids: NDArray[np.int32]
    counts: tuple[int, ...]
    token_type_ids: NDArray[np.int32] | None
    keep: tuple[NDArray[np.bool_], ...] | None
    lengths: tuple[int, ...]
    width: int

    @property
    def n_tokens(self) -> int:
        """Real tokens of all sequences."""
        return len(self.token_ids)

    @property
    def ids(self) -> list[NDArray[np.int32]]:
        """The real tokens of each sequence."""
        return [
            self.token_ids[end - count : end] for count, end in zip(self.counts, accumulate(self.counts), strict=True)
        ]

    def step(self, logits_to_keep: int = 0) -> Step:
        """One step over the sequences that are not empty, without caches; the last `logits_to_keep` rows of each
        sequence (0: all) are wanted."""
        counts = [count for count in self.counts if count]
        ends = list(accumulate(counts, initial=0))
        rows = np.arange(ends[-1], dtype=np.int32)
        positions = wanted = rows
        if len(counts) > 1:
            positions = rows - np.repeat(np.array(ends[:-1], np.int32), counts)
        if logits_to_keep:
            starts = [end - min(count, logits_to_keep) for count, end in zip(counts, ends[1:], strict=True)]
            wanted = np.array(
                [i for start, end in zip(starts, ends[1:], strict=True) for i in range(start, end)], np.int32
            )
        return Step(
            token_ids=self.token_ids,
            cu_seqlens=np.array(ends, np.int32),
            positions=positions,
            wanted=wanted,
            token_type_ids=self.token_type_ids,
        )

    def restore_tokens(self, rows: Array) -> Array | list[Array]:
        """[n_tokens, width] -> the layout of the input, zeros at masked positions."""
        restored, start = [], 0
        for i, count in enumerate(self.counts):
            part = rows[start : start + count]
            start += count
            if self.keep is not None:
                whole = np.zeros((self.lengths[i], rows.shape[1]), rows.dtype)
                whole[self.keep[i]] = part
                part = whole
            restored.append(part)
        return self._arrange(restored, (self.width, rows.shape[1]), rows.dtype)

    def restore_wanted(self, rows: Array, logits_to_keep: int) -> Array | list[Array]:
        """The rows of `step(logits_to_keep)` in the layout of the input; a dense batch has them right-aligned."""
        if not logits_to_keep:
            return self.restore_tokens(rows)
        dense = self.layout == "dense"
        tall = min(logits_to_keep, self.width)
        restored, start = [], 0
        for real in self.counts:
            count = min(real, logits_to_keep)
            part = rows[start : start + count]
            start += count
            if dense and count < tall:
                part = np.concatenate([np.zeros((tall - count, rows.shape[1]), rows.dtype), part])
            restored.append(part)
        return self._arrange(restored, (tall, rows.shape[1]), rows.dtype)

    def restore_sequences(self, rows: Array) -> Array:
        """[n_sequences, width]: zeros for a sequence without tokens."""
        if len(rows) == len(self.counts):
            return rows
        restored = np.zeros((len(self.counts), rows.shape[1]), rows.dtype)
        restored[[count > 0 for count in self.counts]] = rows
        return restored

    def restore_maps(self, maps: Sequence[Array], n_head: int, dtype: np.dtype[Any]) -> Array | list[Array]:
        """Attention maps [n_head, q_len, kv_len] in the layout of the input, zeros at masked positions."""
        restored, given = [], iter(maps)
        for i, count in enumerate(self.counts):
            part = next(given) if count else np.zeros((n_head, 0, 0), dtype)
            if self.keep is not None:
                whole = np.zeros((n_head, self.lengths[i], self.lengths[i]), dtype)
                places = np.flatnonzero(self.keep[i])
                whole[:, places[:, None], places[None, :]] = part
                part = whole
            restored.append(part)
        return self._arrange(restored, (n_head, self.width, self.width), dtype)

    def _arrange(self, parts: list[Array], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array | list[Array]:
        if self.layout == "ragged":
            return parts
        if self.layout == "single":
            return parts[0]
        return np.stack(parts) if parts else np.zeros((0, *shape), dtype)


def read_batch(
    input_ids: object,
    attention_mask: object = None,
    token_type_ids: object = None,
    *,
    vocab_size: int,
    max_positions: int,
    type_vocab_size: int | None = None,
) -> Batch:
    """Check and unpad token ids.

    input_ids: integers [seq_len] or [batch, seq_len] as an array or anything with __array__ or __dlpack__, a flat list,
    or a list of sequences of any lengths. attention_mask (1: token, 0: padding) and token_type_ids: of the same shape.
    type_vocab_size None: the model has no token types, and accepts zeros alone.
    Raises DTypeError, InputError, ContextLengthError.
    """
    layout, rows, width = _sequences(input_ids, "input_ids")
    masks = _beside(attention_mask, "attention_mask", rows, layout)
    types = _beside(token_type_ids, "token_type_ids", rows, layout)
    keep: tuple[NDArray[np.bool_], ...] | None = None
    lengths = tuple(len(row) for row in rows)
    if masks is not None:
        _check_range(masks, "attention_mask", layout, 2, "0 or 1")
        keep = tuple(mask.astype(np.bool_) for mask in masks)
        rows = [row[kept] for row, kept in zip(rows, keep, strict=True)]
    places = [np.flatnonzero(kept) for kept in keep] if keep is not None else None
    _check_range(rows, "input_ids", layout, vocab_size, f"a token id from 0 to {vocab_size - 1}", places)
    if types is not None:
        if keep is not None:
            types = [row[kept] for row, kept in zip(types, keep, strict=True)]
        limit = type_vocab_size or 1
        expected = f"a token type from 0 to {limit - 1}" if type_vocab_size else "0 (this model has no token types)"
        _check_range(types, "token_type_ids", layout, limit, expected, places)
    counts = tuple(map(len, rows))
    for i, count in enumerate(counts):
        if count > max_positions:
            name = _place("input_ids", layout, i)
            raise ContextLengthError(
                f"{name}: expected at most {max_positions} tokens, the model's context, got {count}"
            )
    if sum(counts) > MAX_TOKENS:
        raise InputError(f"input_ids: expected at most {MAX_TOKENS} tokens in one call")
    has_types = types is not None and type_vocab_size is not None
    return Batch(
        layout=layout,
        token_ids=_join(rows),
        counts=counts,
        token_type_ids=_join(types) if has_types and types is not None else None,
        keep=keep,
        lengths=lengths,
        width=width,
    )


def _join(rows: Sequence[Array]) -> NDArray[np.int32]:
    """All of them as int32, which their values are known to fit, one behind the other."""
    if len(rows) == 1:
        return rows[0].astype(np.int32)
    return np.concatenate([np.zeros(0, np.int32), *rows], dtype=np.int32, casting="unsafe")


def _place(name: str, layout: Layout, row: int, column: int | None = None) -> str:
    """input_ids[3], input_ids[1, 3] or, in a list of sequences, input_ids[1][3]."""
    if column is None:
        return name if layout == "single" else f"{name}[{row}]"
    if layout == "single":
        return f"{name}[{column}]"
    return f"{name}[{row}, {column}]" if layout == "dense" else f"{name}[{row}][{column}]"


def _check_range(
    rows: Sequence[Array], name: str, layout: Layout, limit: int, expected: str, places: Sequence[Array] | None = None
) -> None:
    """Every value from 0 to limit - 1. `places` gives the columns that the values had before the mask."""
    if rows and all(row.dtype == np.int64 for row in rows):  # in one go; a negative one is high without its sign
        values = rows[0] if len(rows) == 1 else np.concatenate(rows)
        if np.maximum.reduce(values.view(np.uint64), initial=0) < limit:
            return
    for i, row in enumerate(rows):
        if not len(row) or (row.min() >= 0 and row.max() < limit):
            continue
        bad = int(np.flatnonzero((row < 0) | (row >= limit))[0])
        column = bad if places is None else int(places[i][bad])
        raise InputError(f"{_place(name, layout, i, column)}: expected {expected}, got {row[bad]}")


def _beside(value: object, name: str, rows: Sequence[Array], layout: Layout) -> list[Array] | None:
    """A mask or token types: one number for every token id."""
    if value is None:
        return None
    found_layout, found, _ = _sequences(value, name, booleans=name == "attention_mask")
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


def _sequences(value: object, name: str, *, booleans: bool = False) -> tuple[Layout, list[Array], int]:
    """Layout, one int64 or uint64 array a sequence, and the width of a dense batch."""
    if isinstance(value, list | tuple):
        kinds = set(map(type, value))
        if value and not any(_is_sequence(item) for item in value):
            return "single", [_integers(value, name, booleans)], 0
        rows = []
        for i, item in enumerate(value):
            if not _is_sequence(item):
                others = ", ".join(sorted(kind.__name__ for kind in kinds))
                raise DTypeError(f"{name}[{i}]: expected a sequence of integers like the others, got {others}")
            rows.append(_integers(item, f"{name}[{i}]", booleans))
        return "ragged", rows, 0
    array = _integers(value, name, booleans, dims=(1, 2))
    if array.ndim == 1:
        return "single", [array], 0
    return "dense", list(array), array.shape[1]


def _is_sequence(item: object) -> bool:
    if isinstance(item, list | tuple):
        return True
    if isinstance(item, np.generic | int | float | str | bytes):
        return False
    return getattr(item, "ndim", 1) > 0 and (hasattr(item, "__array__") or hasattr(item, "__dlpack__"))


def _integers(value: object, name: str, booleans: bool, dims: tuple[int, ...] = (1,)) -> Array:
    """An integer array as it is; lists are converted after a look at every item."""
    if isinstance(value, list | tuple):
        _check_items(value, name, booleans)
        array: Array = np.array([int(item) for item in value], dtype=np.int64)
        return array
    array = _as_array(value, name)
    if array.dtype.kind not in ("iub" if booleans else "iu"):
        raise DTypeError(f"{name}: expected an array of integers, got {array.dtype}")
    if array.ndim not in dims:
        shape = " or ".join("[seq_len]" if d == 1 else "[batch, seq_len]" for d in dims)
        raise InputError(f"{name}: expected {shape}, got shape {list(array.shape)}")
    return array.astype(np.int64) if array.dtype.kind == "b" else array


def _as_array(value: object, name: str) -> Array:
    if isinstance(value, str | bytes | dict | set | frozenset) or value is None:
        raise DTypeError(f"{name}: expected token ids (integers), got {type(value).__name__}; encode texts first")
    if hasattr(value, "__array__"):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    raise DTypeError(f"{name}: expected an array or a list of integers, got {type(value).__name__}")


def _check_items(items: Sequence[object], name: str, booleans: bool) -> None:
    """Integers that fit in 64 bits."""
    if set(map(type, items)) <= {int}:
        integers = cast("Sequence[int]", items)
        if not integers or (min(integers) >= -(2**63) and max(integers) < 2**63):
            return
    for i, item in enumerate(items):
        is_bool = isinstance(item, bool | np.bool_) or str(getattr(item, "dtype", "")).endswith("bool")
        if is_bool and booleans and getattr(item, "ndim", 0) == 0:
            continue
        try:
            value = None if is_bool else operator.index(cast(SupportsIndex, item))
        except TypeError:
            value = None
        if value is None:
            raise DTypeError(f"{name}[{i}]: expected an integer, got {_kind(item)}")
        if not -(2**63) <= value < 2**63:
            found = value if abs(value) < 2**128 else f"one of {value.bit_length()} bits"
            raise InputError(f"{name}[{i}]: expected an integer of 32 bits, got {found}")


def _kind(item: object) -> str:
    """The type of an item, and of an array its dtype."""
    kind, dtype = type(item).__name__, getattr(item, "dtype", None)
    return kind if dtype is None or isinstance(item, np.generic) else f"{kind} of {dtype}"
