"""Reads SentencePiece model files without the sentencepiece package.

The file is a protocol buffer: pieces (text, score, type), a trainer_spec and a normalizer_spec. Format:
sentencepiece_model.proto in https://github.com/google/sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastattn.tokenizer.folder import format_error
from fastattn.tokenizer.vocabulary import check_tokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
_MAX_PIECES = 2**21
_MAX_SPLITS = 5 * 10**7


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of the vocabulary; its id is its position."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SentencePieceModel:
    """The parts of a model file that affect tokenization."""

    path: Path
    pieces: tuple[Piece, ...]
    algorithm: int
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    unk_piece: str
    bos_piece: str
    eos_piece: str
    charsmap: bytes | None
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    whitespace_as_suffix: bool
    unk_surface: str
    denormalizes: bool

    @property
    def scores(self) -> list[tuple[str, float]]:
        """The pieces and scores in the order of their ids."""
        return [(piece.text, piece.score) for piece in self.pieces]

    @property
    def ids(self) -> dict[str, int]:
        """Piece to id; if a piece occurs twice, its last id."""
        return {piece.text: i for i, piece in enumerate(self.pieces)}


def parse_model(path: Path, data: bytes) -> SentencePieceModel:
    """Parse the content of a model file. Raises ModelFormatError."""
    try:
        return _parse(path, data)
    except _WireError as error:
        raise format_error(path, f"expected a SentencePiece model: {error}", "sentencepiece") from None


def merges_by_id(vocab: dict[str, int], path: Path) -> list[tuple[str, str]]:
    """Return the BPE merges of a vocabulary without scores: every split of a token into two, in order of ids."""
    check_splits(path, vocab)
    return _splits(vocab)


def merges_by_score(model: SentencePieceModel, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Return the BPE merges of the normal pieces, best score first."""
    return merges_of_pieces(model.path, model.pieces, vocab)


def merges_of_pieces(path: Path, pieces: Sequence[Piece], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the BPE merges of the normal pieces, best score first. vocab: the names of the pieces, to their ids."""
    check_splits(path, vocab)
    names = {i: token for token, i in vocab.items()}
    normal = [(i, piece.score) for i, piece in enumerate(pieces) if piece.kind == NORMAL and i in names]
    return _splits({names[i]: (-score, i) for i, score in normal})


def _splits(ranks: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return every split of a token into two tokens, by the rank of the token; its splits are in order of position."""
    splits = [
        (rank, at, token[:at], token[at:])
        for token, rank in ranks.items()
        for at in range(1, len(token))
        if token[:at] in ranks and token[at:] in ranks
    ]
    return [(left, right) for _, _, left, right in sorted(splits)]


def check_splits(path: Path, vocab: Mapping[str, int]) -> None:
    """Limit the work of trying every split of every token. Raises ModelFormatError."""
    if sum(len(token) ** 2 for token in vocab) > _MAX_SPLITS:
        raise format_error(path, "expected shorter pieces: their merges take too long to compute", "sentencepiece")


class _WireError(ValueError):
    """The bytes are not the protocol buffer of a SentencePiece model."""


@dataclass(frozen=True, slots=True)
class _Field:
    number: int
    varint: int | None = None
    data: bytes | None = None

    def integer(self) -> int:
        if self.varint is None:
            raise _WireError(f"field {self.number}: expected an integer")
        low = self.varint & 0xFFFFFFFF
        return low - 2**32 if low >= 2**31 else low

    def bytes(self) -> bytes:
        if self.data is None:
            raise _WireError(f"field {self.number}: expected bytes")
        return self.data

    def text(self) -> str:
        try:
            return self.bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise _WireError(f"field {self.number}: expected UTF-8, got {error.reason}") from None

    def number32(self) -> float:
        data = self.bytes()
        if len(data) != 4:
            raise _WireError(f"field {self.number}: expected a 32-bit float")
        return float(struct.unpack("<f", data)[0])


def _fields(data: bytes) -> Iterator[_Field]:
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise _WireError("field number 0")
        if wire_type == 0:
            value, at = _varint(data, at)
            yield _Field(number, varint=value)
            continue
        if wire_type == 2:
            size, at = _varint(data, at)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise _WireError(f"field {number} has the unknown wire type {wire_type}")
        if size > end - at:
            raise _WireError(f"field {number} needs {size} bytes, and {end - at} are left")
        yield _Field(number, data=data[at : at + size])
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _WireError("the data ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _WireError("a number of more than 64 bits")


def _parse(path: Path, data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    trainer: dict[int, _Field] = {}
    normalizer: dict[int, _Field] = {}
    denormalizer: dict[int, _Field] = {}
    for part in _fields(data):
        if part.number == 1:
            if len(pieces) == _MAX_PIECES:
                raise _WireError(f"more than {_MAX_PIECES} pieces")
            pieces.append(_piece(part.bytes()))
        elif part.number in (2, 3, 5):
            target = {2: trainer, 3: normalizer, 5: denormalizer}[part.number]
            target.update((inner.number, inner) for inner in _fields(part.bytes()))
    if not pieces:
        raise _WireError("the model has no pieces")
    check_tokens(path, [piece.text for piece in pieces])

    def integer(fields: dict[int, _Field], number: int, default: int) -> int:
        return fields[number].integer() if number in fields else default

    def text(number: int, default: str) -> str:
        return trainer[number].text() if number in trainer else default

    algorithm = integer(trainer, 3, UNIGRAM)
    if algorithm not in (UNIGRAM, BPE):
        raise format_error(path, "expected a Unigram or BPE model, got a word or character model", "sentencepiece")
    return SentencePieceModel(
        path=path,
        pieces=tuple(pieces),
        algorithm=algorithm,
        byte_fallback=bool(integer(trainer, 35, 0)),
        unk_id=integer(trainer, 40, 0),
        bos_id=integer(trainer, 41, 1),
        eos_id=integer(trainer, 42, 2),
        unk_piece=text(45, "<unk>"),
        bos_piece=text(46, "<s>"),
        eos_piece=text(47, "</s>"),
        charsmap=(normalizer[2].bytes() or None) if 2 in normalizer else None,
        add_dummy_prefix=bool(integer(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(integer(normalizer, 4, 1)),
        escape_whitespaces=bool(integer(normalizer, 5, 1)),
        whitespace_as_suffix=bool(integer(trainer, 24, 0)),
        unk_surface=text(44, " \u2047 "),
        denormalizes=2 in denormalizer and bool(denormalizer[2].bytes()),
    )


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for part in _fields(data):
        if part.number == 1:
            text = part.text()
        elif part.number == 2:
            score = part.number32()
        elif part.number == 3:
            kind = part.integer()
    return Piece(text, score, kind)
