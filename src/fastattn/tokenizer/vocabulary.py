"""Reads and checks vocabularies and merges: vocab.txt, vocab.json, merges.txt, and the model of a tokenizer.json."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastattn.checks import is_text, quote
from fastattn.errors import ModelFormatError
from fastattn.tokenizer.folder import Folder, format_error
from fastattn.tokenizer.limits import MAX_TOKEN_CHARS

MAX_ID = 2**31 - 1
# Characters that Rust's `trim_end` removes.
_RUST_SPACES = (
    "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The data for a model of the tokenizers library.

    ids: token to id (WordPiece, BPE). scores: tokens with their scores, in the order of their ids (Unigram).
    charsmap: the precompiled normalization table of a SentencePiece model.
    unk_id: the id of the unknown token of a SentencePiece model; None for other files.
    """

    path: Path
    ids: Mapping[str, int] = field(default_factory=dict)
    merges: Sequence[tuple[str, str]] = ()
    scores: Sequence[tuple[str, float]] = ()
    charsmap: bytes | None = None
    unk_id: int | None = None


def from_vocab_txt(folder: Folder, name: str = "vocab.txt") -> Vocabulary | None:
    """Read one token per line, as the tokenizers library does.

    Spaces at the end of a line and Windows line ends are not part of the token. Of equal lines, the last one counts.
    """
    text = folder.text(name)
    if text is None:
        return None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    tokens = [line.rstrip(_RUST_SPACES) for line in lines]
    check_tokens(folder.path(name), tokens)
    return Vocabulary(path=folder.path(name), ids={token: i for i, token in enumerate(tokens)})


def from_vocab_json(folder: Folder) -> Vocabulary | None:
    """Read vocab.json (token to id) and merges.txt. None if one of them is missing."""
    if folder.read("vocab.json") is None or folder.read("merges.txt") is None:
        return None
    path = folder.path("vocab.json")
    return Vocabulary(path=path, ids=check_ids(path, folder.json("vocab.json")), merges=_merges_txt(folder))


def from_tokenizer_json(folder: Folder, kind: str) -> Vocabulary:
    """Read the vocabulary of a checked tokenizer.json; its model must be of this kind."""
    path = folder.path("tokenizer.json")
    content = folder.json("tokenizer.json")
    model = content["model"]
    vocab = model["vocab"]
    charsmap = _charsmap(path, content.get("normalizer"))
    if isinstance(vocab, list):
        if kind != "Unigram":
            raise _wrong_kind(path, "Unigram", kind)
        return Vocabulary(path=path, scores=[(token, float(score)) for token, score in vocab], charsmap=charsmap)
    merges = _merges(path, model.get("merges", ()))
    found = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if found != kind:
        raise _wrong_kind(path, str(found), kind)
    return Vocabulary(path=path, ids=vocab, merges=merges, charsmap=charsmap)


def check_tokenizer_json(path: Path, content: Mapping[str, Any]) -> None:
    """Check types, token lengths and id ranges, which the tokenizers library does not. Raises ModelFormatError."""
    model = content.get("model")
    if not isinstance(model, dict):
        raise format_error(path, f'expected a tokenizer with an object "model", got {quote(model)}')
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        for entry in vocab:
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and _is_number(entry[1])):
                raise format_error(path, f"model.vocab: expected pairs of token and score, got {quote(entry)}")
        check_tokens(path, [token for token, _ in vocab])
    elif isinstance(vocab, dict):
        check_ids(path, vocab)
    else:
        raise format_error(path, f"expected a tokenizer with model.vocab, got {quote(vocab)}")
    if not isinstance(model.get("merges", []), list):
        raise format_error(path, f"model.merges: expected a list, got {quote(model['merges'])}")
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise format_error(path, f"added_tokens: expected a list, got {quote(added)}")
    for entry in added:
        if not (isinstance(entry, dict) and isinstance(entry.get("content"), str) and _is_id(entry.get("id"))):
            raise format_error(path, f"added_tokens: expected objects with id and content, got {quote(entry)}")
    check_tokens(path, [entry["content"] for entry in added])


def post_processor_json(content: Mapping[str, Any]) -> str:
    """Return tokenizer.json with the smallest vocabulary that loads, to read post-processor, padding and truncation."""
    model = dict(content["model"])
    if isinstance(model["vocab"], list):
        model.update(vocab=[["<unk>", 0.0]], unk_id=0)
    else:
        model["vocab"] = {}
        if "merges" in model:
            model["merges"] = []
    return json.dumps({**content, "model": model, "added_tokens": []})


def check_tokens(path: Path, tokens: Sequence[str]) -> None:
    """Check that every token is valid Unicode of at most MAX_TOKEN_CHARS characters. Raises ModelFormatError."""
    longest = max(tokens, key=len, default="")
    if len(longest) > MAX_TOKEN_CHARS:
        raise format_error(
            path,
            f"expected tokens of at most {MAX_TOKEN_CHARS} characters, got one of {len(longest)}: {quote(longest)}",
        )
    if not is_text("\n".join(tokens)):
        bad = next(token for token in tokens if not is_text(token))
        raise format_error(path, f"expected tokens of valid Unicode, got a lone surrogate in {quote(bad)}")


def check_ids(path: Path, vocab: Mapping[str, Any]) -> Mapping[str, int]:
    """Check every token and id, and return the vocabulary. Raises ModelFormatError."""
    check_tokens(path, list(vocab))
    ids = vocab.values()
    if set(map(type, ids)) <= {int} and min(ids, default=0) >= 0 and max(ids, default=0) <= MAX_ID:
        return vocab
    token, i = next((token, i) for token, i in vocab.items() if not _is_id(i))
    raise format_error(path, f"{quote(token)}: expected an id from 0 to {MAX_ID}, got {quote(i)}")


def _merges_txt(folder: Folder) -> list[tuple[str, str]]:
    """Read one merge per line: two tokens separated by a space. Blank lines at the end are skipped."""
    path = folder.path("merges.txt")
    lines = (folder.text("merges.txt") or "").split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    merges = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#version"):
            continue
        parts = line.removesuffix("\r").split(" ")
        if len(parts) != 2:
            raise format_error(path, f"line {number}: expected two tokens and a space between them, got {quote(line)}")
        merges.append((parts[0], parts[1]))
    check_tokens(path, [token for merge in merges for token in merge])
    return merges


def _merges(path: Path, merges: Iterable[Any]) -> list[tuple[str, str]]:
    """Read merges that are lists of two tokens, or two tokens separated by a space."""
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if type(merge) is str else merge
        if type(parts) is not list or len(parts) != 2 or type(parts[0]) is not str or type(parts[1]) is not str:
            raise format_error(path, f"model.merges: expected pairs of tokens, got {quote(merge)}")
        pairs.append((parts[0], parts[1]))
    return pairs


def _charsmap(path: Path, normalizer: object) -> bytes | None:
    """Return the table of the first Precompiled normalizer."""
    for entry in _steps(normalizer):
        encoded = entry.get("precompiled_charsmap")
        if entry.get("type") == "Precompiled" and encoded is not None:
            try:
                return base64.b64decode(encoded, validate=True)
            except (TypeError, ValueError, binascii.Error):
                raise format_error(path, f"precompiled_charsmap: expected base64, got {quote(encoded)}") from None
    return None


def _steps(normalizer: object) -> Iterable[Mapping[str, Any]]:
    if not isinstance(normalizer, dict):
        return ()
    steps = normalizer.get("normalizers") if normalizer.get("type") == "Sequence" else [normalizer]
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else ()


def _wrong_kind(path: Path, found: str, expected: str) -> ModelFormatError:
    return format_error(
        path,
        f"expected a {expected} model for its tokenizer class, got {quote(found)}; "
        'set "tokenizer_class" of tokenizer_config.json to "PreTrainedTokenizerFast" to use the file unchanged',
    )


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
