"""Special tokens by role as attributes of a tokenizer: `pad_token`, `pad_token_id` and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from fastattn.checks import check_count, closest, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer.limits import MAX_TOKEN_CHARS, ROLES
from fastattn.tokenizer.options import TokenizerOptions
from fastattn.tokenizer.texts import check_text

if TYPE_CHECKING:
    from tokenizers import AddedToken

    from fastattn.tokenizer.base import TokenizerBase

EXTRA = "extra_special_tokens"


class RoleToken:
    """An attribute such as `pad_token`: a token of the vocabulary, or None."""

    def __init__(self, role: str) -> None:
        self.role = role

    @overload
    def __get__(self, tokenizer: None, owner: type[Any]) -> RoleToken: ...
    @overload
    def __get__(self, tokenizer: TokenizerBase, owner: type[Any]) -> str | None: ...
    def __get__(self, tokenizer: TokenizerBase | None, owner: type[Any]) -> Any:
        return self if tokenizer is None else tokenizer._state.tokens.get(self.role)

    def __set__(self, tokenizer: TokenizerBase, value: str | AddedToken | None) -> None:
        tokenizer._set_role(self.role, token_text(f"{self.role}_token", value) if value is not None else None)


class RoleId:
    """An attribute such as `pad_token_id`: the id of the token, or None."""

    def __init__(self, role: str) -> None:
        self.role = role

    @overload
    def __get__(self, tokenizer: None, owner: type[Any]) -> RoleId: ...
    @overload
    def __get__(self, tokenizer: TokenizerBase, owner: type[Any]) -> int | None: ...
    def __get__(self, tokenizer: TokenizerBase | None, owner: type[Any]) -> Any:
        return self if tokenizer is None else tokenizer._state.ids.get(self.role)

    def __set__(self, tokenizer: TokenizerBase, value: int | None) -> None:
        name = f"{self.role}_token_id"
        token = None
        if value is not None:
            token = tokenizer.raw.id_to_token(check_count(name, value))
            if token is None:
                raise InputError(f"{name}: expected an id of the vocabulary, got {quote(int(value))}")
        tokenizer._set_role(self.role, token)


def token_text(name: str, value: object) -> str:
    """Return the text of a token, a str or the library's AddedToken. Raises DTypeError, InputError."""
    content = getattr(value, "content", value)
    if not isinstance(content, str):
        raise DTypeError(f"{name}: expected str or AddedToken, got {type(value).__name__}")
    if not 0 < len(content) <= MAX_TOKEN_CHARS:
        raise InputError(f"{name}: expected a token of 1 to {MAX_TOKEN_CHARS} characters, got {len(content)}")
    return check_text(content, name)


def to_added_token(name: str, value: object, *, special: bool) -> AddedToken:
    """Return the library's AddedToken. As in transformers, a str is matched in normalized text unless it is special."""
    from tokenizers import AddedToken

    content = token_text(name, value)
    if isinstance(value, AddedToken):
        return value
    return AddedToken(content, normalized=not special, special=special)


def read_special_tokens(tokens: object) -> dict[str, Any]:
    """Read the argument of `add_special_tokens`: keys such as "pad_token", and "extra_special_tokens"."""
    if not isinstance(tokens, Mapping):
        raise DTypeError(f"special_tokens_dict: expected a dict, got {type(tokens).__name__}")
    found = dict(tokens)
    if "additional_special_tokens" in found and not found.get(EXTRA):
        found[EXTRA] = found.pop("additional_special_tokens")
    known = [*(f"{role}_token" for role in ROLES), EXTRA]
    for name, value in found.items():
        if name not in known:
            near = closest(name, known) if isinstance(name, str) else ""
            raise InputError(f"special_tokens_dict: expected keys such as 'pad_token', got {quote(name)}{near}")
        if name == EXTRA and not isinstance(value, (list, tuple)):
            raise DTypeError(f"{EXTRA}: expected a list of tokens, got {type(value).__name__}")
    return found


def with_role(options: TokenizerOptions, role: str, token: str | None) -> TokenizerOptions:
    """Return options in which a role has another token, or none."""
    tokens = {name: text for name, text in options.special_tokens.items() if name != role}
    if token is not None:
        tokens[role] = token
    return replace(options, special_tokens=tokens)
