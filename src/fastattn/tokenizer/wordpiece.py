"""Tokenizer classes with a WordPiece model: the BERT family."""

from __future__ import annotations

from typing import Any

from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from fastattn.tokenizer.draft import Draft
from fastattn.tokenizer.library import call_library
from fastattn.tokenizer.parts import Build, Parts, TokenizerClass, Tokens, cls_sep_template, needed, token_id
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
    cls, sep = needed(draft, tokens, "cls"), needed(draft, tokens, "sep")
    return Parts(
        **_pipeline(draft, vocab, tokens),
        post=lambda raw: call_library(
            processors.RobertaProcessing,
            (sep, token_id(raw, sep)),
            (cls, token_id(raw, cls)),
            trim_offsets=True,
            add_prefix_space=False,
        ),
    )


def _funnel(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    settings = draft.settings
    parts = _pipeline(draft, vocab, tokens)
    parts["normalizer"].clean_text = settings.flag("clean_text", True)
    parts["decoder"] = call_library(decoders.WordPiece, prefix=settings.text("wordpieces_prefix", "##"))
    post = cls_sep_template(needed(draft, tokens, "cls"), needed(draft, tokens, "sep"), cls_type=2)
    return Parts(**parts, post=post)


def _bert_class(name: str, build: Build = _bert, *, types: bool = True, follows_file: bool = False) -> TokenizerClass:
    names = ("input_ids", "token_type_ids", "attention_mask") if types else ("input_ids", "attention_mask")
    return TokenizerClass(
        name=name,
        kind="WordPiece",
        file="vocab.txt",
        build=build,
        tokens=_BERT_TOKENS,
        input_names=names,
        follows_file=follows_file,
    )


CLASSES = (
    _bert_class("BertTokenizer"),
    _bert_class("DistilBertTokenizer", types=False),
    _bert_class("ConvBertTokenizer", follows_file=True),
    _bert_class("DPRContextEncoderTokenizer", _dpr),
    _bert_class("DPRQuestionEncoderTokenizer", _dpr),
    _bert_class("DPRReaderTokenizer", _dpr, types=False),
    TokenizerClass(
        name="MPNetTokenizer",
        kind="WordPiece",
        file="vocab.txt",
        build=_mpnet,
        tokens={
            "bos": "<s>",
            "eos": "</s>",
            "unk": "[UNK]",
            "sep": "</s>",
            "pad": "<pad>",
            "cls": "<s>",
            "mask": "<mask>",
        },
        wrap={
            **{role: {"lstrip": False, "rstrip": False} for role in ("bos", "eos", "sep", "cls", "unk", "pad")},
            "mask": {"lstrip": True, "rstrip": False},
        },
    ),
    TokenizerClass(
        name="FunnelTokenizer",
        kind="WordPiece",
        file="vocab.txt",
        build=_funnel,
        tokens={
            "bos": "<s>",
            "eos": "</s>",
            "unk": "<unk>",
            "sep": "<sep>",
            "pad": "<pad>",
            "cls": "<cls>",
            "mask": "<mask>",
        },
    ),
)
