"""Tokens as a reader sees them: their text with visible control characters, and where words start."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.generation.decoders import token_bytes
from fastattn.tokenizer import Tokenizer

_NAMES = {"\n": "↵", "\t": "⇥", "\r": "␍", "\x7f": "␡"}
_WORD_STARTS = ("Ġ", "▁")  # how byte-level BPE and SentencePiece store a space


@dataclass(frozen=True, slots=True)
class Piece:
    """A token. text: what to show, never empty. starts_word: whether a space or nothing precedes it."""

    id: int
    token: str
    text: str
    starts_word: bool
    special: bool

    @property
    def quoted(self) -> str:
        """The text in quotes, as HTML."""
        return f"“<bdi>{html.escape(self.text)}</bdi>”"


def read_pieces(tokenizer: Tokenizer, ids: Sequence[int] | NDArray[Any]) -> list[Piece]:
    r"""Return the tokens of ids. A part of a character is shown as bytes in hex: \xe2."""
    special = set(tokenizer.all_special_ids)
    found = list[Piece]()
    for token_id in np.asarray(ids).tolist():
        token = tokenizer.convert_ids_to_tokens(token_id) or f"[{token_id}]"
        text = token if token_id in special else tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        starts = token.startswith(_WORD_STARTS) or text.startswith(" ")
        if "\N{REPLACEMENT CHARACTER}" in text or not text:
            text = token_bytes(token).decode(errors="backslashreplace")
        elif text.strip(" "):
            text = text.strip(" ")
        continues = token.startswith("##") or (not starts and _marks_words(found))
        found.append(Piece(token_id, token, visible(text), not continues, token_id in special))
    return found


def _marks_words(before: Sequence[Piece]) -> bool:
    """Return whether tokens show where a word starts, so that one without a mark continues the word before."""
    return any(piece.token.startswith(_WORD_STARTS) for piece in before)


def visible(text: str) -> str:
    """Replace control characters, and those that XML forbids, with visible ones; a text of spaces with ␣."""
    if text and not text.strip(" "):
        return "␣" * len(text)
    return "".join(_visible(letter) for letter in text)


def _visible(letter: str) -> str:
    if letter in _NAMES:
        return _NAMES[letter]
    code = ord(letter)
    if code < 32:
        return chr(0x2400 + code)
    if unicodedata.category(letter) in ("Cc", "Cf", "Cs") or code & 0xFFFE == 0xFFFE:
        return f"⟨{code:04X}⟩"
    return letter


def chip(piece: Piece, below: str = "", *, value: float | None = None, class_: str = "", title: str = "") -> str:
    """Return a token of a running text as HTML. value: how strongly it is shaded, 0 to 1. below: HTML under it."""
    classes = " ".join(filter(None, ("t", "w" if piece.starts_word else "", "s" if piece.special else "", class_)))
    style = "" if value is None else f' style="--v:{value:.3f}"'
    hint = f' title="{html.escape(title)}"' if title else ""
    under = f"<small>{below}</small>" if below else ""
    space = " " if piece.starts_word else ""  # between words, so that a copy of the text has them
    return f'{space}<span class="{classes}"{style}{hint}>{html.escape(piece.text)}{under}</span>'
