"""Joins classified tokens to words and entities, as transformers does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastattn.tokenizer import Tokenizer

Strategy: TypeAlias = Literal["none", "simple", "first", "average", "max"]
STRATEGIES: tuple[Strategy, ...] = ("none", "simple", "first", "average", "max")


class Entity(TypedDict, total=False):
    """A token or an entity of a text: its label, probability, text, and position in characters.

    Tokens have "entity" and "index", the number of the token; joined entities have "entity_group" instead.
    """

    entity: str
    entity_group: str
    score: float
    index: int
    word: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A token or word. scores [num_labels]; index: of the token; continues: whether it continues a word."""

    word: str
    scores: NDArray[np.float64]
    start: int
    end: int
    index: int = -1
    continues: bool = False

    @property
    def best(self) -> int:
        """The most probable label."""
        return int(self.scores.argmax())


def entities_of(
    pieces: Sequence[Piece], strategy: Strategy, labels: Sequence[str], tokenizer: Tokenizer
) -> list[Entity]:
    """Return the tokens of a text with their labels, or the entities that they form."""
    if strategy == "none":
        return [
            {
                "entity": labels[piece.best],
                "score": float(piece.scores[piece.best]),
                "index": piece.index,
                "word": piece.word,
                "start": piece.start,
                "end": piece.end,
            }
            for piece in pieces
        ]
    if strategy != "simple":
        pieces = [_joined(word, strategy, tokenizer) for word in _words(pieces)]
    return [_entity(group, labels, tokenizer) for group in _groups(pieces, labels)]


def _words(pieces: Sequence[Piece]) -> list[list[Piece]]:
    words: list[list[Piece]] = []
    for piece in pieces:
        if words and piece.continues:
            words[-1].append(piece)
        else:
            words.append([piece])
    return words


def _joined(word: Sequence[Piece], strategy: Strategy, tokenizer: Tokenizer) -> Piece:
    """Return a word with one row of scores: that of its first or most certain token, or the mean of all its tokens."""
    if strategy == "first":
        scores = word[0].scores
    elif strategy == "max":
        scores = max(word, key=lambda piece: float(piece.scores.max())).scores
    else:
        scores = np.stack([piece.scores for piece in word]).mean(axis=0)
    text = tokenizer.convert_tokens_to_string([piece.word for piece in word])
    return Piece(text, scores, word[0].start, word[-1].end)


def _groups(pieces: Sequence[Piece], labels: Sequence[str]) -> list[list[Piece]]:
    """Return runs of pieces with one label. A label that begins with B- starts a new run."""
    groups: list[list[Piece]] = []
    last = ""
    for piece in pieces:
        label = labels[piece.best]
        tag = label[2:] if label.startswith(("B-", "I-")) else label
        if groups and tag == last and not label.startswith("B-"):
            groups[-1].append(piece)
        else:
            groups.append([piece])
        last = tag
    return groups


def _entity(group: Sequence[Piece], labels: Sequence[str], tokenizer: Tokenizer) -> Entity:
    return {
        "entity_group": labels[group[0].best].split("-", 1)[-1],
        "score": float(np.mean([piece.scores[piece.best] for piece in group])),
        "word": tokenizer.convert_tokens_to_string([piece.word for piece in group]),
        "start": group[0].start,
        "end": group[-1].end,
    }


def without_overlaps(entities: Sequence[Entity]) -> list[Entity]:
    """Return the entities of overlapping text parts, in order.

    Of two that overlap, keep the longer one; if they are equally long, the more probable one.
    """
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda found: found["start"]):
        last = kept[-1] if kept else None
        if last is None or not last["start"] <= entity["start"] < last["end"]:
            kept.append(entity)
        elif (entity["end"] - entity["start"], entity["score"]) > (last["end"] - last["start"], last["score"]):
            kept[-1] = entity
    return kept
