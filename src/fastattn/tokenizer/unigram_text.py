"""SentencePiece's Unigram segmentation and decoding, bit-identical to the sentencepiece package.

The tokenizers library differs in two ways. It applies the normalization table to grapheme clusters, while SentencePiece
uses the longest rule at each character. It adds scores in float64, while SentencePiece rounds each sum to float32,
which decides ties. Tokenizer classes that use the sentencepiece package in transformers need the package's results.

Algorithm: T. Kudo, "Subword Regularization" (2018). Normalization table: the double array of Darts-clone.
"""

from __future__ import annotations

import math
import re
import struct
from array import array

from fastattn.errors import ConfigError
from fastattn.tokenizer.folder import format_error
from fastattn.tokenizer.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    check_splits,
)

_SPACE = "\u2581"
_UNKNOWN_PENALTY = 10.0  # the score of an unknown character is this much below the lowest normal score
_MISSING = float("inf")  # compared by identity
_PRINTABLE = range(0x21, 0x7F)


class UnigramText:
    """Converts text to pieces and pieces to text, for one Unigram model."""

    def __init__(self, model: SentencePieceModel) -> None:
        """Prepare a model. Raises ConfigError if it is not supported, ModelFormatError if it is malformed."""
        problem = _unsupported(model)
        if problem:
            raise ConfigError(f"{model.path}: {problem}")
        check_splits(model.path, model.ids)
        self._model = model
        self._rules = _Rules(model)
        self._symbols = {piece.text.encode() for piece in model.pieces if piece.kind == USER_DEFINED}
        self._symbol_lengths = sorted({len(symbol) for symbol in self._symbols}, reverse=True)
        plain = b"" if self._symbols else self._rules.plain()
        self._plain = re.compile(b"[" + re.escape(plain) + rb"]+(?=[ -~]|\Z)") if plain else None
        self._kinds = {piece.text: piece.kind for piece in model.pieces}
        normal = [piece.score for piece in model.pieces if piece.kind == NORMAL]
        self._unknown_score = array("f", (min(normal) - _UNKNOWN_PENALTY,))[0]
        self._scores = _scores(model, max(normal))

    def pieces(self, text: str) -> list[str]:
        """Split a text into pieces. A run of unknown characters is one piece."""
        return self._split(self.normalize(text))

    def normalize(self, text: str) -> str:
        """Apply the model's normalization rules to a text, with "▁" for spaces."""
        model, data = self._model, text.encode()
        start = 0
        while model.remove_extra_whitespaces and start < len(data):
            length, found = self._next(data, start)
            if found != b" ":
                break
            start += length
        if start == len(data):
            return ""
        space = _SPACE.encode()
        out = bytearray(space if model.add_dummy_prefix else b"")
        after_space = model.remove_extra_whitespaces
        while start < len(data):
            length, found = self._next(data, start)
            start += length
            if after_space:
                found = found.lstrip(b" ")
            if found:
                out += found.replace(b" ", space)
                after_space = model.remove_extra_whitespaces and found.endswith(b" ")
        normalized = out.decode("utf-8", "replace")
        return normalized.rstrip(_SPACE) if model.remove_extra_whitespaces else normalized

    def decode(self, pieces: list[str]) -> str:
        """Return the text of pieces. Unknown pieces are unchanged."""
        model, text = self._model, ""
        strips = model.add_dummy_prefix or model.remove_extra_whitespaces
        stripped = False
        for piece in pieces:
            first = not text and not stripped
            kind = self._kinds.get(piece)
            stripped = False
            if kind is None:
                text += piece
            elif kind == UNKNOWN:
                text += model.unk_surface
            elif kind != CONTROL:
                if first and strips and piece.startswith(_SPACE):
                    piece = piece[1:]
                    stripped = not model.remove_extra_whitespaces
                text += piece.replace(_SPACE, " ")
        return text

    def _next(self, data: bytes, start: int) -> tuple[int, bytes]:
        """Return the number of bytes from `start` that are normalized together, and their replacement."""
        if self._plain is not None:
            run = self._plain.match(data, start)
            if run:
                return run.end() - start, run.group()
        for length in self._symbol_lengths:
            symbol = data[start : start + length]
            if symbol in self._symbols:
                return length, symbol
        length, found = self._rules.find(data, start)
        if length:
            return length, found
        lead = data[start]
        length = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        return length, data[start : start + length]

    def _split(self, text: str) -> list[str]:
        """Return the segmentation with the highest sum of scores (Viterbi)."""
        length = len(text)
        best = array("f", (0.0, *[-math.inf] * length))  # storing a sum rounds it to float32
        starts = [-1] * (length + 1)
        unknown = bytearray(length + 1)
        find = self._scores.get
        for start in range(length):
            here, alone = best[start], False
            for end in range(start + 1, length + 1):
                score = find(text[start:end], _MISSING)
                if score is _MISSING:
                    break
                if score is None:
                    continue
                before, total = best[end], here + score
                if total > before:
                    best[end] = total
                    if best[end] > before:  # the first of equal sums counts
                        starts[end], unknown[end] = start, False
                alone = alone or end == start + 1
            if not alone:
                end = start + 1
                before, best[end] = best[end], max(best[end], here + self._unknown_score)
                if best[end] > before:
                    starts[end], unknown[end] = start, True
        return _path(text, starts, unknown)


class _Rules:
    """The normalization table: byte strings and their replacements."""

    def __init__(self, model: SentencePieceModel) -> None:
        """Read the table. Raises ModelFormatError."""
        data = model.charsmap or struct.pack("<II", 4, 0)  # a table without rules
        size = int.from_bytes(data[:4], "little")
        if size % 4 or not 4 <= size <= len(data) - 4:
            raise format_error(
                model.path,
                "precompiled_charsmap: expected a table of the stated size, got a different one",
                "sentencepiece",
            )
        self._units = struct.unpack(f"<{size // 4}I", data[4 : 4 + size])
        self._texts = data[4 + size :]

    def find(self, data: bytes, start: int) -> tuple[int, bytes]:
        """Return the length of the longest rule that matches at `start` (0 for none), and its replacement."""
        units, n_units = self._units, len(self._units)
        node = _offset(units[0])
        length, at = 0, 0
        for i in range(start, len(data)):
            node ^= data[i]
            if node >= n_units or units[node] & 0x800000FF != data[i]:
                break
            unit = units[node]
            node ^= _offset(unit)
            if unit & 0x100 and node < n_units:  # a rule ends here
                length, at = i + 1 - start, units[node] & 0x7FFFFFFF
        return length, self._texts[at:].partition(b"\0")[0] if length else b""

    def plain(self) -> bytes:
        """Return the printable ASCII characters that do not begin any rule of ASCII characters."""
        pairs = {first: [bytes((first, second)) for second in _PRINTABLE] for first in _PRINTABLE}
        return bytes(first for first, texts in pairs.items() if not any(self.find(text, 0)[0] for text in texts))


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 0x200) >> 6)


def _scores(model: SentencePieceModel, highest: float) -> dict[str, float | None]:
    """Return the score of each piece, and None for prefixes of longer pieces."""
    found: dict[str, float | None] = {}
    for piece in model.pieces:
        if piece.kind == NORMAL:
            found[piece.text] = piece.score
        elif piece.kind == USER_DEFINED:  # high enough to be always chosen
            found[piece.text] = len(piece.text.encode()) * highest - 0.1
    for text in list(found):
        for end in range(1, len(text)):
            found.setdefault(text[:end], None)
    return found


def _path(text: str, starts: list[int], unknown: bytearray) -> list[str]:
    """Return the pieces of the best path, which is read from its end; adjacent unknown characters are joined."""
    pieces: list[str] = []
    end, last_unknown = len(text), False
    while end > 0:
        start = starts[end]
        if unknown[end] and last_unknown:
            pieces[-1] = text[start:end] + pieces[-1]
        else:
            pieces.append(text[start:end])
        last_unknown = bool(unknown[end])
        end = start
    return pieces[::-1]


def _unsupported(model: SentencePieceModel) -> str:
    """Return why the model is not supported, or "" if it is."""
    if model.algorithm != UNIGRAM:
        return "expected a Unigram model, got a BPE model, which fastattn does not support for this tokenizer class"
    if model.byte_fallback or any(piece.kind == BYTE for piece in model.pieces):
        return "byte_fallback is not supported for this tokenizer class"
    if model.whitespace_as_suffix:
        return "treat_whitespace_as_suffix is not supported"
    if model.denormalizes:
        return "a denormalizer_spec is not supported"
    if not model.escape_whitespaces:
        return "escape_whitespaces=false is not supported for this tokenizer class"
    if not any(piece.kind == NORMAL for piece in model.pieces):
        return "expected at least one normal piece, got none"
    if not all(math.isfinite(piece.score) for piece in model.pieces):
        return "expected finite scores"
    return ""
