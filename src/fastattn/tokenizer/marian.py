"""MarianTokenizer: two SentencePiece models, and a separate vocabulary for the pieces of both.

As in transformers, source.spm (for `text_target`: target.spm) splits a text into pieces, and vocab.json gives the id of
each piece, or the id of the unknown token. A text may begin with a language code, such as `>>fr<<`, which is one token.
transformers loads the punctuation normalizer of sacremoses but never calls it, so we do not use it either.

In the tokenizers library this is a WordLevel model with a pre-tokenizer and a decoder written in Python. These work on
copies of the text, so the positions of tokens in the text are unknown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import NormalizedString, models
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.decoders import Decoder
from tokenizers.pre_tokenizers import PreTokenizer

from fastattn.checks import quote
from fastattn.errors import ConfigError, InputError
from fastattn.tokenizer.backend import JsonSettings, assemble
from fastattn.tokenizer.draft import Draft, with_flags
from fastattn.tokenizer.folder import Folder, format_error
from fastattn.tokenizer.library import called_back, file_errors
from fastattn.tokenizer.limits import ADDED_TOKEN_FLAGS, NO_LIMIT
from fastattn.tokenizer.options import TokenizerOptions
from fastattn.tokenizer.parts import Parts, TokenizerClass, needed, token_id
from fastattn.tokenizer.sentencepiece import parse_model
from fastattn.tokenizer.unigram_text import UnigramText
from fastattn.tokenizer.vocabulary import check_ids

FILES = ("source.spm", "target.spm", "vocab.json")
_SPACE = "\u2581"
_MAX_LENGTH = 512
CLASS = TokenizerClass(
    name="MarianTokenizer",
    kind="",
    file="source.spm",
    build=lambda draft, vocab, tokens: _parts(needed(draft, tokens, "eos")),
    tokens={"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
)


@dataclass(frozen=True, slots=True)
class MarianSteps:
    """The steps of a Marian tokenizer that are written in Python. A pickle contains its source files."""

    directory: Path
    files: Mapping[str, bytes]
    source: UnigramText
    target: UnigramText

    @classmethod
    def of(cls, directory: Path, files: Mapping[str, bytes]) -> MarianSteps:
        """Build the steps from the contents of source.spm and target.spm. Raises ConfigError, ModelFormatError."""
        source, target = (UnigramText(parse_model(directory / name, files[name])) for name in FILES[:2])
        return cls(directory, files, source, target)

    def __reduce__(self) -> tuple[Any, ...]:
        return MarianSteps.of, (self.directory, dict(self.files))

    def attach(self, raw: RawTokenizer, *, target: bool = False) -> None:
        """Set the pre-tokenizer and the decoder, of the target language if `target` is true."""
        pieces = self.target if target else self.source
        added = {token.content: token for token in raw.get_added_tokens_decoder().values()}
        special = {name for name, token in added.items() if token.special}
        n_pieces = raw.get_vocab_size(with_added_tokens=False)
        outside = {name for name in added if (raw.token_to_id(name) or 0) >= n_pieces}
        raw.pre_tokenizer = PreTokenizer.custom(_Splitter(pieces, frozenset(outside)))
        raw.decoder = Decoder.custom(_Joiner(pieces, frozenset(special)))

    def without_added_tokens(self, raw: RawTokenizer) -> RawTokenizer:
        """Return a tokenizer that splits added tokens in a text like other text."""
        copy = RawTokenizer(raw.model)
        copy.pre_tokenizer = raw.pre_tokenizer
        return copy

    def save(self, raw: RawTokenizer, config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        """Write the files that the class reads, and return their paths."""
        vocab = raw.get_vocab(with_added_tokens=False)
        added = {
            i: {name: getattr(token, name) for name in ("content", *ADDED_TOKEN_FLAGS)}
            for i, token in raw.get_added_tokens_decoder().items()
        }
        contents = {
            **self.files,
            "vocab.json": _json({token: vocab[token] for token in sorted(vocab, key=vocab.__getitem__)}),
            "tokenizer_config.json": _json(
                {"model_max_length": NO_LIMIT, **config, "tokenizer_class": CLASS.name, "added_tokens_decoder": added}
            ),
        }
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        return tuple(str(folder / name) for name in contents)


def load_marian(draft: Draft) -> tuple[RawTokenizer, TokenizerOptions, Path]:
    """Load the tokenizer of a folder with the files of the class. Raises ConfigError, ModelFormatError."""
    folder, settings = draft.folder, draft.settings
    if settings.flag("separate_vocabs", False):
        raise settings.error("separate_vocabs", "false: a vocabulary for each language is not supported")
    if settings.table("sp_model_kwargs"):
        raise settings.error("sp_model_kwargs", "{}: sampling is not supported")
    vocab = _vocabulary(folder)
    steps = MarianSteps.of(folder.directory, {name: _content(folder, name) for name in FILES[:2]})
    tokens = CLASS.all_tokens(draft)
    unk, path = needed(draft, tokens, "unk"), folder.path("vocab.json")
    if unk not in vocab:
        raise ConfigError(f"{path}: expected the unknown token {quote(unk)}, which unk_token names, got none")
    with file_errors(path):
        raw = RawTokenizer(models.WordLevel(vocab=dict(vocab), unk_token=unk))
        parts = _parts(needed(draft, tokens, "eos"))
        raw, options = assemble(draft, CLASS, tokens, JsonSettings(), raw=raw, parts=parts, from_json=False)
        _check_added_ids(draft, raw)
        raw = _with_special(
            raw, {*options.special_tokens.values(), *options.extra_special_tokens, *map(str, draft.named.values())}
        )
        steps.attach(raw)
    if not {"model_max_length", "max_len"} & settings.values.keys():
        options = replace(options, model_max_length=_MAX_LENGTH)
    return raw, replace(options, steps=steps), path


def missing_files(folder: Folder) -> ConfigError:
    """Return the error for a folder that lacks files of the class."""
    missing = [name for name in FILES if not folder.has(name)]
    return ConfigError(
        f"{folder.directory}: expected {', '.join(FILES[:-1])} and {FILES[-1]}, which {CLASS.name} reads; "
        f"missing: {', '.join(missing)}"
    )


class _Splitter:
    """A pre-tokenizer that makes each piece of a text a separate word."""

    def __init__(self, pieces: UnigramText, outside: frozenset[str]) -> None:
        """outside: the added tokens that are not in vocab.json."""
        self._pieces, self._outside = pieces, outside

    def pre_tokenize(self, text: Any) -> None:
        """Split the part of a text between added tokens; the library calls this."""
        text.split(self._split)

    def _split(self, _: int, part: NormalizedString) -> list[NormalizedString]:
        with called_back():
            return [NormalizedString(piece) for piece in self._pieces_of(part.normalized)]

    def _pieces_of(self, text: str) -> list[str]:
        code = []
        end = text.find("<<") if text.startswith(">>") else -1
        if end >= 0:
            code, text = [text[: end + 2]], text[end + 2 :]
        pieces = [*code, *self._pieces.pieces(text)]
        if not self._outside.isdisjoint(pieces):  # the library's model has no id for it
            found = next(piece for piece in pieces if piece in self._outside)
            raise InputError(f"split_special_tokens: the added token {quote(found)} is a piece of the text")
        return pieces


class _Joiner:
    """A decoder in which SentencePiece joins the pieces between special tokens. A space follows each special token."""

    def __init__(self, pieces: UnigramText, special: frozenset[str]) -> None:
        self._pieces, self._special = pieces, special

    def decode(self, tokens: list[str]) -> str:
        """Return the text of all tokens."""
        with called_back():
            return self._join(tokens)

    def decode_chain(self, tokens: list[str]) -> list[str]:
        """Return the text in a list, as the library requires."""
        return [self.decode(tokens)]

    def _join(self, tokens: list[str]) -> str:
        out = ""
        pieces: list[str] = []
        for token in tokens:
            if token in self._special:
                out += f"{self._pieces.decode(pieces)}{token} "
                pieces = []
            else:
                pieces.append(token)
        out += self._pieces.decode(pieces)
        return out.replace(_SPACE, " ").strip()


def _parts(eos: str) -> Parts:
    """Return parts that add the end token after a text, and once after a pair."""
    from tokenizers.processors import TemplateProcessing

    return Parts(
        model=None,
        pre_tokenizer=None,
        decoder=None,
        post=lambda raw: TemplateProcessing(
            single=["$A", eos], pair=["$A", "$B", eos], special_tokens=[(eos, token_id(raw, eos))]
        ),
    )


def _content(folder: Folder, name: str) -> bytes:
    data = folder.read(name)
    if data is None:
        raise missing_files(folder)
    return data


def _vocabulary(folder: Folder) -> Mapping[str, int]:
    path = folder.path("vocab.json")
    _content(folder, "vocab.json")
    vocab = check_ids(path, folder.json("vocab.json"))
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise format_error(path, f"expected each id from 0 to {len(vocab) - 1} once, got gaps or duplicates")
    return vocab


def _check_added_ids(draft: Draft, raw: RawTokenizer) -> None:
    """Refuse added tokens whose id differs from the vocabulary's; transformers would use the id of the files."""
    for i, token in sorted(draft.added.items()):
        found = raw.token_to_id(token.content)
        if found != i:
            raise ConfigError(
                f"{draft.added_path}: {quote(token.content)}: expected the id {found}, which follows from "
                f"vocab.json, got {i}"
            )


def _with_special(raw: RawTokenizer, special: set[str]) -> RawTokenizer:
    """Return a copy in which exactly these tokens are special.

    In transformers' Python tokenizers, the roles decide which tokens are special.
    """
    copy = RawTokenizer(raw.model)
    copy.add_tokens(
        [
            with_flags(token, special=token.content in special)
            for _, token in sorted(raw.get_added_tokens_decoder().items())
        ]
    )
    copy.post_processor = raw.post_processor
    return copy


def _json(value: Mapping[Any, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
