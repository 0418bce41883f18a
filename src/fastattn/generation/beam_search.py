"""Beam search, as transformers does it, with groups of diverse beams.

The scheduler runs a search as one request: it reads the prompt like any other, and then each step feeds all beams. The
search of a prompt depends on that prompt alone. Scores are float32, as in transformers. An unfinished beam ranks below
all finished ones by `_FAR`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.generation.feed import (
    check_any_left,
    clean_row,
    highest_ids,
    log_softmax,
    record_of,
    run_processors,
)
from fastattn.generation.filters import filtered
from fastattn.generation.processors import Processor, stops_at
from fastattn.generation.request import Request, TokenRecord
from fastattn.generation.stopping import TextState
from fastattn.graph.executor import Cache
from fastattn.models.outputs import FinishReason

_FAR = np.float32(-1e9)
Row = NDArray[np.floating[Any]]


@dataclass(slots=True, eq=False)
class Beam:
    """One beam: the ids of the prompt and its new tokens, the first `fed` of them in the cache.

    score: sum of the log-probabilities after processors. indices, logprobs, records: of each new token.
    """

    ids: list[int]
    prompt_len: int
    max_new_tokens: int
    eos_ids: frozenset[int]
    processors: tuple[Processor, ...]
    score: np.float32
    indices: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    records: list[TokenRecord] = field(default_factory=list)
    cache: Cache | None = None
    fed: int = 0
    forked: int = -1  # the length at which the cache became a copy of another one, with shared pages
    base: int = 0  # the cache begins with the first id
    proposed: Sequence[int] = ()

    @property
    def left(self) -> int:
        """The number of ids that are not in the cache."""
        return len(self.ids) - self.fed


@dataclass(frozen=True, slots=True)
class _Group:
    """The beams of a group. finished: pairs of score and beam, None for an empty place, the best first."""

    beams: list[Beam]
    finished: list[tuple[np.float32, Beam | None]]
    first_index: int
    improvable: bool = True
    done: bool = False


@dataclass(frozen=True, slots=True)
class SearchState:
    """The groups after `n_new` tokens. A step creates a new one, so an interrupted step can return to the last."""

    groups: tuple[_Group, ...]
    n_new: int = 0

    @property
    def live(self) -> list[Beam]:
        """The beams of the groups that go on."""
        return [beam for group in self.groups if not group.done for beam in group.beams]


class BeamSearch:
    """The search for one prompt. requests: one per text that is returned; they get the results at the end.

    The scheduler runs the first request. Its cache has the prompt; the caches of the beams are copies that share pages.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests, first = requests, requests[0]
        self._first, self._options = first, first.options
        n_groups = self._options.num_beam_groups
        self._n_beams = self._options.num_beams // n_groups
        start = Beam(
            list(first.ids), first.prompt_len, first.max_new_tokens, first.eos_ids, first.processors, np.float32(0)
        )
        self.state = SearchState(
            tuple(_Group([start], [(_FAR, None)] * self._n_beams, g * self._n_beams) for g in range(n_groups))
        )
        self._caches: list[Cache] = []  # of the beams
        self._fed = False  # whether the beams have caches

    @property
    def beams(self) -> list[Beam]:
        """The beams that a step feeds; none before the prompt is in the cache of the first request."""
        return self.state.live if self._fed else []

    @property
    def lengths(self) -> list[int]:
        """The number of ids of each beam that goes on."""
        if not self.state.n_new:
            return [self._first.prompt_len] * self._options.num_beams
        return [len(beam.ids) for beam in self.state.live]

    def most(self, room: int) -> int:
        """Return how many tokens of the beams the next step may feed: up to `room`, or the last one of every beam."""
        beams = self.beams
        behind = sum(beam.left - 1 for beam in beams)
        return min(behind, room) if behind else len(beams)

    def parts(self, count: int) -> list[tuple[Beam, int]]:
        """Split `count` tokens among the beams. Missing tokens come first; the last ones of all beams share a step."""
        if all(beam.left == 1 for beam in self.beams):
            return [(beam, 1) for beam in self.beams]
        parts = []
        for beam in self.beams:
            part = min(beam.left - 1, count)
            count -= part
            if part:
                parts.append((beam, part))
        return parts

    def advance(self, logits: Row) -> None:
        """Choose the next beams. logits [n_beams, vocab] of `beams`, or [1, vocab] of the prompt.

        At the end the requests have their results. If the search lost its caches and has read its prompt again, only
        give the beams new caches.
        """
        state = self.state
        if self._fed or not state.n_new:
            state = self._next(logits)
            if all(group.done for group in state.groups):
                self._finish(state, "stopping_criteria")
            self.state = state
        self._pass_caches()

    def expire(self) -> None:
        """End the search at the deadline of its requests, with the beams that it has."""
        self._finish(self.state, "time")

    def finish_empty(self) -> None:
        """End the search of requests for no new tokens."""
        self._finish(self.state, "length")

    def rewind(self, state: SearchState) -> None:
        """Return to the state before an interrupted step. The caches are closed later."""
        self.state = state
        for request in self.requests:
            request.rewind_ids(request.prompt_len)

    def close(self) -> None:
        """Free the memory of the beams."""
        self._fed = False
        for cache in self._caches:
            cache.close()
        self._forget_caches()

    def leak(self) -> list[Cache]:
        """Return the caches of the beams without freeing them."""
        caches = self._caches
        self._forget_caches()
        return caches

    def _forget_caches(self) -> None:
        self._fed, self._caches = False, []
        for beam in self.state.live:
            beam.cache, beam.fed = None, 0

    def _next(self, logits: Row) -> SearchState:
        """Return the state after a step."""
        state, used = self.state, list[int]()  # the tokens that earlier groups chose in this step
        groups, begin = list[_Group](), 0
        for group in state.groups:
            if group.done:
                groups.append(group)
                continue
            count = len(group.beams)
            rows = logits[begin : begin + count] if state.n_new else logits[:1]  # all groups share the prompt
            begin += count
            groups.append(self._advance_group(group, rows, used))
            used += [beam.ids[-1] for beam in groups[-1].beams]
        return SearchState(tuple(groups), state.n_new + 1)

    def _pass_caches(self) -> None:
        """Give each live beam the cache of its parent, a copy if it is not the first child; close the other caches."""
        taken: dict[int, Cache] = {}
        for beam in self.state.live:
            cache: Any = self._first.cache if beam.cache is None else beam.cache
            beam.fed = cache.length
            if cache is self._first.cache or id(cache) in taken:
                cache, beam.forked = cache.fork(), beam.fed
                self._caches.append(cache)
            beam.cache = taken[id(cache)] = cache
        for cache in self._caches:
            if id(cache) not in taken:
                cache.close()
        self._caches, self._fed = list(taken.values()), True

    def _advance_group(self, group: _Group, logits: Row, used: Sequence[int]) -> _Group:
        """Return a group after a step."""
        n_beams = self._n_beams
        parents = group.beams * (n_beams if len(group.beams) == 1 else 1)
        raw, scores, records = self._scores(group.beams, logits, used)
        if len(scores) < n_beams:  # all beams are the prompt: only the first counts
            scores = np.concatenate([scores, np.repeat(scores + _FAR, n_beams - 1, axis=0)])
            raw, records = np.repeat(raw, n_beams, axis=0), records * n_beams
        vocab = scores.shape[1]
        flat = scores.reshape(-1)
        check_any_left(flat, self.state.n_new + self._first.prompt_len)
        n_kept = min(max(2, 1 + len(self._first.eos_ids)) * n_beams, len(flat))
        best = self._chosen(flat, n_kept)
        candidates = []
        for at in best.tolist():
            parent, token_id = divmod(at, vocab)
            beam = parents[parent]
            child = Beam(
                [*beam.ids, token_id], beam.prompt_len, beam.max_new_tokens, beam.eos_ids, beam.processors, flat[at],
                [*beam.indices, group.first_index + parent], [*beam.logprobs, float(raw[parent, token_id])],
                [*beam.records, *records[parent]], beam.cache,
            )  # fmt: skip
            candidates.append(child)
        hits = np.array([self._ends(beam) for beam in candidates], np.bool_)
        running = flat[best] + hits.astype(np.float32) * _FAR
        order = np.argsort(-running, kind="stable")[:n_beams]
        finished = self._with_finished(group, candidates, hits)
        for i in order:
            candidates[i].score = running[i]
        return self._decided(replace(group, beams=[candidates[i] for i in order], finished=finished), hits)

    def _scores(self, beams: Sequence[Beam], logits: Row, used: Sequence[int]) -> tuple[Row, Row, list[Any]]:
        """Return the log-probabilities [n, vocab], the scores of the continuations [n, vocab], and the records."""
        options, raw, scores, records = self._options, [], [], []
        for beam, logit in zip(beams, logits, strict=True):
            forbidden = sorted(beam.eos_ids) if self.state.n_new < self._first.min_new_tokens else []
            row = log_softmax(clean_row(logit, options.nan, forbidden))
            processed = row.copy()
            processed[forbidden] = -np.inf
            processed = run_processors(beam, processed, may_be_empty=True)
            if not options.greedy:
                processed = filtered(processed, options, min_keep=max(2, len(beam.eos_ids) + 1))
            if options.diversity_penalty and used:
                counts = np.bincount(np.array(used), minlength=len(row))
                processed = processed - (options.diversity_penalty * counts).astype(row.dtype)
            records.append([record_of(options, logit, row, processed)] if options.records_tokens else [])
            raw.append(row)
            scores.append(processed.astype(np.float32) + beam.score)
        return np.stack(raw), np.stack(scores), records

    def _chosen(self, flat: NDArray[np.float32], count: int) -> NDArray[np.intp]:
        """Return the places of the continuations that are considered, the highest score first."""
        if self._options.greedy:
            return highest_ids(flat, count)
        # Gumbel-top-k draws without replacement, each in proportion to its probability (Kool et al. 2019).
        state = np.random.Philox(key=self._first.seed, counter=self._first.prompt_len + self.state.n_new)
        uniform = np.maximum(np.random.Generator(state).random(len(flat)), 2.0**-60)
        drawn = highest_ids(flat.astype(np.float64) - np.log(-np.log(uniform)), count)
        return drawn[np.argsort(-flat[drawn], kind="stable")]

    def _ends(self, beam: Beam) -> bool:
        first, options = self._first, self._options
        if beam.ids[-1] in first.eos_ids or len(beam.ids) - beam.prompt_len >= first.max_new_tokens:
            return True
        if options.stopping_criteria and stops_at(options.stopping_criteria, beam.ids):
            return True
        return first.text is not None and bool(options.stops()) and _has_stop(first.text, beam)

    def _with_finished(
        self, group: _Group, candidates: Sequence[Beam], hits: NDArray[np.bool_]
    ) -> list[tuple[np.float32, Beam | None]]:
        """Return the finished beams, with the candidates that ended and are among the best."""
        full = self._options.early_stopping is True and all(beam is not None for _, beam in group.finished)
        if full or not group.improvable:
            return group.finished
        length = np.float32((self.state.n_new + 1) ** self._options.length_penalty)
        ended = [
            (beam.score / length, beam) for beam, hit in zip(candidates[: self._n_beams], hits, strict=False) if hit
        ]
        merged = [*group.finished, *ended]
        order = np.argsort(-np.array([score for score, _ in merged], np.float32), kind="stable")
        return [merged[i] for i in order[: self._n_beams]]

    def _decided(self, group: _Group, hits: NDArray[np.bool_]) -> _Group:
        """Decide whether the search of the group ends."""
        options, new = self._options, self.state.n_new + 1
        length = self._first.max_new_tokens if options.early_stopping == "never" and options.length_penalty > 0 else new
        possible = group.beams[0].score / np.float32(length**options.length_penalty)
        full = all(beam is not None for _, beam in group.finished)
        worst = group.finished[-1][0] if full else _FAR
        improvable = group.improvable and bool(possible > worst)
        done = not improvable or (full and options.early_stopping is True) or bool(hits.all())
        return replace(group, improvable=improvable, done=done)

    def _finish(self, state: SearchState, reason: FinishReason) -> None:
        """Give the best beams to the requests. reason: of beams that have not ended by themselves."""
        found = [pair for group in state.groups for pair in group.finished if pair[1] is not None]
        found.sort(key=lambda pair: -pair[0])  # stable: ties in the order of groups
        rest = [(beam.score, beam) for group in state.groups for beam in group.beams]
        best: list[Any] = [*found, *rest]
        if not state.n_new:  # all beams are the prompt, and an empty new text has probability 1
            best = [rest[0]] * len(self.requests)
        for request, (score, beam) in zip(self.requests, best, strict=False):
            request.score, request.beam_indices = float(score), list(beam.indices)
            new = beam.ids[beam.prompt_len :]
            for token_id, logprob, record in zip(new, beam.logprobs, beam.records or [None] * len(new), strict=True):
                if request.wants_logprobs:
                    request.logprobs.append(logprob)
                if record is not None:
                    request.records.append(record)
                request.append(token_id, is_end=token_id in request.eos_ids, asks_user=False)
                if request.finish_reason is not None:
                    break
        for request in self.requests:
            if request.finish_reason is None:
                request.end(reason)


def _has_stop(text: TextState, beam: Beam) -> bool:
    """Return whether the text of a beam contains a stop string."""
    state = text.again(beam.ids[beam.prompt_len :])
    state.finish()
    return state.stopped
