"""Greedy and beam search of a recurrent model for one source. The result depends only on that source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Target ids so far, without the first one. logprob: their sum. state, feed: what the next step reads.

    probs: for each id, the attention to the source's tokens in the step that produced it.
    """

    ids: tuple[int, ...]
    logprob: float
    state: Floats
    feed: Floats | None
    probs: tuple[Floats, ...] = field(default=())

    def score(self, length_penalty: float) -> float:
        """Return the sum of the log-probabilities, divided by length ** length_penalty."""
        return float(self.logprob / max(1, len(self.ids)) ** length_penalty)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step of the decoder computed for one hypothesis."""

    logits: Floats
    state: Floats
    feed: Floats | None
    probs: Floats


class Search:
    """The search for one source, as transformers does it: finished hypotheses compete with unfinished ones.

    live: the hypotheses that the next step reads, the best first; none at the end.
    """

    def __init__(
        self, start: Hypothesis, *, eos_token_id: int, num_beams: int, max_new_tokens: int, length_penalty: float
    ) -> None:
        self.live: list[Hypothesis] = [start]
        self._finished: list[Hypothesis] = []
        self._eos, self._n, self._most, self._penalty = eos_token_id, num_beams, max_new_tokens, length_penalty

    @property
    def best(self) -> Hypothesis:
        """The best hypothesis at the end."""
        return max(self._finished, key=lambda found: found.score(self._penalty))

    def advance(self, results: Sequence[StepResult]) -> None:
        """Choose the next hypotheses from the results of the live ones."""
        candidates: list[tuple[float, int, int]] = []
        for i, (hypothesis, result) in enumerate(zip(self.live, results, strict=True)):
            logprobs = log_softmax(result.logits)
            # The highest scores of each hypothesis are enough. If scores are equal, the lowest id wins.
            highest = np.argsort(-logprobs, kind="stable")[: 2 * self._n]
            candidates += [(hypothesis.logprob + float(logprobs[j]), i, int(j)) for j in highest]
        candidates.sort(key=lambda found: (-found[0], found[1], found[2]))
        following: list[Hypothesis] = []
        for rank, (logprob, i, token) in enumerate(candidates[: 2 * self._n]):
            before, result = self.live[i], results[i]
            ids, probs = (*before.ids, token), (*before.probs, result.probs)
            made = Hypothesis(ids, logprob, result.state, result.feed, probs)
            if token != self._eos:
                following.append(made)
            elif rank < self._n:
                self._finish(made)
        self.live = following[: self._n]
        if self._is_done():
            self.live = []
        elif len(self.live[0].ids) >= self._most:
            for hypothesis in self.live:
                self._finish(hypothesis)
            self.live = []

    def _is_done(self) -> bool:
        """Return whether no live hypothesis can still be among the best, judging by the current scores."""
        if not self.live or (self._n == 1 and self._finished):
            return True
        full = len(self._finished) >= self._n
        return full and self.live[0].score(self._penalty) <= self._finished[-1].score(self._penalty)

    def _finish(self, hypothesis: Hypothesis) -> None:
        """Add a finished hypothesis if it is among the best; earlier ones win ties."""
        self._finished.append(hypothesis)
        self._finished.sort(key=lambda found: -found.score(self._penalty))
        del self._finished[self._n :]


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Return the log-probabilities of one row, in float64."""
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
