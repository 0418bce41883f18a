"""The keyword arguments of a tokenizer call: transformers' names, each with one checked type."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, TypedDict

from fastattn.checks import check_choice, check_count, check_flag, check_keywords, check_str
from fastattn.errors import InputError
from fastattn.tokenizer.options import Side, TokenizerOptions
from fastattn.tokenizer.padding import DO_NOT_PAD, Padding, read_padding
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE, Truncation, read_truncation

_log = logging.getLogger("fastattn")
SIDES = ("left", "right")
PaddingArg = bool | Literal["longest", "max_length", "do_not_pad"]
TruncationArg = bool | Literal["longest_first", "only_first", "only_second", "do_not_truncate"] | None


class EncodeArgs(TypedDict, total=False):
    """The arguments of `Tokenizer.encode`, with transformers' defaults."""

    add_special_tokens: bool
    padding: PaddingArg
    truncation: TruncationArg
    max_length: int | None
    stride: int
    is_split_into_words: bool
    pad_to_multiple_of: int | None
    padding_side: Side | None
    split_special_tokens: bool | None
    verbose: bool


class CallArgs(EncodeArgs, total=False):
    """The arguments of a `Tokenizer` call, with transformers' defaults."""

    return_tensors: Literal["np"] | None
    return_token_type_ids: bool | None
    return_attention_mask: bool | None
    return_overflowing_tokens: bool
    return_special_tokens_mask: bool
    return_offsets_mapping: bool
    return_length: bool
    max_target_length: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The checked arguments of one call."""

    truncation: Truncation | None = None
    target_truncation: Truncation | None = None
    padding: Padding | None = None
    target_padding: Padding | None = None
    add_special_tokens: bool = True
    split_special_tokens: bool = False
    words: bool = False
    tensors: bool = False
    token_type_ids: bool = False
    attention_mask: bool = True
    overflow: bool = False
    special_tokens_mask: bool = False
    offsets: bool = False
    length: bool = False


def read_call(arguments: Mapping[str, Any], options: TokenizerOptions, pad_id: int | None, where: str) -> Call:
    """Check the arguments of a call. Raises DTypeError, or InputError with the closest name for an unknown keyword."""
    if "tokenizer_kwargs" in arguments:
        raise InputError(f"{where}: tokenizer_kwargs is not supported; pass its items as keywords: **tokenizer_kwargs")
    check_keywords(arguments, CallArgs.__annotations__, where)
    optional = {name: value for name, value in arguments.items() if value is not None}
    flags = _Flags(optional)
    truncation, padding = read_limits(arguments, options, pad_id)
    target, target_padding = truncation, padding
    if "max_target_length" in optional:
        changed = {**arguments, "max_length": optional["max_target_length"]}
        changed.setdefault("truncation", "longest_first" if truncation else None)
        target, target_padding = read_limits(changed, options, pad_id)
    names = options.model_input_names
    return Call(
        truncation=truncation,
        target_truncation=target,
        padding=padding,
        target_padding=target_padding,
        add_special_tokens=flags.take("add_special_tokens", True),
        split_special_tokens=flags.take("split_special_tokens", options.split_special_tokens),
        words=flags.take("is_split_into_words", False),
        tensors=read_tensors(arguments.get("return_tensors")),
        token_type_ids=flags.take("return_token_type_ids", "token_type_ids" in names),
        attention_mask=flags.take("return_attention_mask", "attention_mask" in names),
        overflow=flags.take("return_overflowing_tokens", False),
        special_tokens_mask=flags.take("return_special_tokens_mask", False),
        offsets=flags.take("return_offsets_mapping", False),
        length=flags.take("return_length", False),
    )


class _Flags:
    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._arguments = arguments

    def take(self, name: str, default: bool) -> bool:
        return check_flag(name, self._arguments[name]) if name in self._arguments else default


def read_limits(
    arguments: Mapping[str, Any], options: TokenizerOptions, pad_id: int | None
) -> tuple[Truncation | None, Padding | None]:
    """Read the truncation and padding of a call by transformers' rules. Raises DTypeError, InputError."""
    length = _optional(arguments, "max_length", lambda name, value: check_count(name, value, low=1))
    stride = check_count("stride", arguments.get("stride", 0))
    multiple = _optional(arguments, "pad_to_multiple_of", lambda name, value: check_count(name, value, low=1))
    side = _optional(arguments, "padding_side", read_side) or options.padding_side
    asked = arguments.get("padding", False)
    padding = read_padding("padding", asked)
    strategy = read_strategy(arguments.get("truncation"), length, asked)
    verbose = check_flag("verbose", arguments.get("verbose", True))
    if verbose and length is not None and padding == "longest" and strategy == DO_NOT_TRUNCATE:
        _log.warning(
            'max_length is ignored: padding=True pads to the longest text; padding="max_length" pads to max_length'
        )
    limit: int | None = options.model_max_length if length is None else length
    if limit is None:
        strategy, padding = _without_limit(strategy, padding, verbose=verbose)
    cut = None
    if strategy != DO_NOT_TRUNCATE and limit is not None:
        if stride >= limit:
            raise InputError(f"stride: expected less than max_length, {limit}, got {stride}")
        cut = Truncation(max_length=limit, strategy=strategy, stride=stride, side=options.truncation_side)
    if padding == DO_NOT_PAD:
        return cut, None
    if pad_id is None:
        raise InputError(
            "padding: this tokenizer has no pad token; set one with tok.pad_token = tok.eos_token or "
            'tok.add_special_tokens({"pad_token": "[PAD]"}), or pass lists of different lengths to the models'
        )
    if cut is not None and multiple and cut.max_length % multiple:
        raise InputError(
            f"pad_to_multiple_of: with truncation and padding, expected a divisor of max_length, got {multiple} "
            f"and {limit}"
        )
    width = limit if padding == "max_length" else None
    return cut, Padding(pad_id=pad_id, length=width, multiple=multiple or 1, side=side)


def read_strategy(truncation: object, max_length: int | None, padding: object) -> str:
    """Read the truncation strategy of a call. Raises DTypeError, InputError.

    As in transformers, max_length alone means truncation, but with padding="do_not_pad" it does not.
    """
    unpadded = read_padding("padding", padding) == DO_NOT_PAD and not isinstance(padding, (str, Enum))
    if truncation is None and max_length is not None and unpadded:
        truncation = True
    return read_truncation("truncation", truncation)


def _without_limit(strategy: str, padding: str, *, verbose: bool) -> tuple[str, str]:
    """Disable truncation and padding to a length for a tokenizer without a limit, as in transformers."""
    for name, asked in (("truncation", strategy != DO_NOT_TRUNCATE), ("padding", padding == "max_length")):
        if asked and verbose:
            _log.warning("%s is ignored: the tokenizer has no model_max_length; pass max_length", name)
    return DO_NOT_TRUNCATE, DO_NOT_PAD if padding == "max_length" else padding


def read_tensors(value: object) -> bool:
    """Read return_tensors: True for "np". Raises InputError for the tensors of other libraries."""
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return False
    found = check_str("return_tensors", value)
    if found in ("pt", "tf", "jax", "mlx"):
        raise InputError(
            f'return_tensors: expected "np" or None, got {found!r}; fastattn works with lists and NumPy '
            'arrays: use return_tensors="np", then for example torch.from_numpy'
        )
    return check_choice("return_tensors", found, ("np",)) == "np"


def read_side(name: str, value: object) -> Side:
    """Read a side, "left" or "right". Raises DTypeError, InputError."""
    return "left" if check_choice(name, value, SIDES) == "left" else "right"


def _optional(arguments: Mapping[str, Any], name: str, check: Callable[[str, Any], Any]) -> Any:
    value = arguments.get(name)
    return None if value is None else check(name, value)
