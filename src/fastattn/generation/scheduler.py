"""Runs many requests on one executor.

Each step contains the next token of every running sequence; the remaining room in the step goes to prompt tokens of new
sequences. When a sequence ends, the next waiting request takes its place.

A row of output depends only on its own sequence, and a draw depends only on (seed, position). So results do not depend
on how requests share steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from fastattn.errors import NonFiniteError
from fastattn.generation.feed import draw_from_logits, drawn_in_core, sampling_of, step_of
from fastattn.generation.request import Request
from fastattn.graph.executor import Decoding, DrawingExecutor, Drawn, Executor
from fastattn.graph.ir import Step

__all__ = ["STEP_TOKENS", "Draw", "Request", "Scheduler"]

STEP_TOKENS = 1024  # maximum tokens per step, to bound its memory


class Draw(NamedTuple):
    """A token drawn by a step, and the text that it completes (if the request has a TextState)."""

    request: Request
    token_id: int
    piece: str


class Scheduler:
    """Call `step` until `done`. `close`, or leaving a `with` block, frees all memory at any time.

    Each request has its own options. max_batch_size: number of requests that run at a time.
    """

    def __init__(
        self,
        executor: Executor,
        requests: Sequence[Request],
        *,
        max_batch_size: int = 32,
        step_tokens: int = STEP_TOKENS,
    ) -> None:
        self._executor = executor
        self._drawing = executor if isinstance(executor, DrawingExecutor) else None
        self._max_batch_size = max_batch_size
        self._step_tokens = step_tokens
        self._waiting = deque(request for request in requests if request.finish_reason is None)
        self._running: list[Request] = []
        # The decode loop, while the same requests draw one token per step. Its rows are the requests in `_rows`.
        self._decoding: Decoding | None = None
        self._rows: list[Request] = []

    @property
    def done(self) -> bool:
        """Whether every request has ended."""
        return not self._waiting and not self._running

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the work; unfinished requests retain the tokens that they have."""
        self._waiting.clear()
        self._decoding = None
        for request in self._running:
            request.close()
        self._running.clear()

    def step(self) -> list[Draw]:
        """Run one step and return the drawn tokens; none if the step only read part of a prompt."""
        if self._decoding is None:
            ids, logprobs = self._first_step()
        else:
            ids, logprobs = self._next_step(self._decoding)
        if logprobs is not None:
            for request, logprob in zip(self._rows, logprobs, strict=True):
                if request.wants_logprobs:
                    request.logprobs.append(logprob)
        draws, ended = [], False
        for request, token_id in zip(self._rows, ids, strict=True):
            draws.append(Draw(request, token_id, request.append(token_id, is_end=token_id in request.eos_ids)))
            ended = ended or request.finish_reason is not None
        if ended:
            for request in self._rows:
                if request.finish_reason is not None:
                    request.close()
            self._running = [request for request in self._running if request.finish_reason is None]
        if ended or self._takes_more():
            self._decoding = None
        return draws

    def _first_step(self) -> Drawn:
        """Run a step when the set of requests has changed, and return the draws of `_rows`."""
        chunks = self._plan()
        step = step_of(chunks)
        rows = [request for request, count in chunks if request.fed + count == len(request.ids)]
        self._rows = rows
        repeats = len(step.token_ids) == len(rows) == len(self._running)
        drawn = self._draw(step, rows, repeats=repeats)
        for request, count in chunks:
            request.fed += count
        return drawn

    def _next_step(self, decoding: Decoding) -> Drawn:
        """Run a step with the same requests as the last one."""
        try:
            drawn = decoding.draw()
        except NonFiniteError:
            if self._raises(self._rows):
                raise
            self._draw_from_logits_from_now_on()
            return self._first_step()
        for request in self._rows:
            request.fed += 1
        return drawn

    def _draw(self, step: Step, rows: Sequence[Request], *, repeats: bool) -> Drawn:
        if self._drawing is not None and drawn_in_core(rows):
            try:
                if repeats:
                    self._decoding = self._drawing.decoding(step, sampling_of(rows))
                    return self._decoding.draw()
                return self._drawing.draw(step, sampling_of(rows))
            except NonFiniteError:  # the caches are unchanged
                if self._raises(rows):
                    raise
                self._draw_from_logits_from_now_on()
        return draw_from_logits(self._executor, step, rows)

    @staticmethod
    def _raises(rows: Sequence[Request]) -> bool:
        """Return whether logits that are not finite are an error for every row."""
        return all(request.options.nan == "raise" for request in rows)

    def _draw_from_logits_from_now_on(self) -> None:
        """Stop trying the fast path: non-finite keys and values in the cache would make it fail at every step."""
        self._drawing = self._decoding = None

    def _takes_more(self) -> bool:
        """Return whether a waiting request could start."""
        return bool(self._waiting) and len(self._running) < self._max_batch_size

    def _plan(self) -> list[tuple[Request, int]]:
        """Return the sequences of a step with their token counts: first those that draw, then prompts that fit."""
        while self._takes_more():
            request = self._waiting.popleft()
            self._running.append(request)
            request.cache = self._executor.new_cache()
        room = self._step_tokens
        chunks = []
        for request in sorted(self._running, key=lambda r: len(r.ids) - r.fed > 1):
            count = min(len(request.ids) - request.fed, room)
            if count > 0:
                chunks.append((request, count))
                room -= count
        return chunks
