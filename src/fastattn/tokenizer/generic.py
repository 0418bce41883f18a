"""Tokenizers that depend only on their file: tokenizer.json, or a SentencePiece model of a class without rules."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer

from fastattn.tokenizer.draft import Draft
from fastattn.tokenizer.library import call_library, file_errors, refusals_of
from fastattn.tokenizer.sentencepiece import BPE, UNIGRAM, USER_DEFINED, SentencePieceModel, merges_by_score


def raw_from_json(draft: Draft) -> RawTokenizer:
    """Build the tokenizer of a checked tokenizer.json. Raises ModelFormatError."""
    path = draft.folder.path("tokenizer.json")
    text = draft.folder.text("tokenizer.json") or ""
    with file_errors(path):
        return RawTokenizer.from_str(text)


def raw_from_sentencepiece(draft: Draft, model: SentencePieceModel) -> RawTokenizer:
    """Build the tokenizer of a SentencePiece file. Raises ModelFormatError."""
    with refusals_of(model.path):
        raw = call_library(RawTokenizer, _model(draft, model))
        user_defined = _user_defined(draft, model)
        legacy = draft.settings.flag("legacy", True)
        raw.normalizer = normalizers.Sequence(_normalizers(model, legacy=legacy))
        splits: list[Any] = []
        if model.add_dummy_prefix:
            scheme = "always" if legacy else "first"
            splits.append(pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False))
        if user_defined:
            pattern = "|".join(re.escape(piece) for piece in sorted(user_defined, key=len, reverse=True))
            splits.append(pre_tokenizers.Split(call_library(Regex, pattern), behavior="isolated"))
        if splits:
            raw.pre_tokenizer = pre_tokenizers.Sequence(splits)
        raw.decoder = decoders.Sequence(_decoders(model))
    return raw


def _ids(draft: Draft, model: SentencePieceModel) -> dict[str, int]:
    """Map piece to id; `added_tokens_decoder` may rename pieces."""
    vocab = model.ids
    names = {i: token.content for i, token in draft.added.items()}
    if not names:
        return vocab
    stay = {token for token, i in vocab.items() if i not in names}
    return {(names[i] if i in names and names[i] not in stay else token): i for token, i in vocab.items()}


def _model(draft: Draft, model: SentencePieceModel) -> Any:
    if model.algorithm == UNIGRAM:
        return call_library(models.Unigram, model.scores, unk_id=model.unk_id, byte_fallback=model.byte_fallback)
    vocab = _ids(draft, model)
    return call_library(
        models.BPE,
        vocab=vocab,
        merges=merges_by_score(model, vocab),
        unk_token=model.unk_piece,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        dropout=None,
        ignore_merges=bool(_user_defined(draft, model)),
    )


def _user_defined(draft: Draft, model: SentencePieceModel) -> list[str]:
    if model.algorithm == BPE:
        names = {i: token for token, i in _ids(draft, model).items()}
    else:
        names = {i: piece.text for i, piece in enumerate(model.pieces)}
    return [names[i] for i, piece in enumerate(model.pieces) if piece.kind == USER_DEFINED and i in names]


def _normalizers(model: SentencePieceModel, *, legacy: bool) -> list[Any]:
    steps: list[Any] = [] if model.charsmap is None else [call_library(normalizers.Precompiled, model.charsmap)]
    if model.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if model.escape_whitespaces:
        steps.append(normalizers.Replace(" ", "▁"))
    if model.add_dummy_prefix and legacy:
        steps.append(normalizers.Replace(Regex(r"\A▁"), "▁▁"))
    return steps


def _decoders(model: SentencePieceModel) -> list[Any]:
    steps: list[Any] = [decoders.Replace("▁", " ")]
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    if model.add_dummy_prefix:
        return [*steps, decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    return [*steps, decoders.Fuse()] if model.byte_fallback else steps
