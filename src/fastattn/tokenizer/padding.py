"""Pads rows to one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from fastattn.checks import check_choice, check_flag, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer.limits import MAX_IDS
from fastattn.tokenizer.options import Side

DO_NOT_PAD = "do_not_pad"
STRATEGIES = ("longest", "max_length", DO_NOT_PAD)
_FILL: Mapping[str, Any] = {
    "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1, "offset_mapping": (0, 0),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """Pads with `pad_id` to `length` (None: the longest row), rounded up to a multiple."""

    pad_id: int
    length: int | None = None
    multiple: int = 1
    side: Side = "right"

    def width(self, lengths: Sequence[int]) -> int:
        """Return the length of rows after padding; longer rows are unchanged."""
        width = max(lengths, default=0) if self.length is None else self.length
        return -(-width // self.multiple) * self.multiple

    def pad(self, columns: dict[str, list[list[Any]]], width: int) -> list[tuple[int, int]]:
        """Pad the known columns in place. Returns (left, right), the number of pads, for each row."""
        if width * len(columns["input_ids"]) > MAX_IDS:
            raise InputError(
                f"padding: expected at most {MAX_IDS} ids in one batch, got {len(columns['input_ids'])} rows of {width}"
            )
        counts = [max(width - len(row), 0) for row in columns["input_ids"]]
        for name, rows in columns.items():
            fill = self.pad_id if name == "input_ids" else _FILL.get(name)
            if fill is None:
                continue
            for i, count in enumerate(counts):
                pads = [fill] * count
                rows[i] = pads + rows[i] if self.side == "left" else rows[i] + pads
        return [(count, 0) if self.side == "left" else (0, count) for count in counts]


def read_padding(name: str, value: object) -> str:
    """Read a strategy: True is "longest", False is "do_not_pad". Raises DTypeError, InputError."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return check_choice(name, value, STRATEGIES)
    return "longest" if check_flag(name, value) else DO_NOT_PAD


def to_array(name: str, rows: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Convert a column to an int64 array. Raises InputError for rows of different lengths."""
    if rows and isinstance(rows[0], (list, tuple)):
        lengths = {len(row) for row in rows}
        if len(lengths) > 1:
            raise InputError(
                f"{name}: rows have {min(lengths)} to {max(lengths)} items; an array needs padding=True and, for long "
                "texts, truncation=True"
            )
        tail = (2,) if name == "offset_mapping" else ()
        return np.array(rows, dtype=np.int64).reshape(len(rows), -1, *tail) if any(rows) else _empty(len(rows), tail)
    return np.array(rows, dtype=np.int64) if rows or name != "input_ids" else _empty(0, ())


def _empty(n_rows: int, tail: tuple[int, ...]) -> np.ndarray[Any, np.dtype[Any]]:
    return np.zeros((n_rows, 0, *tail), np.int64)


def to_rows(name: str, value: Any) -> tuple[Any, bool]:
    """Return a column of `pad` as a list of int or of lists of int, and whether it had arrays."""
    if hasattr(value, "tolist"):
        return value.tolist(), True
    if not isinstance(value, (list, tuple)):
        raise DTypeError(f"{name}: expected lists or arrays, got {quote(value)}")
    found = [item.tolist() if hasattr(item, "tolist") else item for item in value]
    return found, any(isinstance(item, np.ndarray) and item.ndim > 0 for item in value)
