"""Keywords of `AutoTokenizer.from_pretrained` that override settings of tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from fastattn.checks import check_count, check_flag, check_keywords, check_str
from fastattn.errors import DTypeError
from fastattn.tokenizer.call import read_side
from fastattn.tokenizer.limits import ADDED_TOKEN_FLAGS, NO_LIMIT, ROLES
from fastattn.tokenizer.options import Side
from fastattn.tokenizer.special_tokens import EXTRA, token_text

if TYPE_CHECKING:
    from tokenizers import AddedToken

_FLAGS = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "clean_up_tokenization_spaces",
    "do_lower_case",
    "keep_accents",
    "split_special_tokens",
    "strip_accents",
    "tokenize_chinese_chars",
    "trim_offsets",
)


class TokenizerSettings(TypedDict, total=False):
    """The settings of a tokenizer, as in tokenizer_config.json. Settings that a tokenizer does not use are refused."""

    bos_token: str | AddedToken | None
    eos_token: str | AddedToken | None
    unk_token: str | AddedToken | None
    sep_token: str | AddedToken | None
    pad_token: str | AddedToken | None
    cls_token: str | AddedToken | None
    mask_token: str | AddedToken | None
    extra_special_tokens: Sequence[str | AddedToken] | Mapping[str, str | AddedToken]
    additional_special_tokens: Sequence[str | AddedToken]
    model_max_length: int | None
    model_input_names: Sequence[str]
    padding_side: Side
    truncation_side: Side
    add_bos_token: bool
    add_eos_token: bool
    add_prefix_space: bool
    clean_up_tokenization_spaces: bool
    do_lower_case: bool
    keep_accents: bool
    split_special_tokens: bool
    strip_accents: bool | None
    tokenize_chinese_chars: bool
    trim_offsets: bool


def read_overrides(settings: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Convert the settings to values of tokenizer_config.json.

    known: other keywords of the caller, as suggestions. A keyword such as image_token="<image>" is a special token.
    Raises DTypeError, or InputError with the closest name for an unknown keyword.
    """
    names = [*TokenizerSettings.__annotations__, *known]
    tokens = {name for name in settings if name.endswith("_token") and isinstance(settings[name], str)}
    check_keywords([name for name in settings if name not in tokens], names, "AutoTokenizer.from_pretrained")
    return {name: _read(name, value) for name, value in settings.items()}


def _read(name: str, value: Any) -> Any:
    if name in _FLAGS:
        return None if value is None and name == "strip_accents" else check_flag(name, value)
    if name in ("padding_side", "truncation_side"):
        return read_side(name, value)
    if name == "model_max_length":
        return None if value is None else check_count(name, value, low=1, high=NO_LIMIT)
    if name == "model_input_names":
        return [check_str(f"{name}[{i}]", item) for i, item in enumerate(_list(name, value))]
    if name == EXTRA and isinstance(value, Mapping):
        return {check_str(EXTRA, key): _token(f"{EXTRA}[{key!r:.80}]", token) for key, token in value.items()}
    if name in (EXTRA, "additional_special_tokens"):
        return [_token(f"{name}[{i}]", token) for i, token in enumerate(_list(name, value))]
    role = name.removesuffix("_token")
    return None if value is None and role in ROLES else _token(name, value)


def _list(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise DTypeError(f"{name}: expected a list, got {type(value).__name__}")
    return value


def _token(name: str, value: Any) -> str | dict[str, Any]:
    content = token_text(name, value)
    if isinstance(value, str):
        return content
    return {"content": content, **{flag: bool(getattr(value, flag)) for flag in ADDED_TOKEN_FLAGS}}
