"""Assembles a tokenizer: the pipeline of its class, its special and added tokens, and its settings.

The steps have the same order as in transformers 5 (`TokenizersBackend.__init__`), because the ids of added tokens
depend on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from fastattn.checks import quote, shown_names
from fastattn.errors import ConfigError
from fastattn.settings import Settings
from fastattn.tokenizer.draft import Draft, Token
from fastattn.tokenizer.encoder import ends_processor
from fastattn.tokenizer.library import call_library
from fastattn.tokenizer.limits import ROLES
from fastattn.tokenizer.options import Side, TokenizerOptions
from fastattn.tokenizer.parts import MissingTokenError, Parts, TokenizerClass, Tokens

_log = logging.getLogger("fastattn")
_MAX_NAMES = 5


@dataclass(frozen=True, slots=True)
class JsonSettings:
    """The content of tokenizer.json besides its pipeline: default sides, pad token and post-processor."""

    post_processor: Any = None
    padding: Any = None
    truncation: Any = None

    @classmethod
    def of(cls, raw: RawTokenizer) -> JsonSettings:
        """Return the settings of a tokenizer loaded from tokenizer.json."""
        return cls(raw.post_processor, raw.padding, raw.truncation)


def assemble(
    draft: Draft,
    cls: TokenizerClass,
    tokens: dict[str, Token | None],
    found: JsonSettings,
    *,
    raw: RawTokenizer | None = None,
    parts: Parts | None = None,
    from_json: bool,
) -> tuple[RawTokenizer, TokenizerOptions]:
    """Return the library's tokenizer, built from `raw` or from `parts`, and its settings."""
    if raw is None:
        assert parts is not None
        raw = raw_of_parts(parts)
        if parts.first_post is not None:
            raw.post_processor = _made(draft, parts.first_post, raw)
    if found.post_processor is not None:
        raw.post_processor = found.post_processor
    add_bos, add_eos, explicit = _bos_and_eos(draft.settings, from_json=from_json)
    update = explicit or raw.post_processor is None
    if found.padding is not None and "pad" not in tokens:
        tokens["pad"] = found.padding["pad_token"]
    extra = list(draft.extra if draft.extra is not None else draft.additional or ())
    named = _in_order(tokens, draft)
    _add(raw, draft, named, extra)
    plain = _plain_post(tokens, add_bos=add_bos, add_eos=add_eos)
    if update or cls.always_post:
        raw.post_processor = plain(raw)
    if parts is not None and parts.post is not None:
        raw.post_processor = _made(draft, parts.post, raw)
    if cls.post_init:
        _mark_all(raw, named, extra)
        if update:
            raw.post_processor = plain(raw)
    if cls.mark_specials:
        texts = dict.fromkeys(str(token) for token in [*named, *extra])
        call_library(raw.add_tokens, [AddedToken(token, special=True) for token in texts])
    extra += [token for token in cls.extra_names if token not in map(str, extra)]
    options = _options(draft, cls, tokens, extra, found)
    return raw, replace(options, add_bos_token=add_bos, add_eos_token=add_eos)


def _made(draft: Draft, make: Callable[[RawTokenizer], Any], raw: RawTokenizer) -> Any:
    """Make a post-processor. Raises ConfigError, which names the file, if one of its tokens has no id."""
    try:
        return make(raw)
    except MissingTokenError as error:
        raise ConfigError(f"{draft.settings.where}: {draft.class_name}: {error}") from None


def raw_of_parts(parts: Parts) -> RawTokenizer:
    """Return the library's tokenizer without added tokens or post-processor."""
    raw = call_library(RawTokenizer, parts.model)
    if parts.normalizer is not None:
        raw.normalizer = parts.normalizer
    raw.pre_tokenizer = parts.pre_tokenizer
    raw.decoder = parts.decoder
    return raw


def _bos_and_eos(settings: Settings, *, from_json: bool) -> tuple[bool, bool, bool]:
    """Read add_bos_token and add_eos_token, and whether one is given. With tokenizer.json, only overrides count."""
    names = ("add_bos_token", "add_eos_token")
    given = [name for name in names if name in (settings.overrides if from_json else settings.values)]
    add_bos, add_eos = (settings.flag(name, False) and name in given for name in names)
    return add_bos, add_eos, bool(given)


def _in_order(tokens: Tokens, draft: Draft) -> list[Token]:
    """Return the special tokens in transformers' order."""
    by_role = [token for role in ROLES if (token := tokens.get(role)) is not None]
    return [*by_role, *draft.named.values()]


def _add(raw: RawTokenizer, draft: Draft, named: Sequence[Token], extra: Sequence[Token]) -> None:
    """Add the tokens of the files in the order of their ids, then the missing special tokens."""
    listed = [token for _, token in sorted(draft.added.items())]
    known = {token.content for token in raw.get_added_tokens_decoder().values()} | {str(token) for token in listed}
    waiting: list[Token] = list(listed)
    seen: set[tuple[bool, str]] = set()
    for token in [*named, *extra]:
        key = (isinstance(token, str), repr(token))
        if str(token) not in known and key not in seen:
            seen.add(key)
            waiting.append(token)
    texts = {str(token) for token in named}
    ready = []
    for token in waiting:
        added = AddedToken(token, special=True) if isinstance(token, str) else token
        if not added.special and added.content in texts:
            added.special = True
        ready.append(added)
    before = {str(token) for token in named if raw.token_to_id(str(token)) is None}
    if ready:
        call_library(raw.add_tokens, ready)
    _warn_of_ids(raw, draft)
    _warn_of_new_tokens(draft, before - {str(token) for token in listed})


def _warn_of_ids(raw: RawTokenizer, draft: Draft) -> None:
    wrong = [
        f"{quote(token.content, 40)} has id {i} there and {raw.token_to_id(token.content)} in the vocabulary"
        for i, token in sorted(draft.added.items())
        if raw.token_to_id(token.content) != i
    ]
    if wrong:
        _log.warning(
            "%s: ids of added tokens differ from the vocabulary, which is used, as in transformers: %s",
            draft.added_path,
            shown_names(wrong, len(wrong), _MAX_NAMES, separator="; "),
        )


def _warn_of_new_tokens(draft: Draft, new: set[str]) -> None:
    if new:
        _log.warning(
            "%s: special tokens are not in the vocabulary and get new ids at its end, as in transformers: %s",
            draft.folder.directory,
            shown_names((quote(name, 40) for name in sorted(new)), len(new), _MAX_NAMES),
        )


def _mark_all(raw: RawTokenizer, named: Sequence[Token], extra: Sequence[Token]) -> None:
    call_library(
        raw.add_special_tokens,
        [
            AddedToken(token, special=True, normalized=False) if isinstance(token, str) else token
            for token in [*named, *extra]
        ],
    )


def _plain_post(tokens: Tokens, *, add_bos: bool, add_eos: bool) -> Any:
    """Return the default post-processor: the texts of a pair have types 0 and 1, with `bos` and `eos` if requested."""
    wanted = {"bos": add_bos, "eos": add_eos}
    ends = [str(tokens[role]) if add and tokens.get(role) is not None else None for role, add in wanted.items()]

    def make(raw: RawTokenizer) -> Any:
        return call_library(
            ends_processor, *(None if token is None else (token, raw.token_to_id(token)) for token in ends)
        )

    return make


def _options(
    draft: Draft, cls: TokenizerClass, tokens: Tokens, extra: Sequence[Token], found: JsonSettings
) -> TokenizerOptions:
    settings = draft.settings
    sides = ("left", "right")
    padding_side = found.padding["direction"] if found.padding else cls.padding_side
    truncation_side = found.truncation["direction"] if found.truncation else "right"
    names = settings.texts("model_input_names") if "model_input_names" in settings else tuple(cls.input_names)
    if settings.flag("return_token_type_ids", False) and cls.name == "CodeGenTokenizer":
        names = (*names, "token_type_ids")
    return TokenizerOptions(
        class_name=draft.class_name or None,
        special_tokens={role: str(tokens[role]) for role in ROLES if tokens.get(role) is not None},
        named_special_tokens={name.removesuffix("_token"): str(token) for name, token in draft.named.items()},
        extra_special_tokens=tuple(dict.fromkeys(str(token) for token in extra)),
        model_max_length=_max_length(settings),
        model_input_names=names,
        padding_side=_side(settings.choice("padding_side", sides, padding_side)),
        truncation_side=_side(settings.choice("truncation_side", sides, truncation_side)),
        split_special_tokens=settings.flag("split_special_tokens", False),
        clean_up_tokenization_spaces=settings.flag("clean_up_tokenization_spaces", False),
        clean_up_spaces_of_bpe=settings.flag(
            "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False
        ),
    )


def _side(name: str) -> Side:
    return "left" if name == "left" else "right"


def _max_length(settings: Settings) -> int | None:
    """Read `model_max_length`, or its old name. transformers writes 1e30 for no limit."""
    key = "model_max_length" if "model_max_length" in settings else "max_len"
    settings.ignore("model_max_length", "max_len")
    value = settings.raw(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1 or value != value // 1:
        raise settings.error(key, "a positive integer")
    return int(value) if value < 2**31 else None
