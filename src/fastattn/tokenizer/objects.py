"""Converts tokenizers of other libraries, for `Tokenizer.from_object`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer.call import read_side
from fastattn.tokenizer.encoder import full_copy
from fastattn.tokenizer.library import library_errors
from fastattn.tokenizer.limits import LARGEST_LIMIT, ROLES
from fastattn.tokenizer.options import TokenizerOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer


def convert_object(tokenizer: object, name: str) -> tuple[RawTokenizer, TokenizerOptions]:
    """Return a copy of the library's tokenizer in an object, and its settings.

    The object is a fast tokenizer of transformers, a `tokenizers.Tokenizer` or one of `tokenizers.implementations`.
    Raises DTypeError for anything else.
    """
    from tokenizers import Tokenizer as Raw

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(backend, Raw):
        return _copy(backend, name), _options_of_transformers(tokenizer)
    raw = tokenizer if isinstance(tokenizer, Raw) else getattr(tokenizer, "_tokenizer", None)
    if isinstance(raw, Raw):
        return _copy(raw, name), _options_of_library(raw)
    kind = type(tokenizer).__name__
    if hasattr(tokenizer, "convert_tokens_to_ids"):
        raise DTypeError(
            f"{name}: expected a fast tokenizer, got {kind}, which is written in Python; save a tokenizer.json with "
            "transformers (AutoTokenizer, then save_pretrained) and pass the folder"
        )
    raise DTypeError(
        f"{name}: expected a folder, a hub id, a Tokenizer, or a tokenizer of transformers or tokenizers, got {kind}"
    )


def _copy(raw: RawTokenizer, name: str) -> RawTokenizer:
    with library_errors(lambda reason: InputError(f"{name}: the tokenizer cannot be copied: {reason}")):
        copy = full_copy(raw)
        if "decode" in getattr(raw, "__dict__", {}):  # CLIPTokenizer replaces the method
            from fastattn.tokenizer.bytepair import clip_decoder

            copy.decoder = clip_decoder(str(getattr(raw.model, "end_of_word_suffix", None) or "</w>"))
        return copy


def _options_of_transformers(tokenizer: Any) -> TokenizerOptions:
    known = {f"{role}_token": role for role in ROLES}
    tokens = {str(key): str(token) for key, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    limit = tokenizer.model_max_length
    extra = getattr(tokenizer, "extra_special_tokens", None) or getattr(tokenizer, "additional_special_tokens", None)
    return TokenizerOptions(
        class_name=type(tokenizer).__name__.removesuffix("Fast"),
        special_tokens={known[key]: token for key, token in tokens.items() if key in known},
        named_special_tokens={key: token for key, token in tokens.items() if key not in known},
        extra_special_tokens=tuple(str(token) for token in extra or ()),
        model_max_length=int(limit) if limit is not None and limit <= LARGEST_LIMIT else None,
        model_input_names=tuple(tokenizer.model_input_names),
        padding_side=read_side("tokenizer.padding_side", tokenizer.padding_side),
        truncation_side=read_side("tokenizer.truncation_side", tokenizer.truncation_side),
        split_special_tokens=bool(getattr(tokenizer, "split_special_tokens", False)),
        clean_up_tokenization_spaces=bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
        clean_up_spaces_of_bpe=bool(
            getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
        ),
        name_or_path=str(getattr(tokenizer, "name_or_path", "") or ""),
    )


def _options_of_library(raw: RawTokenizer) -> TokenizerOptions:
    """Return the settings of a tokenizer of the library: its pad token, sides and token types."""
    padding, truncation = raw.padding or {}, raw.truncation or {}
    names = ["input_ids", "attention_mask"]
    if _has_token_types(raw):
        names.insert(1, "token_type_ids")
    pad, unknown = padding.get("pad_token"), getattr(raw.model, "unk_token", None)
    tokens = {"pad": pad, "unk": unknown}
    return TokenizerOptions(
        special_tokens={role: token for role, token in tokens.items() if isinstance(token, str)},
        model_max_length=truncation.get("max_length"),
        model_input_names=tuple(names),
        padding_side="left" if padding.get("direction") == "left" else "right",
        truncation_side="left" if truncation.get("direction") == "left" else "right",
    )


def _has_token_types(raw: RawTokenizer) -> bool:
    """Return whether pairs get BERT's token types: special tokens of the first text have type 0, of the second 1."""
    if raw.post_processor is None:
        return False
    found = json.loads(raw.post_processor.__getstate__())
    parts = found.get("processors", [found]) if found.get("type") == "Sequence" else [found]
    for part in parts:
        if part.get("type") == "BertProcessing":
            return True
        pieces = [piece["SpecialToken"] for piece in part.get("pair") or () if "SpecialToken" in piece]
        if part.get("type") == "TemplateProcessing" and {piece["type_id"] for piece in pieces} == {0, 1}:
            return True
    return False
