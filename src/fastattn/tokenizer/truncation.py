"""Truncates one encoding or a pair as the tokenizers library does, without changing the library's settings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from fastattn.checks import check_choice, check_flag
from fastattn.errors import InputError
from fastattn.tokenizer.options import Side

if TYPE_CHECKING:
    from tokenizers import Encoding as RawEncoding

DO_NOT_TRUNCATE = "do_not_truncate"
STRATEGIES = ("longest_first", "only_first", "only_second", DO_NOT_TRUNCATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncation:
    """How to truncate: by a strategy, to max_length tokens including special tokens.

    stride: the number of tokens that each overflowing part repeats from the part before it.
    """

    max_length: int
    strategy: str = "longest_first"
    stride: int = 0
    side: Side = "right"


def read_truncation(name: str, value: object) -> str:
    """Read a strategy: True is "longest_first", False and None are "do_not_truncate". Raises DTypeError, InputError."""
    if value is None:
        return DO_NOT_TRUNCATE
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, (bool, np.bool_)):
        return "longest_first" if check_flag(name, value) else DO_NOT_TRUNCATE
    if isinstance(value, str):
        return check_choice(name, value, STRATEGIES)
    check_flag(name, value)
    raise AssertionError


def truncate(
    first: RawEncoding, second: RawEncoding | None, truncation: Truncation, *, n_special: int, name: str
) -> None:
    """Truncate the encodings of a text or pair in place; `n_special` tokens are added later. Raises InputError."""
    room = truncation.max_length - n_special
    if room < 0:
        raise InputError(f"max_length: expected room for the {n_special} special tokens, got {truncation.max_length}")
    if truncation.stride and truncation.stride >= room:
        raise InputError(
            f"stride: expected less than the {room} tokens that max_length leaves for a text, got {truncation.stride}"
        )
    n_first, n_second = len(first), 0 if second is None else len(second)
    if n_first + n_second <= room:
        return
    if room == 0:
        n_first = n_second = 0
    elif truncation.strategy == "longest_first":
        n_first, n_second = longest_first(n_first, n_second, room)
    elif truncation.strategy == "only_first":
        n_first = _room_for(name, "first", n_first, room - n_second)
    elif second is None:
        raise InputError(f'truncation: "only_second" needs a pair, but {name} of {n_first} tokens has no second text')
    else:
        n_second = _room_for(name, "second", n_second, room - n_first)
    _cut(first, n_first, truncation)
    if second is not None:
        _cut(second, n_second, truncation)


def longest_first(n_first: int, n_second: int, room: int) -> tuple[int, int]:
    """Return the lengths after truncating the longer of two sequences first, as the tokenizers library does."""
    if n_first + n_second <= room:
        return n_first, n_second
    short, long = min(n_first, n_second), max(n_first, n_second)
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if n_first <= n_second else (long, short)


def _room_for(name: str, which: str, n_tokens: int, room: int) -> int:
    if room <= 0:
        other = "second" if which == "first" else "first"
        raise InputError(
            f'truncation: "only_{which}" cannot make {name} fit: the {which} text has {n_tokens} tokens and '
            f"would need to lose {n_tokens - room}; shorten the {other} text or use a larger max_length"
        )
    return room


def _cut(encoding: RawEncoding, n_tokens: int, truncation: Truncation) -> None:
    if n_tokens >= len(encoding):
        return
    if n_tokens and truncation.stride >= n_tokens:
        raise InputError(f"stride: expected less than the {n_tokens} tokens of a part, got {truncation.stride}")
    encoding.truncate(n_tokens, stride=truncation.stride, direction=truncation.side)
