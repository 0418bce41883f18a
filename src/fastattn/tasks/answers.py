"""Finds the best spans of tokens for an answer, as transformers 4 does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastattn.tasks.softmax import softmax

if TYPE_CHECKING:
    from tokenizers import Encoding as RawEncoding

Logits = NDArray[np.floating[Any]]
_MASKED = -10000.0  # the logit of tokens outside the context


class Answer(TypedDict):
    """An answer: its score, its position in the context in characters, and its text."""

    score: float
    start: int
    end: int
    answer: str


@dataclass(frozen=True, slots=True)
class Passage:
    """The context of a question, or a part of it, in the tokens of a sequence.

    in_context: which tokens belong to the context. known: which tokens the softmax covers: those of the context, and
    the one that stands for no answer. sequence: 0 or 1, the context's number.
    """

    context: str
    in_context: NDArray[np.bool_]
    known: NDArray[np.bool_]
    encoding: RawEncoding
    sequence: int


@dataclass(frozen=True, slots=True)
class Span:
    """The first and the last token of an answer, and their probability."""

    first: int
    last: int
    score: float


def _probabilities(passage: Passage, logits: Logits) -> NDArray[np.float64]:
    return softmax(np.where(passage.known, logits, _MASKED))


def empty_probability(passage: Passage, start: Logits, end: Logits) -> float:
    """Return the probability that the first token, which stands for no answer, is the answer."""
    return float(_probabilities(passage, start)[0] * _probabilities(passage, end)[0])


def best_spans(passage: Passage, start: Logits, end: Logits, top_k: int, max_answer_len: int) -> list[Span]:
    """Return the top_k most probable spans, without those outside the context, so there may be fewer."""
    first, last = _probabilities(passage, start), _probabilities(passage, end)
    first[0] = last[0] = 0.0
    scores = np.tril(np.triu(np.outer(first, last)), max_answer_len - 1)
    best = np.argsort(-scores, axis=None, kind="stable")[:top_k]
    rows, columns = np.unravel_index(best, scores.shape)
    inside = passage.in_context
    return [
        Span(int(i), int(j), float(scores[i, j]))
        for i, j in zip(rows, columns, strict=True)
        if inside[i] and inside[j] and i <= j < i + max_answer_len
    ]


def place_of_span(passage: Passage, span: Span, *, align: bool) -> Answer:
    """Return the answer for a span. align: extend it to whole words if the tokenizer knows them."""
    start, end = passage.encoding.offsets[span.first][0], passage.encoding.offsets[span.last][1]
    words = [passage.encoding.word_ids[token] for token in (span.first, span.last)]
    if align and words[0] is not None and words[1] is not None:
        first = passage.encoding.word_to_chars(words[0], passage.sequence)
        last = passage.encoding.word_to_chars(words[1], passage.sequence)
        if first is not None and last is not None:
            start, end = first[0], last[1]
    return {"score": span.score, "start": start, "end": end, "answer": passage.context[start:end]}
