"""Tokenizer classes with a WordPiece model: the BERT family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import decoders, models, normalizers, pre_tokenizers

from fastattn.tokenizer.draft import Draft
from fastattn.tokenizer.library import call_library
from fastattn.tokenizer.parts import (
    FAIRSEQ_TOKENS,
    WRAP_ALL,
    XLNET_TOKENS,
    Build,
    Parts,
    TokenizerClass,
    Tokens,
    cls_sep_template,
    needed,
    roberta_post,
)
from fastattn.tokenizer.vocabulary import Vocabulary

_BERT_TOKENS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


def _pipeline(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> dict[str, Any]:
    """Return the parts that all WordPiece classes share. WordPiece.continuing_subword_prefix is always "##"."""
    settings = draft.settings
    normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.flag("tokenize_chinese_chars", True),
        strip_accents=settings.flag("strip_accents", None),
        lowercase=settings.flag("do_lower_case", True),
    )
    return {
        "model": call_library(models.WordPiece, dict(vocab.ids), unk_token=needed(draft, tokens, "unk")),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizers.BertPreTokenizer(),
        "decoder": decoders.WordPiece(prefix="##"),
    }


def _dpr(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    """Build BERT's parts, but always lowercase text: transformers ignores `do_lower_case` for these classes."""
    parts = _bert(draft, vocab, tokens)
    parts.normalizer.lowercase = True
    return parts


def _bert(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    post = cls_sep_template(needed(draft, tokens, "cls"), needed(draft, tokens, "sep"))
    return Parts(**_pipeline(draft, vocab, tokens), post=post)


def _mpnet(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    post = roberta_post(needed(draft, tokens, "cls"), needed(draft, tokens, "sep"))
    return Parts(**_pipeline(draft, vocab, tokens), post=post)


def _funnel(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    settings = draft.settings
    parts = _pipeline(draft, vocab, tokens)
    parts["normalizer"].clean_text = settings.flag("clean_text", True)
    parts["decoder"] = call_library(decoders.WordPiece, prefix=settings.text("wordpieces_prefix", "##"))
    post = cls_sep_template(needed(draft, tokens, "cls"), needed(draft, tokens, "sep"), cls_type=2)
    return Parts(**parts, post=post)


def _wordpiece(
    name: str, build: Build = _bert, tokens: Mapping[str, str | None] = _BERT_TOKENS, **more: Any
) -> TokenizerClass:
    return TokenizerClass(name=name, kind="WordPiece", file="vocab.txt", build=build, tokens=tokens, **more)


_COLUMNS = ("input_ids", "token_type_ids", "attention_mask")
CLASSES = (
    _wordpiece("BertTokenizer", input_names=_COLUMNS),
    _wordpiece("DistilBertTokenizer"),
    _wordpiece("ConvBertTokenizer", input_names=_COLUMNS, follows_file=True),
    _wordpiece("DPRContextEncoderTokenizer", _dpr, input_names=_COLUMNS),
    _wordpiece("DPRQuestionEncoderTokenizer", _dpr, input_names=_COLUMNS),
    _wordpiece("DPRReaderTokenizer", _dpr),
    _wordpiece("MPNetTokenizer", _mpnet, {**FAIRSEQ_TOKENS, "unk": "[UNK]"}, wrap=WRAP_ALL),
    _wordpiece("FunnelTokenizer", _funnel, XLNET_TOKENS),
)
