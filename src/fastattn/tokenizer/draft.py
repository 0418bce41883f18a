"""Reads the small files of a tokenizer: tokenizer_config.json, special_tokens_map.json and added_tokens.json.

They are merged as in transformers 5. If tokenizer_config.json has `added_tokens_decoder`, special_tokens_map.json and
added_tokens.json are not read. Otherwise they override tokenizer_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tokenizers import AddedToken

from fastattn.checks import is_text, quote
from fastattn.errors import ConfigError
from fastattn.settings import Settings
from fastattn.tokenizer.folder import Folder
from fastattn.tokenizer.limits import ADDED_TOKEN_FLAGS, MAX_TOKEN_CHARS, ROLES
from fastattn.tokenizer.vocabulary import MAX_ID

Token: TypeAlias = "str | AddedToken"


@dataclass(slots=True)
class Draft:
    """The settings of a folder, before a tokenizer class adds its defaults.

    roles: "bos" and so on to token, if a file names the role; None means "no such token". named: tokens with roles
    that only this model has ("image_token"). extra: `extra_special_tokens`, None if no file has it. additional:
    `additional_special_tokens`, if it is separate from `extra`. added: id to token.
    """

    folder: Folder
    class_name: str
    settings: Settings
    roles: dict[str, Token | None] = field(default_factory=dict)
    named: dict[str, Token] = field(default_factory=dict)
    extra: list[Token] | None = None
    additional: list[Token] | None = None
    added: dict[int, AddedToken] = field(default_factory=dict)
    added_path: str = ""


def read_draft(folder: Folder, class_name: str, settings: Settings, *, from_json: bool) -> Draft:
    """Read the small files of a folder. Raises ConfigError, ModelFormatError.

    from_json: whether tokenizer.json is used.
    """
    draft = Draft(folder, class_name, settings, added_path=settings.where)
    for role in ROLES:
        if f"{role}_token" in settings.values:
            draft.roles[role] = _token(settings, f"{role}_token")
    _read_extra(draft)
    for key, value in settings.values.items():
        if key.endswith("_token") and key[: -len("_token")] not in ROLES and _looks_like_a_token(value):
            draft.named.setdefault(key, _present(_token(settings, key)))
    decoder = settings.table("added_tokens_decoder")
    if "added_tokens_decoder" in settings.values:
        draft.added = _decoder_tokens(settings, decoder)
    else:
        _read_special_tokens_map(draft)
        _read_added_tokens_json(draft)
        if from_json:
            _read_tokens_of_tokenizer_json(draft)
    known = {token.content: token for token in draft.added.values()}
    for role, token in draft.roles.items():
        if token is not None:
            draft.roles[role] = known.get(str(token), token)
    return draft


def _read_extra(draft: Draft) -> None:
    """Read `extra_special_tokens` (a list, or an object of named tokens) and its older name."""
    settings = draft.settings
    extra, additional = settings.raw("extra_special_tokens"), settings.raw("additional_special_tokens")
    if additional is not None and not extra:
        draft.extra = _tokens(settings, "additional_special_tokens")
    elif isinstance(extra, dict):
        draft.named.update(_named(settings))
    elif "extra_special_tokens" in settings.values:
        draft.extra = _tokens(settings, "extra_special_tokens")
    if additional is not None and extra:
        draft.additional = _tokens(settings, "additional_special_tokens")


def _read_special_tokens_map(draft: Draft) -> None:
    overrides = {key for key in draft.settings.overrides if draft.settings.values[key]}
    entries = draft.folder.json("special_tokens_map.json")
    values = {key: value for key, value in entries.items() if key not in overrides}
    settings = Settings(draft.folder.path("special_tokens_map.json"), values)
    for key in settings.values:
        if key == "extra_special_tokens":
            if isinstance(settings.raw(key), dict):
                draft.named.update(_named(settings))
                draft.extra = None
            else:
                found = [token for token in _tokens(settings, key, special=True) if token not in (draft.extra or [])]
                draft.extra = [*(draft.extra or []), *found]
        elif key == "additional_special_tokens":
            draft.additional = _tokens(settings, key, special=True)
        elif key.endswith("_token"):
            role, token = key[: -len("_token")], _token(settings, key, special=True)
            if role in ROLES:
                draft.roles[role] = token
            elif token is not None:
                draft.named[key] = token
    settings.finish()


def _read_added_tokens_json(draft: Draft) -> None:
    """Read added_tokens.json: token to id. A token that is not special is matched in normalized text.

    As in transformers, tokens that are objects in tokenizer_config.json do not count as special here.
    """
    path = draft.folder.path("added_tokens.json")
    entries = draft.folder.json("added_tokens.json")
    special = _written_as_text(draft)
    for content, i in entries.items():
        _check_content(str(path), content, content)
        if type(i) is not int or not 0 <= i <= MAX_ID:
            raise ConfigError(f"{path}: {quote(content)}: expected an id from 0 to {MAX_ID}, got {quote(i)}")
        flag = content in special
        draft.added[i] = AddedToken(content, normalized=not flag, special=flag)
    if entries:
        draft.added_path = str(path)


def _written_as_text(draft: Draft) -> set[str]:
    """Return the special tokens that are strings in tokenizer_config.json, and those of special_tokens_map.json."""
    given, later = draft.settings.values, draft.folder.json("special_tokens_map.json")
    objects = set()
    for key in ("extra_special_tokens", "additional_special_tokens"):
        objects |= {item["content"] for item in _items(given.get(key)) if isinstance(item, dict)}
    listed = {item["content"] if isinstance(item, dict) else item for item in _items(later.get("extra_special_tokens"))}
    found = {str(token) for token in draft.extra or ()} - objects | listed
    for role, token in draft.roles.items():
        key = f"{role}_token"
        if token and (key in later or not isinstance(given.get(key), dict)):
            found.add(str(token))
    return found


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _read_tokens_of_tokenizer_json(draft: Draft) -> None:
    path = str(draft.folder.path("tokenizer.json"))
    for entry in draft.folder.json("tokenizer.json").get("added_tokens") or ():
        fields = {key: value for key, value in entry.items() if key != "id"}
        draft.added[entry["id"]] = _added_token(path, "added_tokens", fields)
        draft.added_path = path


def _decoder_tokens(settings: Settings, decoder: Mapping[str, Any]) -> dict[int, AddedToken]:
    where = "added_tokens_decoder"
    for key in decoder:
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= MAX_ID):
            raise ConfigError(f"{settings.where}: {where}: expected ids from 0 to {MAX_ID} as keys, got {quote(key)}")
    entries = sorted((int(key), entry) for key, entry in decoder.items())
    return {i: _added_token(settings.where, f"{where}[{i}]", entry) for i, entry in entries}


def _named(settings: Settings) -> dict[str, Token]:
    key = "extra_special_tokens"
    entries = settings.table(key)
    return {
        name: _present(_read_token(settings.where, f"{key}[{quote(name)}]", value)) for name, value in entries.items()
    }


def _tokens(settings: Settings, key: str, *, special: bool = False) -> list[Token]:
    entries = settings.raw(key)
    if entries is None:
        return []
    if not isinstance(entries, list):
        raise settings.error(key, "a list of tokens")
    return [
        _present(_read_token(settings.where, f"{key}[{i}]", value, special=special)) for i, value in enumerate(entries)
    ]


def _token(settings: Settings, key: str, *, special: bool = False) -> Token | None:
    return _read_token(settings.where, key, settings.raw(key), special=special)


def _read_token(path: str, key: str, value: object, *, special: bool = False) -> Token | None:
    """Read a token that is a string or an object with flags; null is None."""
    if value is None:
        return None
    if isinstance(value, str):
        return _check_content(path, key, value)
    fields = dict(value) if isinstance(value, dict) else value
    if isinstance(fields, dict):
        fields.pop("__type", None)
        if special:
            fields["special"] = True
    return _added_token(path, key, fields)


def _added_token(path: str, key: str, entry: object) -> AddedToken:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise ConfigError(f'{path}: {key}: expected an object with "content", got {quote(entry)}')
    flags = {name: value for name, value in entry.items() if name not in ("content", "__type")}
    for name, value in flags.items():
        if name not in ADDED_TOKEN_FLAGS:
            raise ConfigError(f"{path}: {key}: unknown flag {quote(name)} of a token")
        if not isinstance(value, bool):
            raise ConfigError(f"{path}: {key}: {name}: expected true or false, got {quote(value)}")
    return AddedToken(_check_content(path, key, entry["content"]), **flags)


def _check_content(path: str, key: str, content: str) -> str:
    if len(content) > MAX_TOKEN_CHARS:
        raise ConfigError(
            f"{path}: {quote(key)}: expected a token of at most {MAX_TOKEN_CHARS} characters, got {len(content)}"
        )
    if not is_text(content):
        raise ConfigError(f"{path}: {quote(key)}: expected valid Unicode, got a lone surrogate in {quote(content)}")
    return content


def with_flags(token: AddedToken, **changes: bool) -> AddedToken:
    """Return a token with the same text and other flags."""
    return AddedToken(token.content, **{flag: getattr(token, flag) for flag in ADDED_TOKEN_FLAGS} | changes)


def _present(token: Token | None) -> Token:
    return "" if token is None else token


def _looks_like_a_token(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "content" in value)
