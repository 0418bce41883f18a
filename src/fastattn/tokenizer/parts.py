"""The description of a tokenizer class, and the parts that its builder returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tokenizers import AddedToken, processors

from fastattn.checks import quote
from fastattn.errors import ConfigError
from fastattn.tokenizer.draft import Draft, Token
from fastattn.tokenizer.library import call_library
from fastattn.tokenizer.options import Side
from fastattn.tokenizer.sentencepiece import SentencePieceModel
from fastattn.tokenizer.vocabulary import Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer

Tokens: TypeAlias = Mapping[str, "Token | None"]
Build: TypeAlias = "Callable[[Draft, Vocabulary, Tokens], Parts]"
Flags: TypeAlias = Mapping[str, bool]
# The special tokens of the DeBERTa models.
DEBERTA_TOKENS = {
    "bos": "[CLS]",
    "eos": "[SEP]",
    "unk": "[UNK]",
    "sep": "[SEP]",
    "pad": "[PAD]",
    "cls": "[CLS]",
    "mask": "[MASK]",
}
# The special tokens of RoBERTa and other fairseq models.
FAIRSEQ_TOKENS = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "</s>",
    "pad": "<pad>",
    "cls": "<s>",
    "mask": "<mask>",
}
STRIP_LEFT = {"lstrip": True, "rstrip": False}
WRAP_ALL: Mapping[str, Flags] = {
    **{role: {"lstrip": False, "rstrip": False} for role in ("bos", "eos", "unk", "pad", "cls", "sep")},
    "mask": STRIP_LEFT,
}
XLNET_TOKENS = {**FAIRSEQ_TOKENS, "sep": "<sep>", "cls": "<cls>"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The pipeline of a tokenizer.

    post: makes the post-processor after all special tokens have ids, and replaces that of tokenizer.json. If it is
    None, the one of tokenizer.json is used, or else one that adds `bos` and `eos` according to `add_bos_token` and
    `add_eos_token`.
    first_post: makes the one that is used if tokenizer.json has none and neither setting is given.
    """

    model: Any
    pre_tokenizer: Any
    decoder: Any
    normalizer: Any = None
    post: Callable[[RawTokenizer], Any] | None = None
    first_post: Callable[[RawTokenizer], Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerClass:
    """One tokenizer class of transformers.

    kind: the kind of model; "" if tokenizer.json or the SentencePiece file decides.
    file: the vocabulary file if there is no tokenizer.json ("vocab.json" comes with merges.txt).
    tokens: role to default token. wrap: roles whose plain strings become tokens with these flags.
    follows_file: tokenizer.json, or the SentencePiece file, is used unchanged; only special tokens, the input names and
    `post` come from the class.
    scores: makes the Unigram vocabulary from a SentencePiece model.
    additional: makes `additional_special_tokens` from those in the files.
    always_post: the post-processor of `bos` and `eos` replaces the one of tokenizer.json.
    post_init: special tokens are marked again at the end; without tokenizer.json, `post` of the parts is then lost, as
    in transformers.
    mark_specials: special tokens are added again as special at the end.
    extra_names: special tokens in addition to those of the files.
    """

    name: str
    kind: Literal["WordPiece", "BPE", "Unigram", ""]
    file: str
    build: Build
    tokens: Mapping[str, str | None] = field(default_factory=dict)
    wrap: Mapping[str, Flags] = field(default_factory=dict)
    scores: Callable[[SentencePieceModel, Tokens, Draft], list[tuple[str, float]]] | None = None
    additional: Callable[[Draft, list[Token] | None, Tokens], list[Token]] | None = None
    input_names: Sequence[str] = ("input_ids", "attention_mask")
    padding_side: Side = "right"
    follows_file: bool = False
    always_post: bool = False
    post_init: bool = False
    mark_specials: bool = False
    extra_names: Sequence[str] = ()

    def all_tokens(self, draft: Draft) -> dict[str, Token | None]:
        """Return the tokens by role, from the files, else the defaults."""
        found: dict[str, Token | None] = {**self.tokens, **draft.roles}
        for role, flags in self.wrap.items():
            token = found.get(role)
            if isinstance(token, str):
                found[role] = AddedToken(token, **flags)
        return found


def needed(draft: Draft, tokens: Tokens, role: str) -> str:
    """Return the text of a token that the class requires. Raises ConfigError."""
    token = tokens.get(role)
    if token is None or not str(token):
        raise ConfigError(
            f"{draft.settings.where}: {role}_token: expected a token, because {draft.class_name} needs it, got none"
        )
    return str(token)


class MissingTokenError(ConfigError):
    """A special token is in no file and was not added."""


def token_id(raw: RawTokenizer, token: str) -> int:
    """Return the id of a token that is already in the vocabulary. Raises MissingTokenError."""
    found = raw.token_to_id(token)
    if found is None:
        raise MissingTokenError(f"the special token {quote(token)} is not in the vocabulary")
    return found


def template(
    single: str | Sequence[str], pair: str | Sequence[str], tokens: Sequence[str] | Mapping[str, str]
) -> Callable[[RawTokenizer], Any]:
    """Return a function that makes a post-processor, which puts tokens around texts.

    single, pair: in the syntax of the tokenizers library. tokens: the special tokens in them, or a mapping from the
    names in them to the tokens whose ids they get.
    """
    named = tokens if isinstance(tokens, Mapping) else {token: token for token in tokens}
    return lambda raw: call_library(
        processors.TemplateProcessing,
        single=single,
        pair=pair,
        special_tokens=[(name, token_id(raw, token)) for name, token in named.items()],
    )


def roberta_post(
    cls: str, sep: str, *, trim_offsets: bool = True, add_prefix_space: bool = False
) -> Callable[[RawTokenizer], Any]:
    """Return a function that makes RoBERTa's post-processor: `<s> A </s>` and `<s> A </s></s> B </s>`."""
    return lambda raw: call_library(
        processors.RobertaProcessing,
        (sep, token_id(raw, sep)),
        (cls, token_id(raw, cls)),
        trim_offsets=trim_offsets,
        add_prefix_space=add_prefix_space,
    )


def cls_sep_template(cls: str, sep: str, *, cls_type: int = 0) -> Callable[[RawTokenizer], Any]:
    """Return a function that makes BERT's post-processor: `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`.

    The second text has type 1.
    """
    single = f"{cls}:{cls_type} $A:0 {sep}:0"
    return template(single, f"{single} $B:1 {sep}:1", [cls, sep])
