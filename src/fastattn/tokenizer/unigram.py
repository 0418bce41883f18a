"""Tokenizer classes with a Unigram model: XLM-RoBERTa, ALBERT, T5 and others trained with SentencePiece."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from fastattn.errors import ConfigError
from fastattn.tokenizer.draft import Draft, Token
from fastattn.tokenizer.languages import MBART50_LANGUAGES, MBART_LANGUAGES
from fastattn.tokenizer.library import call_library
from fastattn.tokenizer.parts import (
    DEBERTA_TOKENS,
    FAIRSEQ_TOKENS,
    STRIP_LEFT,
    WRAP_ALL,
    XLNET_TOKENS,
    Parts,
    TokenizerClass,
    Tokens,
    cls_sep_template,
    needed,
    template,
)
from fastattn.tokenizer.sentencepiece import SentencePieceModel
from fastattn.tokenizer.vocabulary import Vocabulary

_ALBERT_TOKENS = {**DEBERTA_TOKENS, "unk": "<unk>", "pad": "<pad>"}
_SPACES = Regex(" {2,}")
_ANY_SPACES = Regex(r"\s{2,}|[\n\r\t]")
Scores = list[tuple[str, float]]


def _model(vocab: Vocabulary, unk_id: int) -> Any:
    return call_library(models.Unigram, list(vocab.scores), unk_id=unk_id, byte_fallback=False)


def _spaces(scheme: str, *, words: bool = False) -> dict[str, Any]:
    """Return parts that write spaces as "▁". words: whether any whitespace separates words."""
    marks = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    return {
        "pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), marks]) if words else marks,
        "decoder": decoders.Metaspace(replacement="▁", prepend_scheme=scheme),
    }


def _scheme(draft: Draft) -> str:
    return "always" if draft.settings.flag("add_prefix_space", True) else "never"


def _precompiled(vocab: Vocabulary) -> list[Any]:
    return [] if vocab.charsmap is None else [call_library(normalizers.Precompiled, vocab.charsmap)]


def _xlm_roberta(draft: Draft, vocab: Vocabulary, tokens: Tokens, unk_id: int = 3) -> Parts:
    bos, eos = needed(draft, tokens, "bos"), needed(draft, tokens, "eos")
    return Parts(
        model=_model(vocab, unk_id),
        normalizer=next(iter(_precompiled(vocab)), None),
        **_spaces(_scheme(draft), words=True),
        post=template([bos, "$A", eos], [bos, "$A", eos, eos, "$B", eos], [bos, eos]),
    )


def _camembert(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    unk = str(tokens.get("unk"))
    unk_id = next((i for i, (token, _) in enumerate(vocab.scores) if token == unk), 0)
    return _xlm_roberta(draft, vocab, tokens, unk_id)


def _barthez(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    steps = [normalizers.Replace(_ANY_SPACES, " "), normalizers.NFC(), normalizers.Strip(left=False, right=True)]
    return Parts(model=_model(vocab, 3), normalizer=normalizers.Sequence(steps), **_spaces(_scheme(draft)))


def _quotes_and_case(draft: Draft, *, strip_accents: bool, lowercase: bool) -> list[Any]:
    steps: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if strip_accents:
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    return [*steps, normalizers.Lowercase()] if lowercase else steps


def _albert(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    settings = draft.settings
    steps = _quotes_and_case(
        draft,
        strip_accents=not settings.flag("keep_accents", False),
        lowercase=settings.flag("do_lower_case", True),
    )
    # The names are fixed; the ids are those of the class's tokens.
    names = {"[CLS]": needed(draft, tokens, "cls"), "[SEP]": needed(draft, tokens, "sep")}
    return Parts(
        model=_model(vocab, 1),
        normalizer=normalizers.Sequence([*steps, *_precompiled(vocab)]),
        **_spaces(_scheme(draft), words=True),
        first_post=template("[CLS]:0 $A:0 [SEP]:0", "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", names),
    )


def _deberta_v2(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    settings = draft.settings
    unk = (str(tokens.get("unk")), 0.0)
    fallback = settings.count("unk_id", 1) if vocab.unk_id is None else vocab.unk_id
    steps: list[Any] = [normalizers.Lowercase()] if settings.flag("do_lower_case", False) else []
    steps += [normalizers.Replace(_ANY_SPACES, " "), normalizers.NFC(), normalizers.Strip(left=False, right=True)]
    splits: list[Any] = []
    if settings.flag("split_by_punct", False):
        splits.append(pre_tokenizers.Punctuation(behavior="isolated"))
    scheme = "always" if settings.flag("add_prefix_space", True) else "first"
    spaces = _spaces(scheme)
    return Parts(
        model=_model(vocab, vocab.scores.index(unk) if unk in vocab.scores else fallback),
        normalizer=normalizers.Sequence(steps),
        pre_tokenizer=pre_tokenizers.Sequence([*splits, spaces["pre_tokenizer"]]),
        decoder=spaces["decoder"],
        post=cls_sep_template(needed(draft, tokens, "cls"), needed(draft, tokens, "sep")),
    )


def _t5(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    names = {"</s>": needed(draft, tokens, "eos")}  # the name is fixed; the id is that of the class's token
    return Parts(
        model=_model(vocab, 2),
        normalizer=next(iter(_precompiled(vocab)), None),
        **_spaces("always", words=True),
        post=template(["$A", "</s>"], ["$A", "</s>", "$B", "</s>"], names),
    )


def _t5_extra_ids(draft: Draft) -> int:
    return int(draft.settings.count("extra_ids", 100, high=10_000))


def _t5_additional(draft: Draft, found: list[Token] | None, tokens: Tokens) -> list[Token]:
    n_ids = _t5_extra_ids(draft)
    listed = [token for token in found or () if "<extra_id_" in str(token)]
    if not listed:
        return [*(found or ()), *(f"<extra_id_{i}>" for i in range(n_ids))]
    if n_ids > 0 and n_ids != len(listed):
        raise ConfigError(
            f"{draft.settings.where}: extra_ids: expected {len(listed)} as in additional_special_tokens, got {n_ids}"
        )
    return list(found or ())


def _big_bird(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    unk = (str(tokens.get("unk")), 0.0)
    steps = [normalizers.Strip(left=False, right=False), normalizers.Replace(_SPACES, "▁")]
    return Parts(
        model=_model(vocab, vocab.scores.index(unk) if unk in vocab.scores else 100),
        normalizer=normalizers.Sequence(steps),
        **_spaces(_scheme(draft)),
        post=cls_sep_template(needed(draft, tokens, "cls"), needed(draft, tokens, "sep")),
    )


def _rembert(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    settings = draft.settings
    quotes = _quotes_and_case(draft, strip_accents=False, lowercase=False)
    case = _quotes_and_case(
        draft,
        strip_accents=not settings.flag("keep_accents", True),
        lowercase=settings.flag("do_lower_case", False),
    )[2:]
    steps = [*quotes, normalizers.Replace(_SPACES, " "), *case, *_precompiled(vocab)]
    return Parts(
        model=_model(vocab, 2),
        normalizer=normalizers.Sequence(steps),
        **_spaces(_scheme(draft)),
        post=cls_sep_template(needed(draft, tokens, "cls"), needed(draft, tokens, "sep")),
    )


def _xlnet(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    settings = draft.settings
    steps = _quotes_and_case(draft, strip_accents=True, lowercase=settings.flag("do_lower_case", False))
    cls, sep = needed(draft, tokens, "cls"), needed(draft, tokens, "sep")
    return Parts(
        model=_model(vocab, settings.count("unk_id", 0) if vocab.unk_id is None else vocab.unk_id),
        normalizer=normalizers.Sequence([*steps, *_precompiled(vocab)]),
        **_spaces("always", words=True),
        post=template(f"$A:0 {sep}:0 {cls}:2", f"$A:0 {sep}:0 $B:1 {sep}:1 {cls}:2", [sep, cls]),
    )


def _mbart(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    eos = needed(draft, tokens, "eos")
    language = draft.settings.text("src_lang", "en_XX")
    return Parts(
        model=_model(vocab, 3),
        **_spaces("always", words=True),
        post=template(["$A", eos, language], ["$A", "$B", eos, language], [eos, language]),
    )


def _mbart50(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    eos = needed(draft, tokens, "eos")
    language = draft.settings.text("src_lang", "en_XX")
    return Parts(
        model=_model(vocab, 3),
        normalizer=normalizers.Sequence([*_precompiled(vocab), normalizers.Replace(_SPACES, " ")]),
        **_spaces("always"),
        post=template([language, "$A", eos], [language, "$A", "$B", eos], [language, eos]),
    )


def _xglm(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    bos, eos = needed(draft, tokens, "bos"), needed(draft, tokens, "eos")
    return Parts(
        model=_model(vocab, 3),
        normalizer=normalizers.Sequence([*_precompiled(vocab), normalizers.Replace(_SPACES, " ")]),
        **_spaces(_scheme(draft)),
        post=template([eos, "$A"], [eos, "$A", eos, eos, "$B"], [bos, eos]),
    )


def _pegasus(draft: Draft, vocab: Vocabulary, tokens: Tokens) -> Parts:
    eos = needed(draft, tokens, "eos")
    unk = (needed(draft, tokens, "unk"), 0.0)
    if unk not in vocab.scores[1:]:
        raise ConfigError(f"{vocab.path}: expected the unknown token {unk[0]!r:.80} with score 0, got none")
    steps = _precompiled(vocab) or [normalizers.Replace(Regex(r"\n"), " ")]
    return Parts(
        model=_model(vocab, vocab.scores.index(unk, 1)),
        normalizer=normalizers.Sequence([*steps, normalizers.Replace(_SPACES, " ")]),
        **_spaces("always"),
        post=template(["$A", eos], ["$A", "$B", eos], [eos]),
    )


def _pegasus_additional(draft: Draft, found: list[Token] | None, tokens: Tokens) -> list[Token]:
    sentence = draft.settings.text("mask_token_sent", "<mask_1>")
    first: list[Token] = [] if found is not None and sentence in found else [sentence]
    return [*first, *(f"<unk_{i}>" for i in range(2, draft.settings.count("offset", 103, high=10_000)))]


# -- vocabularies from SentencePiece files, with the ids of each class ----------------------------------------------


def _fairseq_scores(*last: str, start: str = "bos") -> Callable[[SentencePieceModel, Tokens, Draft], Scores]:
    """Return a function for fairseq's order: four special tokens, pieces after the first three, languages, and mask."""

    def scores(model: SentencePieceModel, tokens: Tokens, draft: Draft) -> Scores:
        first = [(str(tokens.get(role)), 0.0) for role in (start, "pad", "eos", "unk")]
        return [*first, *model.scores[3:], *((token, 0.0) for token in last), (str(tokens.get("mask")), 0.0)]

    return scores


def _camembert_scores(model: SentencePieceModel, tokens: Tokens, draft: Draft) -> Scores:
    pad, unk, mask = (str(tokens.get(role)) for role in ("pad", "unk", "mask"))
    first = [("<s>NOTUSED", 0.0), (pad, 0.0), ("</s>NOTUSED", 0.0), (unk, 0.0), ("<unk>NOTUSED", -100.0)]
    return [*first, *model.scores[1:], (mask, 0.0)]


def _t5_scores(model: SentencePieceModel, tokens: Tokens, draft: Draft) -> Scores:
    return [*model.scores, *((f"<extra_id_{i}>", 0.0) for i in range(_t5_extra_ids(draft) - 1, -1, -1))]


def _pegasus_scores(model: SentencePieceModel, tokens: Tokens, draft: Draft) -> Scores:
    # If no file names them, transformers' two mask tokens are swapped here.
    mask = str(draft.roles.get("mask", "<mask_1>"))
    sentence = draft.settings.text("mask_token_sent", "<mask_2>")
    first = [(str(tokens.get("pad")), 0.0), (str(tokens.get("eos")), 0.0), (mask, 0.0)]
    if sentence != mask:
        first.append((sentence, 0.0))
    unknown = [(f"<unk_{i}>", -100.0) for i in range(2, draft.settings.count("offset", 103, high=10_000))]
    return [*first, *unknown, *model.scores[2:]]


def _mbart_additional(draft: Draft, found: list[Token] | None, tokens: Tokens) -> list[Token]:
    known: list[Token] = list(MBART_LANGUAGES)
    return [*known, *(token for token in found or () if token not in known)]


def _mbart50_additional(draft: Draft, found: list[Token] | None, tokens: Tokens) -> list[Token]:
    return [*(found or ()), *MBART50_LANGUAGES]


def _xglm_additional(draft: Draft, found: list[Token] | None, tokens: Tokens) -> list[Token]:
    words = [f"<madeupword{i}>" for i in range(7)]
    return [*(found or ()), *(word for word in words if word not in (found or ()))]


def _defaults(*names: str) -> Callable[[Draft, list[Token] | None, Tokens], list[Token]]:
    return lambda draft, found, tokens: list(names) if found is None else found


def _unigram(name: str, build: Any, tokens: Mapping[str, str | None], file: str, **more: Any) -> TokenizerClass:
    return TokenizerClass(name=name, kind="Unigram", file=file, build=build, tokens=tokens, **more)


CLASSES = (
    _unigram("XLMRobertaTokenizer", _xlm_roberta, FAIRSEQ_TOKENS, "sentencepiece.bpe.model", scores=_fairseq_scores()),
    _unigram(
        "CamembertTokenizer",
        _camembert,
        FAIRSEQ_TOKENS,
        "sentencepiece.bpe.model",
        wrap={"mask": {"lstrip": True, "special": True}},
        scores=_camembert_scores,
        additional=_defaults("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    ),
    _unigram("BarthezTokenizer", _barthez, FAIRSEQ_TOKENS, "sentencepiece.bpe.model", wrap={"mask": STRIP_LEFT}),
    _unigram("AlbertTokenizer", _albert, _ALBERT_TOKENS, "spiece.model"),
    _unigram(
        "FNetTokenizer",
        _albert,
        _ALBERT_TOKENS,
        "spiece.model",
        input_names=("input_ids", "token_type_ids"),
        follows_file=True,
    ),
    _unigram(
        "DebertaV2Tokenizer",
        _deberta_v2,
        DEBERTA_TOKENS,
        "spm.model",
        input_names=("input_ids", "attention_mask", "token_type_ids"),
    ),
    _unigram(
        "T5Tokenizer",
        _t5,
        {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
        "spiece.model",
        scores=_t5_scores,
        additional=_t5_additional,
    ),
    _unigram(
        "BigBirdTokenizer",
        _big_bird,
        {**FAIRSEQ_TOKENS, "sep": "[SEP]", "mask": "[MASK]", "cls": "[CLS]"},
        "spiece.model",
        wrap=WRAP_ALL,
    ),
    _unigram("RemBertTokenizer", _rembert, _ALBERT_TOKENS, "sentencepiece.model", post_init=True),
    _unigram(
        "XLNetTokenizer",
        _xlnet,
        XLNET_TOKENS,
        "spiece.model",
        wrap={"mask": STRIP_LEFT},
        additional=_defaults("<eop>", "<eod>"),
        padding_side="left",
    ),
    _unigram(
        "MBartTokenizer",
        _mbart,
        FAIRSEQ_TOKENS,
        "sentencepiece.bpe.model",
        wrap={"mask": STRIP_LEFT},
        scores=_fairseq_scores(*MBART_LANGUAGES),
        additional=_mbart_additional,
    ),
    _unigram(
        "MBart50Tokenizer",
        _mbart50,
        {role: token for role, token in FAIRSEQ_TOKENS.items() if role != "bos"},
        "sentencepiece.bpe.model",
        wrap={"mask": STRIP_LEFT},
        scores=_fairseq_scores(*MBART50_LANGUAGES, start="cls"),
        additional=_mbart50_additional,
        extra_names=MBART50_LANGUAGES,
    ),
    _unigram(
        "XGLMTokenizer",
        _xglm,
        {role: token for role, token in FAIRSEQ_TOKENS.items() if role != "mask"},
        "",
        additional=_xglm_additional,
    ),
    _unigram(
        "PegasusTokenizer",
        _pegasus,
        {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"},
        "spiece.model",
        scores=_pegasus_scores,
        additional=_pegasus_additional,
    ),
)
