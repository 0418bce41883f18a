"""The vocabulary, special tokens and settings of a tokenizer: everything except encoding and decoding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count, check_flag, check_str, closest, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer.call import read_side
from fastattn.tokenizer.encoder import Encoder
from fastattn.tokenizer.ids import is_sequence, read_ids, read_sequences
from fastattn.tokenizer.limits import LARGEST_LIMIT, NO_LIMIT, ROLES
from fastattn.tokenizer.options import Side, TokenizerOptions
from fastattn.tokenizer.special_tokens import (
    EXTRA,
    RoleId,
    RoleToken,
    read_special_tokens,
    to_added_token,
    token_text,
    with_role,
)
from fastattn.tokenizer.texts import check_text

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as RawTokenizer

_ELSEWHERE = {
    "encode_plus": "call the tokenizer: tok(text)",
    "batch_encode_plus": "call the tokenizer: tok(texts)",
    "additional_special_tokens": "use extra_special_tokens",
}


@dataclass(frozen=True, slots=True)
class State:
    """The state of a tokenizer. It is replaced as a whole, so other threads see either the old or the new one."""

    encoder: Encoder
    options: TokenizerOptions
    tokens: Mapping[str, str] = field(init=False)  # by role; only tokens in the vocabulary
    ids: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        find = self.encoder.raw.token_to_id
        ids = {role: find(token) for role, token in self.options.special_tokens.items()}
        known = {role: i for role, i in ids.items() if i is not None}
        object.__setattr__(self, "ids", known)
        object.__setattr__(self, "tokens", {role: self.options.special_tokens[role] for role in known})


_FROM_FILES = "; it is a setting of the tokenizer's files: pass it to AutoTokenizer.from_pretrained"
# What to do instead of setting an attribute of transformers' tokenizers.
_INSTEAD = {
    "additional_special_tokens": "; set extra_special_tokens",
    "add_prefix_space": _FROM_FILES,
    "do_lower_case": _FROM_FILES,
    "strip_accents": _FROM_FILES,
    "tokenize_chinese_chars": _FROM_FILES,
}


class TokenizerBase:
    """Base class of `Tokenizer`."""

    _state: State
    bos_token, bos_token_id = RoleToken("bos"), RoleId("bos")
    eos_token, eos_token_id = RoleToken("eos"), RoleId("eos")
    unk_token, unk_token_id = RoleToken("unk"), RoleId("unk")
    sep_token, sep_token_id = RoleToken("sep"), RoleId("sep")
    pad_token, pad_token_id = RoleToken("pad"), RoleId("pad")
    cls_token, cls_token_id = RoleToken("cls"), RoleId("cls")
    mask_token, mask_token_id = RoleToken("mask"), RoleId("mask")

    if not TYPE_CHECKING:  # type checkers see the real attributes

        def __setattr__(self, name: str, value: Any) -> None:
            if name != "_state":
                settable = [key for key in dir(type(self)) if _is_settable(getattr(type(self), key, None))]
                if name not in settable:
                    hint = _INSTEAD.get(name) or closest(name, settable)
                    raise AttributeError(f"Tokenizer: {quote(name)} cannot be set{hint}")
            object.__setattr__(self, name, value)

        def __getattr__(self, name: str) -> Any:
            if not name.startswith("_"):
                base = name.removesuffix("_id")
                named = self._state.options.named_special_tokens
                token = named.get(base, named.get(base.removesuffix("_token")) if base.endswith("_token") else None)
                if token is not None:
                    return token if base == name else self.convert_tokens_to_ids(token)
            hint = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else closest(name, dir(type(self)))
            raise AttributeError(f"Tokenizer has no attribute {quote(name)}{hint}")

    # -- settings -----------------------------------------------------------------------------------------------

    @property
    def raw(self) -> RawTokenizer:
        """The tokenizer of the `tokenizers` library. Do not change it; methods such as `add_tokens` replace it."""
        return self._state.encoder.raw

    backend_tokenizer = raw

    @property
    def options(self) -> TokenizerOptions:
        """The settings that are not in the library's tokenizer."""
        return self._state.options

    @property
    def model_max_length(self) -> int:
        """The maximum length of a text in tokens, if truncation is on without max_length; int(1e30) means no limit."""
        limit = self._state.options.model_max_length
        return NO_LIMIT if limit is None else limit

    @model_max_length.setter
    def model_max_length(self, value: int | None) -> None:
        limit = None
        if value is not None:
            limit = check_count("model_max_length", value, low=1, high=NO_LIMIT)
        self._change(model_max_length=limit if limit is None or limit <= LARGEST_LIMIT else None)

    @property
    def padding_side(self) -> Side:
        """The side that is padded: "left" or "right"."""
        return self._state.options.padding_side

    @padding_side.setter
    def padding_side(self, value: Side) -> None:
        self._change(padding_side=read_side("padding_side", value))

    @property
    def truncation_side(self) -> Side:
        """The side that truncation cuts: "left" or "right"."""
        return self._state.options.truncation_side

    @truncation_side.setter
    def truncation_side(self, value: Side) -> None:
        self._change(truncation_side=read_side("truncation_side", value))

    @property
    def model_input_names(self) -> list[str]:
        """The columns that the model accepts."""
        return list(self._state.options.model_input_names)

    @model_input_names.setter
    def model_input_names(self, value: Sequence[str]) -> None:
        if not isinstance(value, (list, tuple)):
            raise DTypeError(f"model_input_names: expected a list of str, got {type(value).__name__}")
        self._change(model_input_names=tuple(check_str("model_input_names", name) for name in value))

    @property
    def clean_up_tokenization_spaces(self) -> bool:
        """Whether decoding removes spaces before punctuation by default."""
        return self._state.options.clean_up_tokenization_spaces

    @clean_up_tokenization_spaces.setter
    def clean_up_tokenization_spaces(self, value: bool) -> None:
        self._change(clean_up_tokenization_spaces=check_flag("clean_up_tokenization_spaces", value))

    @property
    def split_special_tokens(self) -> bool:
        """Whether special tokens in a text are encoded as text."""
        return self._state.options.split_special_tokens

    @split_special_tokens.setter
    def split_special_tokens(self, value: bool) -> None:
        self._change(split_special_tokens=check_flag("split_special_tokens", value))

    @property
    def add_bos_token(self) -> bool:
        """Whether texts begin with bos_token.

        As in transformers, after setting it, bos_token and eos_token are the only special tokens that encoding adds.
        """
        return self._state.options.add_bos_token

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._set_ends(add_bos_token=check_flag("add_bos_token", value))

    @property
    def add_eos_token(self) -> bool:
        """Whether texts end with eos_token.

        As in transformers, after setting it, bos_token and eos_token are the only special tokens that encoding adds.
        """
        return self._state.options.add_eos_token

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._set_ends(add_eos_token=check_flag("add_eos_token", value))

    @property
    def name_or_path(self) -> str:
        """The folder or hub id that the tokenizer was loaded from."""
        return self._state.options.name_or_path

    @name_or_path.setter
    def name_or_path(self, value: str) -> None:
        self._change(name_or_path=check_str("name_or_path", value))

    @property
    def pad_token_type_id(self) -> int:
        """The token type of padding."""
        return 0

    @property
    def is_fast(self) -> bool:
        """True, because the tokenizer uses the `tokenizers` library."""
        return True

    # -- vocabulary ---------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """The number of tokens without added ones, as in transformers; `len(tokenizer)` counts all."""
        return int(self.raw.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self.raw.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    @property
    def id_limit(self) -> int:
        """One more than the highest id."""
        return self._state.encoder.id_limit

    def get_vocab(self) -> dict[str, int]:
        """Return the map from token to id, with the added tokens."""
        return dict(self.raw.get_vocab(with_added_tokens=True))

    @property
    def vocab(self) -> dict[str, int]:
        """The map from token to id, with the added tokens."""
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """The map from id to added token."""
        return dict(self._state.encoder.added_tokens)

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The map from added token to id."""
        return {token.content: i for i, token in self._state.encoder.added_tokens.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """Return the map from added token to id."""
        return self.added_tokens_encoder

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str | None: ...
    @overload
    def convert_ids_to_tokens(
        self, ids: Sequence[int] | NDArray[np.integer[Any]], skip_special_tokens: bool = False
    ) -> list[str | None]: ...
    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """Convert an id to a token, or several ids to tokens. As in transformers, an id without a token gives None.

        Tokens are as in the vocabulary: byte-level ones have a letter for each byte ("Ġ" for a space). Raises
        DTypeError, InputError for a negative id.
        """
        skip = check_flag("skip_special_tokens", skip_special_tokens)
        rows, batched = read_sequences("ids", ids)
        if batched:
            raise InputError("ids: expected one sequence of ids, got several")
        if not is_sequence(ids):
            return self.raw.id_to_token(rows[0][0])
        omitted = set(self.all_special_ids) if skip else set()
        return [self.raw.id_to_token(i) for i in rows[0] if i not in omitted]

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str] | tuple[str, ...]) -> list[int]: ...
    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Convert a token to an id, or several tokens to ids.

        As in transformers, a token outside the vocabulary gives the id of unk_token, or None without an unk_token.
        Raises DTypeError, InputError.
        """
        state = self._state
        unknown = state.ids.get("unk")
        if isinstance(tokens, str):
            found = state.encoder.raw.token_to_id(check_text(tokens, "tokens"))
            return unknown if found is None else found
        if not isinstance(tokens, Iterable) or isinstance(tokens, (bytes, Mapping)):
            raise DTypeError(f"tokens: expected str or a list of str, got {type(tokens).__name__}")
        ids = [state.encoder.raw.token_to_id(check_text(token, f"tokens[{i}]")) for i, token in enumerate(tokens)]
        return [unknown if i is None else i for i in ids]

    # -- special tokens -----------------------------------------------------------------------------------------

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens by role: "pad_token" and so on."""
        state = self._state
        found = {f"{role}_token": state.tokens[role] for role in ROLES if role in state.tokens}
        named = state.options.named_special_tokens
        return found | {name if name.endswith("_token") else f"{name}_token": token for name, token in named.items()}

    @property
    def extra_special_tokens(self) -> list[str]:
        """The special tokens without a role."""
        return list(self._state.options.extra_special_tokens)

    @extra_special_tokens.setter
    def extra_special_tokens(self, value: Sequence[str | AddedToken] | None) -> None:
        if value is not None and not isinstance(value, (list, tuple)):
            raise DTypeError(f"{EXTRA}: expected a list of tokens, got {type(value).__name__}")
        tokens = [self._known_token(f"{EXTRA}[{i}]", token_text(EXTRA, t)) for i, t in enumerate(value or ())]
        self._change(extra_special_tokens=tuple(tokens))

    @property
    def extra_special_tokens_ids(self) -> list[int]:
        """The ids of the special tokens without a role."""
        return self.convert_tokens_to_ids(self.extra_special_tokens)

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens, each once: first those with a role, then the others."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of `all_special_tokens`."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    @property
    def skipped_ids(self) -> frozenset[int]:
        """The ids that decoding with skip_special_tokens=True omits: the special added tokens."""
        return self._state.encoder.special_ids

    def get_special_tokens_mask(
        self, token_ids_0: Any, token_ids_1: Any = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """Return 1 for each id in `all_special_ids`, 0 for the others.

        Raises InputError unless already_has_special_tokens=True, and DTypeError.
        """
        if not check_flag("already_has_special_tokens", already_has_special_tokens) or token_ids_1 is not None:
            raise InputError(
                "get_special_tokens_mask: expected one sequence with already_has_special_tokens=True; "
                "tok(text, return_special_tokens_mask=True) gives the mask of a text"
            )
        special = set(self.all_special_ids)
        return [int(i in special) for i in read_ids("token_ids_0", token_ids_0)]

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Assign roles to tokens, as in {"pad_token": "[PAD]"}, and add tokens that are not in the vocabulary.

        "extra_special_tokens" is a list of tokens without a role. Returns the number of new tokens. A model has no
        embeddings for new ids and refuses them in its input. Raises DTypeError, InputError.
        """
        replaces = check_flag("replace_extra_special_tokens", replace_extra_special_tokens)
        given = read_special_tokens(special_tokens_dict)
        options, tokens = self._state.options, []
        for name, value in given.items():
            if name == EXTRA:
                new = [to_added_token(f"{EXTRA}[{i}]", token, special=True) for i, token in enumerate(value)]
                before = () if replaces and new else options.extra_special_tokens
                new = [token for token in new if token.content not in before]
                tokens += new
                options = replace(options, extra_special_tokens=(*before, *(token.content for token in new)))
            else:
                tokens.append(to_added_token(name, value, special=True))
                options = with_role(options, name.removesuffix("_token"), tokens[-1].content)
        encoder, count = self._state.encoder.with_tokens(tokens, special=True) if tokens else (self._state.encoder, 0)
        self._state = State(encoder, options)
        return count

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add tokens (str or AddedToken, or a list of them) at the end of the vocabulary.

        Returns the number of new tokens. A model has no embeddings for new ids and refuses them in its input. Raises
        DTypeError, InputError.
        """
        special = check_flag("special_tokens", special_tokens)
        listed = list(new_tokens) if isinstance(new_tokens, (list, tuple)) else [new_tokens]
        tokens = [to_added_token(f"new_tokens[{i}]", token, special=special) for i, token in enumerate(listed)]
        if not tokens:
            return 0
        encoder, count = self._state.encoder.with_tokens(tokens, special=special)
        self._state = State(encoder, self._state.options)
        return count

    def _set_role(self, role: str, token: str | None) -> None:
        if token is not None:
            self._known_token(f"{role}_token", token)
        self._state = State(self._state.encoder, with_role(self._state.options, role, token))

    def _set_ends(self, **flags: Any) -> None:
        options, ends = replace(self._state.options, **flags), {}
        for role, wanted in (("bos", options.add_bos_token), ("eos", options.add_eos_token)):
            if wanted and role not in self._state.ids:
                raise InputError(f"add_{role}_token: this tokenizer has no {role}_token; set it first")
            if wanted:
                ends[role] = (self._state.tokens[role], self._state.ids[role])
        self._state = State(self._state.encoder.with_ends(**ends), options)

    def _known_token(self, name: str, token: str) -> str:
        if self.raw.token_to_id(token) is None:
            key = EXTRA if name.startswith(EXTRA) else name
            value = [token] if key == EXTRA else token
            raise InputError(
                f"{name}: expected a token in the vocabulary, got {quote(token)}; "
                f"add it with tok.add_special_tokens({{{key!r}: {quote(value)}}})"
            )
        return token

    def _change(self, **changes: Any) -> None:
        self._state = State(self._state.encoder, replace(self._state.options, **changes))


def _is_settable(attribute: object) -> bool:
    if isinstance(attribute, property):
        return attribute.fset is not None
    return isinstance(attribute, (RoleToken, RoleId))
