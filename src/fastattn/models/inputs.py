"""Input validation: converts token ids to a ragged step, or raises a typed error that names the position.

Masked positions are removed here and become zeros in the output. So an output row depends only on the real tokens of
its sequence: left padding, right padding and holes give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ContextLengthError, InputError
from fastattn.graph.ir import Step
from fastattn.models.config import CommonConfig
from fastattn.models.sequences import Array, Layout, check_range, place, read_beside, read_sequences

Explain = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Batch:
    """Validated, unpadded input.

    layout: "single" [seq_len], "dense" [batch, seq_len] or "ragged" (lists). token_ids: int32 [n_tokens], the
    concatenated real tokens of all sequences. counts: the number of real tokens per sequence. token_type_ids: like
    token_ids, or None. keep: which positions are real tokens, None without a mask. lengths: of the sequences, including
    padding. width: seq_len of a dense batch. positions: like token_ids, or None if they count the tokens of each
    sequence from 0.
    """

    layout: Layout
    token_ids: NDArray[np.int32]
    counts: tuple[int, ...]
    token_type_ids: NDArray[np.int32] | None
    keep: tuple[NDArray[np.bool_], ...] | None
    lengths: tuple[int, ...]
    width: int
    positions: NDArray[np.int32] | None = None

    @property
    def n_tokens(self) -> int:
        """The number of real tokens in all sequences."""
        return len(self.token_ids)

    @property
    def ids(self) -> list[NDArray[np.int32]]:
        """The real tokens of each sequence."""
        return [
            self.token_ids[end - count : end] for count, end in zip(self.counts, accumulate(self.counts), strict=True)
        ]

    def need_tokens(self, why: str) -> None:
        """Refuse a sequence without tokens. Raises InputError."""
        for i, count in enumerate(self.counts):
            if not count:
                masked = ", all of them masked" if self.lengths[i] else ""
                name = place("input_ids", self.layout, i)
                raise InputError(f"{name}: expected at least one token, got {self.lengths[i]}{masked}; {why}")

    def last_rows(self, padding_id: int | None) -> NDArray[np.int32]:
        """Return the row of the last non-padding token of each non-empty sequence.

        This is the row that transformers' GPT-2 classifier uses. A sequence of only padding gives its first row.
        """
        counts = np.array([count for count in self.counts if count], np.int64)
        ends = np.cumsum(counts)
        if padding_id is None or not len(ends):
            return (ends - 1).astype(np.int32, copy=False)
        real = np.where(self.token_ids != padding_id, np.arange(len(self.token_ids)), -1)
        rows: NDArray[np.int32] = np.maximum(np.maximum.reduceat(real, ends - counts), ends - counts).astype(np.int32)
        return rows

    def touches(self, token_id: int) -> bool:
        """Return whether any sequence begins or ends with this token."""
        if token_id not in self.token_ids:  # nearly always, and much faster than finding the ends
            return False
        ends = np.cumsum([count for count in self.counts if count])
        edges = np.concatenate([ends - 1, ends[:-1], [0]]).astype(np.intp)
        return bool(len(ends)) and bool((self.token_ids[edges] == token_id).any())

    def step(
        self,
        logits_to_keep: int = 0,
        *,
        wanted: NDArray[np.int32] | None = None,
        key_counts: Sequence[int] | None = None,
    ) -> Step:
        """Return one step over the non-empty sequences, without caches.

        Its wanted rows are `wanted` if given, else the last `logits_to_keep` rows of each sequence (0: all).
        key_counts: of all sequences; see `Step`.
        """
        counts = [count for count in self.counts if count]
        ends = list(accumulate(counts, initial=0))
        rows = np.arange(ends[-1], dtype=np.int32)
        positions = rows if self.positions is None else self.positions
        if len(counts) > 1 and self.positions is None:
            positions = rows - np.repeat(np.array(ends[:-1], np.int32), counts)
        if wanted is None and not logits_to_keep:
            wanted = rows
        if wanted is None:
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
            key_counts=None if key_counts is None else self._of_sequences(key_counts),
        )

    def _of_sequences(self, numbers: Sequence[int]) -> NDArray[np.int32]:
        """Return the numbers of the non-empty sequences."""
        pairs = zip(numbers, self.counts, strict=True)
        return np.array([number for number, count in pairs if count], np.int32)

    def restore_tokens(self, rows: Array) -> Array | list[Array]:
        """Convert [n_tokens, width] to the layout of the input, with zeros at masked positions."""
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
        """Convert the rows of `step(logits_to_keep)` to the layout of the input, right-aligned in a dense batch."""
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
        """Return [n_sequences, width], with zeros for a sequence without tokens."""
        if len(rows) == len(self.counts):
            return rows
        restored = np.zeros((len(self.counts), rows.shape[1]), rows.dtype)
        restored[[count > 0 for count in self.counts]] = rows
        return restored

    def restore_maps(self, maps: Sequence[Array], n_head: int, dtype: np.dtype[Any]) -> Array | list[Array]:
        """Convert attention maps [n_head, q_len, kv_len] to the layout of the input, with zeros at masked positions."""
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


def read_model_batch(
    config: CommonConfig,
    input_ids: object,
    attention_mask: object = None,
    token_type_ids: object = None,
    position_ids: object = None,
    *,
    explain: Explain | None = None,
) -> Batch:
    """Call `read_batch` with the options of a model."""
    return read_batch(
        input_ids,
        attention_mask,
        token_type_ids,
        position_ids,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        type_vocab_size=config.type_vocab_size,
        position_offset=config.position_offset,
        explain=explain,
    )


def read_batch(
    input_ids: object,
    attention_mask: object = None,
    token_type_ids: object = None,
    position_ids: object = None,
    *,
    vocab_size: int,
    max_positions: int,
    type_vocab_size: int | None = None,
    position_offset: int = 0,
    explain: Explain | None = None,
    name: str = "input_ids",
    if_too_long: str = "",
) -> Batch:
    """Check and unpad token ids.

    input_ids: integers [seq_len] or [batch, seq_len] as an array or anything with __array__ or __dlpack__, a flat list,
    or a list of sequences of any lengths. attention_mask (1: token, 0: padding; also booleans and floats),
    token_type_ids and position_ids: of the same shape; position_ids also [1, seq_len]. type_vocab_size: None if the
    model has no token types; it then ignores them. position_offset: the row of position 0 in a position table of
    position_offset + max_positions rows; position_ids are rows of that table. For RoBERTa it is the padding id + 1;
    tokens with the padding id use row position_offset - 1 and do not advance the position. explain: returns a hint for
    an unknown id. name, if_too_long: for messages. Raises DTypeError, InputError, ContextLengthError.
    """
    layout, rows, width = read_sequences(input_ids, name)
    if attention_mask is None:
        _check_context(name, rows, layout, max_positions, if_too_long)
    masks = read_beside(attention_mask, "attention_mask", rows, layout)
    types = read_beside(token_type_ids, "token_type_ids", rows, layout)
    positions = read_beside(position_ids, "position_ids", rows, layout)
    keep: tuple[NDArray[np.bool_], ...] | None = None
    lengths = tuple(len(row) for row in rows)
    if masks is not None:
        check_range(masks, "attention_mask", layout, 2, "0 or 1")
        keep = tuple(mask.astype(np.bool_) for mask in masks)
        rows = [row[kept] for row, kept in zip(rows, keep, strict=True)]
        _check_context(name, rows, layout, max_positions, if_too_long)
    places = [np.flatnonzero(kept) for kept in keep] if keep is not None else None
    expected = f"a token id from 0 to {vocab_size - 1}"
    check_range(rows, name, layout, vocab_size, expected, places, explain)
    if types is not None and type_vocab_size is not None:
        types = _kept(types, keep)
        expected = f"a token type from 0 to {type_vocab_size - 1}"
        check_range(types, "token_type_ids", layout, type_vocab_size, expected, places)
    if positions is not None:
        positions = _kept(positions, keep)
        limit = position_offset + max_positions
        check_range(positions, "position_ids", layout, limit, f"a position from 0 to {limit - 1}", places)
    token_ids = _join(rows)
    counts = tuple(map(len, rows))
    return Batch(
        layout=layout,
        token_ids=token_ids,
        counts=counts,
        token_type_ids=_join(types) if types is not None and type_vocab_size is not None else None,
        keep=keep,
        lengths=lengths,
        width=width,
        positions=_positions(token_ids, counts, None if positions is None else _join(positions), position_offset),
    )


def _check_context(name: str, rows: Sequence[Array], layout: Layout, max_positions: int, hint: str) -> None:
    for i, row in enumerate(rows):
        if len(row) > max_positions:
            where = place(name, layout, i)
            raise ContextLengthError(
                f"{where}: expected at most {max_positions} tokens, the model's context, got {len(row)}{hint}",
                index=i,
                n_tokens=len(row),
                context=max_positions,
            )


def _kept(rows: Sequence[Array], keep: Sequence[Array] | None) -> list[Array]:
    """Return the values at real tokens."""
    return list(rows) if keep is None else [row[kept] for row, kept in zip(rows, keep, strict=True)]


def _positions(
    token_ids: NDArray[np.int32], counts: Sequence[int], given: NDArray[np.int32] | None, offset: int
) -> NDArray[np.int32] | None:
    """Return positions for table rows offset + position; None if they count the tokens of each sequence from 0."""
    if given is not None:
        return np.subtract(given, offset, dtype=np.int32)
    if not offset or not (token_ids == offset - 1).any():
        return None
    real = (token_ids != offset - 1).astype(np.int32)
    ends = np.cumsum(counts)
    counted = np.concatenate([np.cumsum(real[end - n : end]) for end, n in zip(ends, counts, strict=True)])
    return np.where(real == 1, counted - 1, -1).astype(np.int32)


def _join(rows: Sequence[Array]) -> NDArray[np.int32]:
    """Concatenate the rows as int32; their values are known to fit."""
    if len(rows) == 1:
        return rows[0].astype(np.int32)
    return np.concatenate([np.zeros(0, np.int32), *rows], dtype=np.int32, casting="unsafe")
