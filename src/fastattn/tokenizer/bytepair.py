"""Tokenizer classes with a BPE model: the GPT-2 and RoBERTa families, CLIP, Llama and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from fastattn.tokenizer.draft import Draft
from fastattn.tokenizer.library import call_library
from fastattn.tokenizer.parts import (
    DEBERTA_TOKENS,
    FAIRSEQ_TOKENS,
    Parts,
    TokenizerClass,
    Tokens,
    needed,
    roberta_post,
    template,
)
from fastattn.tokenizer.vocabulary import Vocabulary

_END = "<|endoftext|>"
_CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN3_5_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _model(vocab: Vocabulary, **options: Any) -> Any:
    return call_library(models.BPE, vocab=dict(vocab.ids), merges=list(vocab.merges), dropout=None, **options)


def _byte_level(draft: Draft, vocab: Vocabulary, *, add_prefix_space: bool = False) -> dict[str, Any]:
    """Return the parts that the GPT-2 family shares; `add_prefix_space` is the class's default."""
    prefix_space = draft.settings.flag("add_prefix_space", add_prefix_space)
    return {
        "model": _model(vocab, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False),
        "pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=prefix_space),
        "decoder": decoders.ByteLevel(),
    }


def _gpt2(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    return Parts(**_byte_level(draft, vocab))


def _codegen(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    post = call_library(processors.ByteLevel, add_prefix_space=True, use_regex=True, trim_offsets=False)
    return Parts(**_byte_level(draft, vocab), first_post=lambda raw: post)


def _cohere(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    parts = _byte_level(draft, vocab)
    parts["pre_tokenizer"] = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), parts["pre_tokenizer"]]
    )
    return Parts(**parts, normalizer=normalizers.NFC())


def _blenderbot(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    return Parts(**_byte_level(draft, vocab, add_prefix_space=True))


def _gpt_neox(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    return Parts(**_byte_level(draft, vocab), normalizer=normalizers.NFC())


def _roberta(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    cls, sep = needed(draft, tokens, "cls"), needed(draft, tokens, "sep")
    trim_offsets = draft.settings.flag("trim_offsets", True)
    prefix_space = draft.settings.flag("add_prefix_space", False)
    post = roberta_post(cls, sep, trim_offsets=trim_offsets, add_prefix_space=prefix_space)
    return Parts(**_byte_level(draft, vocab), post=post)


def _deberta(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    cls, sep = needed(draft, tokens, "cls"), needed(draft, tokens, "sep")
    post = template(f"{cls} $A {sep}", f"{cls} $A {sep} {sep} $B {sep}", [cls, sep])
    return Parts(**_byte_level(draft, vocab), post=post)


def _herbert(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    cls, sep, unk = (needed(draft, tokens, role) for role in ("cls", "sep", "unk"))
    return Parts(
        model=_model(vocab, unk_token=unk, end_of_word_suffix="</w>"),
        normalizer=normalizers.BertNormalizer(
            lowercase=False, strip_accents=False, clean_text=True, handle_chinese_chars=True
        ),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.BPEDecoder(suffix="</w>"),
        post=lambda raw: call_library(processors.BertProcessing, (sep, 2), (cls, 0)),  # transformers fixes these ids
    )


def _openai_gpt(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    unk = needed(draft, tokens, "unk")
    return Parts(
        model=_model(vocab, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False, unk_token=unk),
        normalizer=normalizers.BertNormalizer(lowercase=True),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        decoder=decoders.BPEDecoder(suffix="</w>"),
    )


def _clip(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    bos, eos, unk = (needed(draft, tokens, role) for role in ("bos", "eos", "unk"))
    words = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
    spaces = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    return Parts(
        model=_model(vocab, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False, unk_token=unk),
        normalizer=normalizers.Sequence(spaces),
        pre_tokenizer=pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        decoder=clip_decoder("</w>"),
        post=roberta_post(bos, eos, trim_offsets=False),
    )


def clip_decoder(end_of_word: str) -> Any:
    """Decode bytes as CLIPTokenizer does: ends of words become spaces, and the text is stripped."""
    ends = Regex(r"\A[\s\x1c-\x1f]+|[\s\x1c-\x1f]+\z")
    return decoders.Sequence([decoders.ByteLevel(), decoders.Replace(end_of_word, " "), decoders.Replace(ends, "")])


def _qwen(words: str, draft: Draft, vocab: Vocabulary) -> Parts:
    prefix_space = draft.settings.flag("add_prefix_space", False)
    split = pre_tokenizers.Split(Regex(words), behavior="isolated", invert=False)
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
    return Parts(
        model=_model(
            vocab,
            unk_token=None,
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
            byte_fallback=False,
        ),
        normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.Sequence([split, bytes_of_words]),
        decoder=decoders.ByteLevel(),
    )


def _qwen2(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    return _qwen(_QWEN_WORDS, draft, vocab)


def _qwen3_5(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    return _qwen(_QWEN3_5_WORDS, draft, vocab)


def _llama(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    prefix_space = draft.settings.flag("add_prefix_space", True)
    scheme = "never" if not prefix_space else "always" if draft.settings.flag("legacy", False) else "first"
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        steps.append(decoders.Strip(content=" ", left=1))
    return Parts(
        model=_model(vocab, fuse_unk=True, byte_fallback=True),
        pre_tokenizer=pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False),
        decoder=decoders.Sequence(steps),
    )


def _gemma(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    unk = needed(draft, tokens, "unk")
    return Parts(
        model=_model(vocab, fuse_unk=True, unk_token=unk, byte_fallback=True),
        normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False),
        decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )


def _reformer(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    unk = needed(draft, tokens, "unk")
    normalizer = None
    if vocab.charsmap is not None:
        spaces = normalizers.Replace(Regex(" {2,}"), " ")
        normalizer = normalizers.Sequence([call_library(normalizers.Precompiled, vocab.charsmap), spaces])
    return Parts(
        model=_model(vocab, unk_token=unk, fuse_unk=True, byte_fallback=False),
        normalizer=normalizer,
        pre_tokenizer=pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        decoder=decoders.Metaspace(replacement="▁", prepend_scheme="always"),
    )


def _bpe(
    name: str, build: Any, tokens: Mapping[str, str | None], file: str = "vocab.json", **more: Any
) -> TokenizerClass:
    return TokenizerClass(name=name, kind="BPE", file=file, build=build, tokens=tokens, **more)


CLASSES = (
    _bpe("GPT2Tokenizer", _gpt2, {"bos": _END, "eos": _END, "unk": _END, "pad": None}),
    _bpe("CodeGenTokenizer", _codegen, {"bos": _END, "eos": _END, "unk": _END, "pad": None}),
    _bpe(
        "CohereTokenizer",
        _cohere,
        {
            "bos": "<BOS_TOKEN>",
            "eos": "<|END_OF_TURN_TOKEN|>",
            "unk": "<UNK>",
            "sep": "<SEP>",
            "pad": "<PAD>",
            "cls": "<CLS>",
            "mask": "<MASK_TOKEN>",
        },
        padding_side="left",
        post_init=True,
    ),
    _bpe("RobertaTokenizer", _roberta, FAIRSEQ_TOKENS),
    _bpe(
        "BlenderbotTokenizer",
        _blenderbot,
        FAIRSEQ_TOKENS,
        wrap={"mask": {"lstrip": True, "rstrip": False, "normalized": False}},
    ),
    _bpe(
        "GPTNeoXTokenizer",
        _gpt_neox,
        {"bos": _END, "eos": _END, "unk": _END, "pad": "<|padding|>"},
        always_post=True,
    ),
    _bpe(
        "DebertaTokenizer",
        _deberta,
        DEBERTA_TOKENS,
        input_names=("input_ids", "attention_mask", "token_type_ids"),
    ),
    _bpe(
        "HerbertTokenizer",
        _herbert,
        {"unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"},
    ),
    _bpe("OpenAIGPTTokenizer", _openai_gpt, {"unk": "<unk>"}),
    _bpe("CLIPTokenizer", _clip, {"bos": "<|startoftext|>", "eos": _END, "unk": _END, "pad": _END}),
    _bpe("Qwen2Tokenizer", _qwen2, {"bos": None, "eos": _END, "unk": _END, "pad": _END}, mark_specials=True),
    _bpe("Qwen3_5Tokenizer", _qwen3_5, {"bos": None, "eos": _END, "unk": _END, "pad": _END}, "tokenizer.model"),
    _bpe(
        "LlamaTokenizer",
        _llama,
        {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
        "tokenizer.model",
        padding_side="left",
    ),
    _bpe(
        "GemmaTokenizer",
        _gemma,
        {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
        "",
        padding_side="left",
    ),
    _bpe(
        "ReformerTokenizer",
        _reformer,
        {"eos": "</s>", "unk": "<unk>"},
        "spiece.model",
        additional=lambda draft, found, tokens: found or [],
        post_init=True,
    ),
)
