"""Checks of the options of generation that are collections or functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, cast

from fastattn.checks import check_count, check_flag, check_number, quote
from fastattn.errors import DTypeError, InputError
from fastattn.formats import PACKED_DTYPES
from fastattn.models.sequences import MAX_SEQUENCES
from fastattn.options import INT32_MAX, Count, Text

SEED = Count(high=2**64 - 1)
STOP = Text(1, 1000)
_MAX_IDS = 65536
_MAX_STOP_STRINGS = 1000
_MAX_FUNCTIONS = 1000
_MAX_DIGITS = 10  # of a token id


def check_seeds(name: str, seed: Any) -> int | tuple[int, ...]:
    """Return one seed, or one per request. Raises DTypeError, InputError."""
    if isinstance(seed, (set, frozenset)):
        raise DTypeError(
            f"{name}: expected an int or a list of them, got {type(seed).__name__}, which has no order; pass a list"
        )
    items = _items(name, seed, MAX_SEQUENCES)
    if items is None:
        return SEED(name, seed)
    return tuple(SEED(f"{name}[{i}]", item) for i, item in enumerate(items))


def check_stops(name: str, stops: Any) -> tuple[str, ...]:
    """Return the stop strings as a tuple. Raises DTypeError, InputError."""
    texts = (stops,) if isinstance(stops, str) else _items(name, stops, _MAX_STOP_STRINGS)
    if texts is None:
        raise DTypeError(f"{name}: expected str or a list of str, got {type(stops).__name__}")
    return tuple(STOP(f"{name}[{i}]", text) for i, text in enumerate(texts))


def check_eos(name: str, eos: Any) -> int | tuple[int, ...]:
    """Return one id (-1: none) or several. Raises DTypeError, InputError."""
    items = _items(name, eos, _MAX_IDS)
    if items is None:
        return check_count(name, eos, low=-1)
    return tuple(check_count(f"{name}[{i}]", item) for i, item in enumerate(items))


def check_ids(name: str, ids: Any) -> tuple[int, ...]:
    """Return token ids as a tuple. Raises DTypeError, InputError."""
    items = _items(name, ids, _MAX_IDS)
    if items is None:
        raise DTypeError(f"{name}: expected a list of token ids, got {type(ids).__name__}")
    return tuple(check_count(f"{name}[{i}]", item) for i, item in enumerate(items))


def check_id_or_ids(name: str, ids: Any) -> tuple[int, ...]:
    """Return one or several token ids as a tuple. Raises DTypeError, InputError."""
    return (check_count(name, ids),) if _items(name, ids, _MAX_IDS) is None else check_ids(name, ids)


def check_words(name: str, words: Any) -> tuple[tuple[int, ...], ...]:
    """Return sequences of token ids, none of them empty. Raises DTypeError, InputError."""
    items = _items(name, words, _MAX_IDS)
    if items is None:
        raise DTypeError(f"{name}: expected a list of lists of token ids, got {type(words).__name__}")
    return tuple(_word(f"{name}[{i}]", item) for i, item in enumerate(items))


def check_sequence_bias(name: str, bias: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Return pairs of token ids and bias, from {(id, ...): bias} or [[[id, ...], bias], ...]. Raises as above."""
    if isinstance(bias, Mapping):
        pairs: list[Any] = list(bias.items())
    else:
        found = _items(name, bias, _MAX_IDS)
        if found is None:
            raise DTypeError(f"{name}: expected a mapping or a list of pairs, got {type(bias).__name__}")
        pairs = list(found)
    if len(pairs) > _MAX_IDS:
        raise InputError(f"{name}: expected at most {_MAX_IDS} items, got {len(pairs)}")
    checked: dict[tuple[int, ...], float] = {}
    for i, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DTypeError(f"{name}[{i}]: expected a pair of token ids and a number, got {quote(pair)}")
        checked[_word(f"{name}[{i}]", pair[0])] = _bias(f"{name}[{i}]", pair[1])
    return tuple(checked.items())


def check_logit_bias(name: str, bias: Any) -> tuple[tuple[int, float], ...]:
    """Return pairs of a token id and its bias, from a mapping whose keys may be text, as in JSON. Raises as above."""
    if isinstance(bias, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in bias):
        bias = {check_count(name, token_id): value for token_id, value in bias}  # as this function returns it
    if not isinstance(bias, Mapping):
        raise DTypeError(f"{name}: expected a mapping of token ids to numbers, got {type(bias).__name__}")
    if len(bias) > _MAX_IDS:
        raise InputError(f"{name}: expected at most {_MAX_IDS} items, got {len(bias)}")
    checked = {}
    for key, value in bias.items():
        if isinstance(key, str) and not (key.isascii() and key.isdigit() and len(key) <= _MAX_DIGITS):
            raise InputError(f"{name}: expected token ids as keys, got {quote(key)}")
        checked[check_count(name, int(key) if isinstance(key, str) else key)] = _bias(f"{name}[{quote(key)}]", value)
    return tuple(checked.items())


def check_decay(name: str, value: Any) -> tuple[int, float]:
    """Return (start, factor) of exponential_decay_length_penalty. Raises DTypeError, InputError."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise DTypeError(f"{name}: expected a pair (start, factor), got {quote(value)}")
    return check_count(f"{name}[0]", value[0]), check_number(f"{name}[1]", value[1], low=0.0)


def check_early_stopping(name: str, value: Any) -> bool | Literal["never"]:
    """Return True, False or "never". Raises DTypeError, InputError."""
    if isinstance(value, str):
        if value != "never":
            raise InputError(f"{name}: expected True, False or 'never', got {quote(value)}")
        return "never"
    return check_flag(name, value)


def check_functions(name: str, value: Any) -> tuple[Callable[..., Any], ...]:
    """Return one or several functions as a tuple. Raises DTypeError, InputError."""
    functions = _items(name, value, _MAX_FUNCTIONS)
    if functions is None:
        functions = (value,)
    for i, function in enumerate(functions):
        if not callable(function):
            raise DTypeError(f"{name}[{i}]: expected a function, got {type(function).__name__}")
    return tuple(functions)


def check_function(name: str, value: Any) -> Callable[..., Any]:
    """Return a function. Raises DTypeError."""
    if not callable(value):
        raise DTypeError(f"{name}: expected a function, got {type(value).__name__}")
    return cast("Callable[..., Any]", value)


def check_allowed(name: str, value: Any, vocab: int) -> list[int]:
    """Return the ids, at least one, that a user's function allows. Raises DTypeError, InputError."""
    items = _items(name, value, INT32_MAX)
    if items is None:
        raise DTypeError(f"{name}: expected it to return a list of token ids, got {type(value).__name__}")
    if not items:
        raise InputError(f"{name}: expected it to return at least one id, got none; return an eos id to end the text")
    return [check_count(name, item, high=vocab - 1) for item in items]


def check_assistant(name: str, value: Any) -> Any:
    """Return a language model, or the dtype of a copy. Raises DTypeError, InputError."""
    if isinstance(value, str):
        if value not in PACKED_DTYPES:
            raise InputError(
                f"{name}: expected a model from AutoModelForCausalLM.from_pretrained, or one of "
                f"{', '.join(PACKED_DTYPES)} for a copy of the model, got {quote(value)}"
            )
        return value
    if not all(hasattr(value, attribute) for attribute in ("engine", "executor", "tokenizer")):
        raise DTypeError(
            f"{name}: expected a model from AutoModelForCausalLM.from_pretrained, got {type(value).__name__}"
        )
    return value


def _word(name: str, ids: Any) -> tuple[int, ...]:
    if isinstance(ids, (set, frozenset)):
        raise DTypeError(
            f"{name}: expected a list of token ids, got {type(ids).__name__}, which has no order; pass a list"
        )
    word = check_ids(name, ids)
    if not word:
        raise InputError(f"{name}: expected at least one token id, got none; leave it out")
    return word


def _bias(name: str, value: Any) -> float:
    """Return a finite bias, or -inf, which forbids."""
    return -math.inf if isinstance(value, float) and value == -math.inf else check_number(name, value)


def _items(name: str, value: Any, most: int) -> Collection[Any] | None:
    """Return the items of a list, tuple, set, range, or 1-D array; None for anything else.

    The length is checked first: an array broadcast from one number may have more items than fit in memory.
    """
    shape = getattr(value, "shape", None)
    if isinstance(value, (list, tuple, set, frozenset, range)):
        length = len(value)
    elif isinstance(shape, tuple) and len(shape) == 1:
        length = int(shape[0])
    else:
        return None
    if length > most:
        raise InputError(f"{name}: expected at most {most} items, got {length}")
    return value if isinstance(value, Collection) and shape is None else list(value)
