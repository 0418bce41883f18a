"""Beam search, as transformers does it, with groups of diverse beams.

The search of a prompt depends on that prompt alone: searches share steps, but not their end. Scores are float32, as in
transformers. An unfinished beam ranks below all finished ones by `_FAR`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
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
    step_of,
)
from fastattn.generation.filters import filtered
from fastattn.generation.options import GenerationOptions
from fastattn.generation.processors import Processor, stops_at
from fastattn.generation.request import Request, TokenRecord
from fastattn.generation.stopping import TextState
from fastattn.graph.executor import Cache, Executor
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
    base: int = 0  # the cache begins with the first id
    proposed: Sequence[int] = ()

    @property
    def left(self) -> int:
        """The number of ids that are not in the cache."""
        return len(self.ids) - self.fed


@dataclass(slots=True, eq=False)
class _Group:
    """The beams of a group. finished: pairs of score and beam, None for an empty place, the best first."""

    beams: list[Beam]
    finished: list[tuple[np.float32, Beam | None]]
    first_index: int
    improvable: bool = True
    done: bool = False


class BeamSearch:
    """The search for one prompt. requests: one per text that is returned; they get the results."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests, first = requests, requests[0]
        self._first, self._options = first, first.options
        self._n_new = 0
        n_groups = self._options.num_beam_groups
        self._n_beams = self._options.num_beams // n_groups
        self._groups = [
            _Group([self._beam(first)], [(_FAR, None)] * self._n_beams, g * self._n_beams) for g in range(n_groups)
        ]
        self._start: Beam | None = self._groups[0].beams[0]  # all groups share the prompt

    @staticmethod
    def _beam(request: Request) -> Beam:
        return Beam(
            list(request.ids),
            request.prompt_len,
            request.max_new_tokens,
            request.eos_ids,
            request.processors,
            np.float32(0),
        )

    @property
    def done(self) -> bool:
        """Whether the search has ended and its requests have their results."""
        return all(group.done for group in self._groups)

    def beams(self) -> list[Beam]:
        """Return the beams that a step feeds."""
        if self._start is not None:
            return [self._start]
        return [beam for group in self._groups if not group.done for beam in group.beams]

    def advance(self, logits: Row) -> None:
        """Choose the next beams. logits [n_beams, vocab] of `beams()`, all of whose ids are fed."""
        used: list[int] = []  # the tokens that earlier groups chose in this step
        begin, owners = 0, list(self.beams())
        if self._start is not None:
            for group in self._groups:
                group.beams[0].cache = self._start.cache
        for group in self._groups:
            if group.done:
                continue
            count = 1 if self._start is not None else len(group.beams)
            rows = logits[:1] if self._start is not None else logits[begin : begin + count]
            begin += count
            used += self._advance_group(group, rows, used)
        self._start = None
        self._n_new += 1
        live = [beam for group in self._groups if not group.done for beam in group.beams]
        _pass_caches(owners, live)
        if self.done:
            self._finish()

    def expire(self) -> None:
        """End the search at the deadline of its requests, with the beams that it has."""
        deadline = self._first.deadline
        if not self.done and deadline is not None and time.monotonic() >= deadline:
            self.close()
            for group in self._groups:
                group.done = True
            self._finish("time")

    def close(self) -> None:
        """Free the memory."""
        caches = {id(beam.cache): beam.cache for group in self._groups for beam in group.beams}
        for cache in caches.values():
            if cache is not None:
                cache.close()
        for group in self._groups:
            for beam in group.beams:
                beam.cache = None

    def _advance_group(self, group: _Group, logits: Row, used: Sequence[int]) -> list[int]:
        """Do one step of a group and return the last tokens of its next beams."""
        options, n_beams = self._options, self._n_beams
        parents = group.beams * (n_beams if len(group.beams) == 1 else 1)
        raw, scores, records = self._scores(group.beams, logits, used)
        if len(scores) < n_beams:  # all beams are the prompt: only the first counts
            scores = np.concatenate([scores, np.repeat(scores + _FAR, n_beams - 1, axis=0)])
            raw, records = np.repeat(raw, n_beams, axis=0), records * n_beams
        vocab = scores.shape[1]
        flat = scores.reshape(-1)
        check_any_left(flat, self._n_new + self._first.prompt_len)
        n_kept = min(max(2, 1 + len(self._first.eos_ids)) * n_beams, len(flat))
        best = self._chosen(flat, n_kept)
        candidates = []
        for at in best.tolist():
            parent, token_id = divmod(at, vocab)
            beam = parents[parent]
            child = Beam(
                [*beam.ids, token_id], beam.prompt_len, beam.max_new_tokens, beam.eos_ids, beam.processors, flat[at],
                [*beam.indices, group.first_index + parent], [*beam.logprobs, float(raw[parent, token_id])],
                [*beam.records, *records[parent]], beam.cache, beam.fed,
            )  # fmt: skip
            candidates.append(child)
        hits = np.array([self._ends(beam) for beam in candidates], np.bool_)
        running = flat[best] + hits.astype(np.float32) * _FAR
        order = np.argsort(-running, kind="stable")[:n_beams]
        self._keep_finished(group, candidates, hits)
        group.beams = [candidates[i] for i in order]
        for i in order:
            candidates[i].score = running[i]
        self._decide(group, hits, options)
        return [beam.ids[-1] for beam in group.beams]

    def _scores(self, beams: Sequence[Beam], logits: Row, used: Sequence[int]) -> tuple[Row, Row, list[Any]]:
        """Return the log-probabilities [n, vocab], the scores of the continuations [n, vocab], and the records."""
        options, raw, scores, records = self._options, [], [], []
        for beam, logit in zip(beams, logits, strict=True):
            forbidden = sorted(beam.eos_ids) if self._n_new < self._first.min_new_tokens else []
            row = log_softmax(clean_row(logit, options.nan, forbidden))
            processed = row.copy()
            processed[forbidden] = -np.inf
            processed = run_processors(beam, processed, may_be_empty=True)
            if not options.greedy:
                processed = filtered(processed, options, min_keep=len(beam.eos_ids) + 1)
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
        state = np.random.Philox(key=self._first.seed, counter=len(self._first.ids) + self._n_new)
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

    def _keep_finished(self, group: _Group, candidates: Sequence[Beam], hits: NDArray[np.bool_]) -> None:
        """Add the candidates that ended and are among the best to the finished beams."""
        full = self._options.early_stopping is True and all(beam is not None for _, beam in group.finished)
        if full or not group.improvable:
            return
        length = np.float32((self._n_new + 1) ** self._options.length_penalty)
        ended = [
            (beam.score / length, beam) for beam, hit in zip(candidates[: self._n_beams], hits, strict=False) if hit
        ]
        merged = [*group.finished, *ended]
        order = np.argsort(-np.array([score for score, _ in merged], np.float32), kind="stable")
        group.finished = [merged[i] for i in order[: self._n_beams]]

    def _decide(self, group: _Group, hits: NDArray[np.bool_], options: GenerationOptions) -> None:
        """Decide whether the search of the group ends."""
        new = self._n_new + 1
        length = self._first.max_new_tokens if options.early_stopping == "never" and options.length_penalty > 0 else new
        possible = group.beams[0].score / np.float32(length**options.length_penalty)
        full = all(beam is not None for _, beam in group.finished)
        worst = group.finished[-1][0] if full else _FAR
        group.improvable = group.improvable and bool(possible > worst)
        group.done = not group.improvable or (full and options.early_stopping is True) or bool(hits.all())

    def _finish(self, reason: FinishReason = "stopping_criteria") -> None:
        """Give the best beams to the requests. reason: why those ended that did not end by themselves."""
        found = [pair for group in self._groups for pair in group.finished if pair[1] is not None]
        found.sort(key=lambda pair: -pair[0])  # stable: ties in the order of groups
        rest = [(beam.score, beam) for group in self._groups for beam in group.beams]
        best: list[Any] = [*found, *rest]
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
            if request.finish_reason is None:
                request.finish_reason = reason


def _has_stop(text: TextState, beam: Beam) -> bool:
    """Return whether the text of a beam contains a stop string."""
    state = text.again(beam.ids[beam.prompt_len :])
    state.finish()
    return state.stopped


def _pass_caches(owners: Sequence[Beam], live: Sequence[Beam]) -> None:
    """Give each live beam the cache of its parent, a copy if it is not the first child; close the other caches."""
    taken: set[int] = set()
    old: dict[int, Any] = {id(beam.cache): beam.cache for beam in owners}
    for beam in live:
        cache: Any = beam.cache
        beam.fed = len(beam.ids) - 1
        if id(cache) in taken:
            beam.cache = cache.fork()
        taken.add(id(cache))
    for key, cache in old.items():
        if key not in taken:
            cache.close()


def search(
    executor: Executor,
    searches: Sequence[BeamSearch],
    *,
    max_batch_size: int,
    step_tokens: int,
    stopped: Callable[[], bool] = bool,
) -> Generator[BeamSearch]:
    """Run searches, and yield each when it ends. Closing the iterator stops the work and frees its memory.

    stopped: asked between steps whether to stop, from another thread.
    """
    waiting, running = deque(searches), list[BeamSearch]()
    try:
        while (waiting or running) and not stopped():
            while waiting and (not running or _n_beams([*running, waiting[0]]) <= max_batch_size):
                running.append(waiting.popleft())
                for beam in running[-1].beams():
                    beam.cache = executor.new_cache()
            _step(executor, running, step_tokens)
            for one in running:
                one.expire()
            yield from [one for one in running if one.done]
            running = [one for one in running if not one.done]
    finally:
        for one in running:
            one.close()


def _n_beams(searches: Sequence[BeamSearch]) -> int:
    return sum(one.requests[0].options.num_beams for one in searches)


def _step(executor: Executor, running: Sequence[BeamSearch], step_tokens: int) -> None:
    """Feed the beams, a long prompt in parts, and advance the searches whose beams are all fed."""
    room, chunks, ready = step_tokens, list[tuple[Any, int]](), list[tuple[BeamSearch, int]]()
    for one in sorted(running, key=lambda one: any(len(b.ids) - b.fed > 1 for b in one.beams())):
        beams = one.beams()
        counts = [min(len(beam.ids) - beam.fed, max(room, 1)) for beam in beams]
        if len(beams) == 1 and (room < 1):
            continue
        chunks += zip(beams, counts, strict=True)
        room -= sum(counts)
        if all(beam.fed + count == len(beam.ids) for beam, count in zip(beams, counts, strict=True)):
            ready.append((one, len(beams)))
    logits: Any = executor.run(step_of(chunks), ["logits"])["logits"]
    for beam, count in chunks:
        beam.fed += count
    begin = 0
    for one, count in ready:
        one.advance(logits[begin : begin + count])
        begin += count
