"""Loads the library's tokenizer and its settings from a folder's files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from fastattn.checkpoint.file_names import VOCABULARY_FILES
from fastattn.errors import ConfigError
from fastattn.settings import Settings
from fastattn.tokenizer import classes
from fastattn.tokenizer.backend import JsonSettings, assemble
from fastattn.tokenizer.draft import Draft, Token, read_draft, with_flags
from fastattn.tokenizer.folder import Folder
from fastattn.tokenizer.generic import raw_from_json, raw_from_sentencepiece
from fastattn.tokenizer.known_settings import finish
from fastattn.tokenizer.library import call_library, refusals_of
from fastattn.tokenizer.options import TokenizerOptions
from fastattn.tokenizer.parts import Parts, TokenizerClass
from fastattn.tokenizer.sentencepiece import (
    CONTROL,
    USER_DEFINED,
    SentencePieceModel,
    merges_by_id,
    parse_model,
)
from fastattn.tokenizer.vocabulary import (
    Vocabulary,
    check_tokenizer_json,
    from_tokenizer_json,
    from_vocab_json,
    from_vocab_txt,
    post_processor_json,
)

_log = logging.getLogger("fastattn")
_MARIAN = "MarianTokenizer"
_ANY_SCORES = (("a", 0.0), ("b", 0.0))  # placeholder scores: only the post-processor is used
_Loaded = tuple[RawTokenizer, TokenizerOptions, Path]
_GENERIC = TokenizerClass(name=classes.GENERIC, kind="", file="tokenizer.model", build=lambda *_: _no_parts())


def load_raw(folder: Folder, settings: Settings) -> _Loaded:
    """Load the library's tokenizer, its settings, and the path of the file it comes from."""
    name = classes.find_class_name(folder, settings)
    entry = classes.find_class(name)
    from_json = folder.read(_tokenizer_file(settings)) is not None
    if entry is None and name is None:
        if not from_json and not folder.has(_GENERIC.file):
            entry = classes.class_of_files(folder)
    elif entry is None and name is not None and not classes.is_generic(name):
        if not from_json:
            raise classes.refuse(folder, name)
        _warn_of_class(folder, settings, name)
    loaded = _load(folder, settings, entry or _GENERIC, entry.name if entry else name, from_json=from_json)
    finish(settings)
    return loaded


def _load(folder: Folder, settings: Settings, entry: TokenizerClass, name: str | None, *, from_json: bool) -> _Loaded:
    if from_json:
        check_tokenizer_json(folder.path("tokenizer.json"), folder.json("tokenizer.json"))
    if entry.name == _MARIAN:
        from fastattn.tokenizer import marian

        if folder.has(*marian.FILES):
            return marian.load_marian(read_draft(folder, _MARIAN, settings, from_json=from_json))
        if not from_json:
            raise marian.missing_files(folder)
        _warn_of_class(folder, settings, _MARIAN)  # the class's files were converted to a tokenizer.json
        entry = _GENERIC
    draft = read_draft(folder, name or "", settings, from_json=from_json)
    if from_json:
        return _from_json(draft, entry, folder.path("tokenizer.json"))
    model = _sentencepiece(folder, entry)
    if entry is _GENERIC or (entry.follows_file and model is not None):
        return _generic_sentencepiece(draft, entry, model)
    if model is not None:
        _use_control_pieces(draft, model)
    tokens = _tokens(draft, entry)
    vocab = _vocabulary(draft, entry, model, tokens)
    with refusals_of(vocab.path):
        parts = entry.build(draft, vocab, tokens)
        raw, options = assemble(draft, entry, tokens, JsonSettings(), parts=parts, from_json=False)
    return raw, options, vocab.path


def _from_json(draft: Draft, entry: TokenizerClass, path: Path) -> _Loaded:
    tokens = _tokens(draft, entry)
    if entry is _GENERIC or entry.follows_file:
        raw = raw_from_json(draft)
        with refusals_of(path):
            parts = None if entry is _GENERIC else entry.build(draft, Vocabulary(path=path, scores=_ANY_SCORES), tokens)
            raw, options = assemble(draft, entry, tokens, JsonSettings.of(raw), raw=raw, parts=parts, from_json=True)
        return raw, options, path
    vocab = from_tokenizer_json(draft.folder, entry.kind or "Unigram")
    with refusals_of(path):
        found = JsonSettings.of(
            call_library(RawTokenizer.from_str, post_processor_json(draft.folder.json("tokenizer.json")))
        )
        parts = entry.build(draft, vocab, tokens)
        raw, options = assemble(draft, entry, tokens, found, parts=parts, from_json=True)
    return raw, options, path


def _generic_sentencepiece(draft: Draft, entry: TokenizerClass, model: SentencePieceModel | None) -> _Loaded:
    if model is None:
        raise _no_files(draft.folder, "tokenizer.json, tokenizer.model, vocab.json and merges.txt, or vocab.txt")
    _use_control_pieces(draft, model)
    defaults = {"bos": (model.bos_id, model.bos_piece), "eos": (model.eos_id, model.eos_piece)}
    defaults["unk"] = (model.unk_id, model.unk_piece)
    tokens: dict[str, Token | None] = {**entry.tokens}
    tokens.update({role: piece for role, (i, piece) in defaults.items() if i >= 0})
    tokens.update(draft.roles)
    user_defined = {piece.text for piece in model.pieces if piece.kind == USER_DEFINED}
    draft.additional = [token for token in draft.additional or () if str(token) not in user_defined]
    raw = raw_from_sentencepiece(draft, model)
    if model.add_dummy_prefix:
        draft.added = {i: with_flags(token, normalized=False) for i, token in draft.added.items()}
    with refusals_of(model.path):
        raw, options = assemble(draft, entry, tokens, JsonSettings(), raw=raw, from_json=False)
    return raw, options, model.path


def _tokens(draft: Draft, entry: TokenizerClass) -> dict[str, Token | None]:
    tokens = entry.all_tokens(draft)
    if entry.additional is not None:
        draft.additional = entry.additional(draft, draft.additional, tokens)
    return tokens


def _vocabulary(
    draft: Draft, entry: TokenizerClass, model: SentencePieceModel | None, tokens: dict[str, Token | None]
) -> Vocabulary:
    """Read the vocabulary from the class's own file, if there is no tokenizer.json."""
    folder = draft.folder
    if model is not None:
        if entry.kind == "BPE":
            ids = model.ids
            merges = merges_by_id(ids, model.path)
            return Vocabulary(path=model.path, ids=ids, merges=merges, charsmap=model.charsmap, unk_id=model.unk_id)
        scores = model.scores if entry.scores is None else entry.scores(model, tokens, draft)
        return Vocabulary(path=model.path, scores=scores, charsmap=model.charsmap, unk_id=model.unk_id)
    found = from_vocab_txt(folder) if entry.file == "vocab.txt" else None
    if entry.file == "vocab.json":
        found = from_vocab_json(folder)
    if found is None:
        names = "vocab.json and merges.txt" if entry.file == "vocab.json" else entry.file
        wanted = f"tokenizer.json or {names}" if names else "tokenizer.json"
        raise _no_files(folder, f"{wanted}, which {entry.name} reads")
    return found


def _sentencepiece(folder: Folder, entry: TokenizerClass) -> SentencePieceModel | None:
    """Read the class's SentencePiece file. As in transformers, tokenizer.model takes precedence over other names."""
    if entry.file in ("vocab.txt", "vocab.json"):
        return None
    for name in ("tokenizer.model", entry.file):
        data = folder.read(name) if name else None
        if data is not None:
            return parse_model(folder.path(name), data)
    return None


def _no_files(folder: Folder, wanted: str) -> ConfigError:
    for name in ("tekken.json", "tiktoken.model"):
        if folder.has(name):
            return ConfigError(
                f"{folder.path(name)}: files of this kind are not supported. Save a tokenizer.json with transformers: "
                "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
    others = [name for name in VOCABULARY_FILES if folder.has(name)]
    found = f"{', '.join(others)}, which this tokenizer class does not read" if others else "no tokenizer file"
    return ConfigError(f"{folder.directory}: expected {wanted}; found {found}")


def _use_control_pieces(draft: Draft, model: SentencePieceModel) -> None:
    """Use control and user-defined pieces as `additional_special_tokens`, instead of those in the files."""
    draft.additional = [
        AddedToken(piece.text, normalized=False, special=piece.kind == CONTROL)
        for piece in model.pieces
        if piece.kind in (CONTROL, USER_DEFINED)
    ]


def _tokenizer_file(settings: Settings) -> str:
    """Return "tokenizer.json". Raises ConfigError for a list of files for different versions of transformers."""
    names: Sequence[str] = settings.texts("fast_tokenizer_files")
    others = [name for name in names if name != "tokenizer.json"]
    if others:
        raise settings.error("fast_tokenizer_files", "only tokenizer.json")
    return "tokenizer.json"


def _warn_of_class(folder: Folder, settings: Settings, name: str) -> None:
    """Log a warning if transformers would do more than apply tokenizer.json."""
    path = folder.path("tokenizer.json")
    if "auto_map" in settings:
        _log.warning("%s: the code that auto_map names never runs; %s is used unchanged", settings.where, path)
    elif classes.has_rules(name):
        _log.warning("%s: fastattn does not implement the rules of %s; the file is used unchanged", path, name)


def _no_parts() -> Parts:
    raise AssertionError("a generic tokenizer has no parts")
