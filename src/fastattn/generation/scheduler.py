"""Runs the requests of many calls on one executor.

Each step contains the next token of every running sequence; the remaining room in the step goes to prompt tokens. When
a sequence ends, the next waiting request takes its place. `fastattn.generation.page_plan` decides what fits the memory.

A row of output depends only on its own sequence, and a draw depends only on (seed, position). So results do not depend
on how requests share steps, nor on a request being stopped and computed again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from fastattn.errors import NonFiniteError
from fastattn.generation.beam_search import BeamSearch, SearchState
from fastattn.generation.call import Call, Draw, Failure
from fastattn.generation.feed import DrawRow, Logits, draw_each, same_suppressed, sampling_of, step_of
from fastattn.generation.page_plan import PagePlan
from fastattn.generation.request import Request
from fastattn.generation.speculation import Speculator, Verified
from fastattn.graph.executor import Decoding, DrawingExecutor, Executor

__all__ = ["STEP_TOKENS", "Call", "Draw", "Failure", "Request", "Scheduler"]

STEP_TOKENS = 1024  # maximum tokens per step, to bound its memory
ALONE_TOKENS = 256  # maximum prompt tokens per step of a single call; a call that arrives waits for that step
BESIDE_TOKENS = 64  # maximum prompt tokens per step beside other calls
MAX_RUNNING = 128  # sequences at a time, unless one call asks for more
LONG_SHARE = 1 / 3  # time of longer calls beside short ones, as a fraction of the time of steps only for short ones
_ANY = 1 << 30


class Scheduler:
    """Call `step` until `done`. `close`, or leaving a `with` block, frees all memory at any time.

    calls: what to run; `add` adds more. pages: the memory of the sequences. prompt_tokens: limits of the prompt tokens
    of a step, of a single call and beside other calls.
    """

    def __init__(
        self,
        executor: Executor,
        calls: Sequence[Call] = (),
        *,
        pages: PagePlan | None = None,
        step_tokens: int = STEP_TOKENS,
        prompt_tokens: tuple[int, int] | None = None,
    ) -> None:
        self._executor = executor
        self._drawing = executor if isinstance(executor, DrawingExecutor) else None
        self._pages = PagePlan(executor) if pages is None else pages
        self._step_tokens = step_tokens
        self._prompt_tokens = (step_tokens, step_tokens) if prompt_tokens is None else prompt_tokens
        self._calls: list[Call] = []  # with requests that have not ended, in the order of their arrival
        self._running: list[Request] = []  # in the order of their rank
        self._deadlines: list[Request] = []
        self._n_admitted = 0
        self._speculator = Speculator()
        self._speculates = False  # whether a row of the last step has a source of proposals
        # Whether the last plan had short and longer calls, and was only for the short ones. A step of all costs
        # `_long_seconds`; it is due when `_credit` has reached that time.
        self._mixed = self._only_short = False
        self._long_seconds = self._credit = 0.0
        self._most = _ANY  # sequences at a time, after a lack of memory
        # The decode loop, while the same requests draw one token per step; it may run `_loop_steps` steps.
        self._loop: Decoding | None = None
        self._loop_steps = 0
        self._rows: list[Request] = []  # that the last step drew for
        self._before: list[int | SearchState] | None = None  # marks of the rows before a step that has not returned
        self.results: deque[Draw | Failure] = deque()  # of the last step, until the caller removes them
        for call in calls:
            self.add(call)

    @property
    def done(self) -> bool:
        """Whether every request has ended."""
        return not self._calls

    @property
    def calls(self) -> Sequence[Call]:
        """The calls with requests that have not ended."""
        return self._calls

    @property
    def n_running(self) -> int:
        """The number of sequences that have a cache."""
        return len(self._running)

    def running_calls(self) -> list[Call]:
        """Return the calls with sequences that have a cache."""
        return [call for call in self._calls if call.running]

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def use(self, executor: Executor) -> None:
        """Use another executor of the same model from the next step on."""
        self._executor = executor
        self._drawing = executor if isinstance(executor, DrawingExecutor) else None
        self._pages.use(executor)
        self._loop, self._loop_steps = None, 0

    def add(self, call: Call) -> None:
        """Add the requests of a call."""
        if call.unfinished and call not in self._calls:
            self._calls.append(call)
            self._deadlines += [request for request in call.waiting if request.deadline is not None]
            self._loop_steps = 0

    def remove(self, call: Call) -> None:
        """Stop the requests of a call and free their memory; they retain the tokens that they have."""
        call.closed = True
        if call in self._calls:
            call.waiting.clear()
            for request in [request for request in self._running if request.call is call]:
                self._release(request)
            self._deadlines = [request for request in self._deadlines if request.call is not call]
            self._calls.remove(call)  # last, so that an interrupted removal can be repeated

    def close(self) -> None:
        """Stop the work; unfinished requests retain the tokens that they have."""
        for call in list(self._calls):
            self.remove(call)

    # -- steps --------------------------------------------------------------------------------------------------------

    def step(self) -> list[Draw | Failure]:
        """Run one step and return the drawn tokens; none if the step only read prompts. `results` has them too.

        The caller removes the call of a Failure. After an exception, or an interruption anywhere in a method of this
        class, call `recover`.
        """
        self.results.clear()
        if self._deadlines:
            self._expire()
        begin = time.perf_counter()
        if self._repeats():
            chunks = None
        else:
            chunks = self._plan()
            if not chunks:
                return list(self.results)
            self._speculator.propose(chunks, self._pages, self._step_tokens)
            self._set_rows(chunks)
        self._before = [request.mark() for request in self._rows]
        drawn, row = self._run(chunks), 0
        draws: list[Draw | Failure] = []
        verified: list[Verified] = []
        for request in self._rows:
            first, row = row, row + request.n_rows + len(request.proposed)
            verified.append(self._accept(request, drawn, first, draws))
        seconds = time.perf_counter() - begin
        if self._only_short:
            self._credit += LONG_SHARE * seconds
        else:
            self._credit, self._long_seconds = 0.0, seconds
        if self._speculates and (chunks is None or sum(count for _, count in chunks) == len(self._rows)):
            self._speculator.record(self._rows, verified, seconds)
        ended = any(request.finish_reason is not None or request.slides() for request in self._rows)
        if ended:
            for request in self._rows:
                if request.finish_reason is not None:
                    self._finish(request)
                elif request.slides():
                    self._pages.release(request)  # while `base` is that of the cache
                    request.slide()
                    self._pages.start(request)
                    self._loop, self._loop_steps = None, 0
        self.results.extend(draws)
        self._before = None
        return list(self.results)

    def _repeats(self) -> bool:
        """Return whether the decode loop runs the next step."""
        if self._loop is None or self._loop_steps < 1 or any(r.call.paused for r in self._rows if r.call):
            return False
        return not (self._speculates and self._speculator.has_offers(self._rows))

    def _accept(self, request: Request, drawn: DrawRow, first: int, draws: list[Draw | Failure]) -> Verified:
        """Add what the rows of a request draw to it and to `draws`, up to the first that differs from its proposal.

        first: the row after the last id; those after proposed tokens follow. The cache keeps the ids that were fed.
        """
        proposed, request.proposed = request.proposed, ()
        n_drawn = n_accepted = 0
        if request.speculation is not None:
            request.speculation.n_steps += 1
        for i in range(1 + len(proposed)):
            result = drawn(first + i, request)
            if isinstance(result, Exception):
                draws.append(Failure(request, result))
                break
            if isinstance(result, np.ndarray):
                draws += _advanced(request, result)
                break
            token_id, logprob = result
            if request.wants_logprobs and logprob is not None:
                request.logprobs.append(logprob)
            try:
                piece = request.append(token_id, is_end=token_id in request.eos_ids)
            except Exception as error:  # of its tokenizer
                draws.append(Failure(request, error))
                break
            ends, n_drawn = request.finish_reason is not None, n_drawn + 1
            draws.append(Draw(request, token_id, piece, ends))
            right = i < len(proposed) and token_id == proposed[i]
            n_accepted += right
            if ends or not right:
                break
        if proposed and request.cache is not None:
            request.fed += max(1, n_drawn) - 1 - len(proposed)
            request.cache.truncate(request.fed)
            if request.finish_reason is None:
                self._pages.share(request)
        return Verified(len(proposed), n_accepted, n_drawn)

    def _set_rows(self, chunks: Sequence[tuple[Request, int]]) -> None:
        rows = [request for request, count in chunks if count == request.left]
        n_fed = sum(count + len(request.proposed) for request, count in chunks)
        repeats = len(rows) == len(chunks) == n_fed
        self._speculates = any(request.speculation is not None for request in rows)
        if not repeats or rows != self._rows:
            self._loop = None
        self._rows = rows
        steady = repeats and len(rows) == len(self._running) and not self._mixed
        self._loop_steps = self._pages.steps_for(rows) if steady else 0

    def _run(self, chunks: Sequence[tuple[Request, int]] | None) -> DrawRow:
        """Run a step and return what its rows draw. chunks: None repeats the last step with the drawn tokens."""
        rows = self._rows
        if chunks is None:
            chunks = [(request, 1) for request in rows]
        parts = [part for request, count in chunks for part in request.parts(count)]
        in_core = self._drawing is not None and all(r.draws_in_core for r in rows) and same_suppressed(rows)
        draw: DrawRow | None = None
        if in_core and self._drawing is not None:
            try:
                if self._loop is None:
                    step, sampling = step_of(parts), sampling_of(rows)
                    if len(rows) == len(step.token_ids) == len(self._running):
                        self._loop = self._drawing.decoding(step, sampling)
                drawn = self._drawing.draw(step, sampling) if self._loop is None else self._loop.draw()
            except NonFiniteError:  # the caches are unchanged
                self._loop = None
                for request in rows:  # keys and values that are not finite would make the fast path fail at every step
                    request.draws_in_core = request.options.nan == "raise"
            else:
                draw = _drawn(*drawn)
        if draw is None:
            self._loop = None
            draw = draw_each(self._executor, step_of(parts), rows)
        self._loop_steps -= 1
        for part, count in parts:
            part.fed += count + len(part.proposed)
        for request, _ in chunks:
            if not request.proposed:
                self._pages.share(request)
        return draw

    def recover(self, *, most: int = _ANY) -> None:
        """Make the requests consistent again after a step that raised an error; they are computed again.

        most: how many sequences to run at a time from now on; each one that ends allows one more.
        """
        self._most = min(self._most, most)
        self._loop, self._loop_steps = None, 0
        rows = list(self._rows)
        if self._before is not None:
            for request, mark in zip(rows, self._before, strict=True):
                request.rewind(mark)
            self.results = deque(
                result
                for result in self.results
                if isinstance(result, Draw) and result.token_id is None and result.request.finish_reason is not None
            )
        self._before, self._rows = None, []
        # The step may have removed a call whose end is now undone.
        calls = dict.fromkeys([*self._calls, *(request.call for request in rows if request.call is not None)])
        found = [call for call in calls if not call.closed]
        for request in {*self._running, *(request for call in calls for request in call.requests)}:
            request.forget_pages()
        self._running = []
        for call in found:
            call.wait_again()
            call.running = 0
            known = {id(result.request) for result in self.results}
            for request in call.requests:  # that ended at their deadline, or with their search
                if request.finish_reason is not None and not call.has_end_of(request) and id(request) not in known:
                    self.results.append(Draw(request, None, "", ends=True))
        self._calls = [call for call in found if call.waiting]
        self._pages.recover()

    # -- the end of requests ------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        now = time.monotonic()
        ended = [r for r in self._deadlines if r.finish_reason is None and r.deadline is not None and r.deadline <= now]
        for request in ended:
            if request.search is not None:
                request.search.expire()
                self.results.extend(_ends_of(request.search))
            else:
                self.results.append(Draw(request, None, request.end("time"), ends=True))
            self._finish(request)
        if ended:
            self._deadlines = [request for request in self._deadlines if request.finish_reason is None]

    def _finish(self, request: Request) -> None:
        call, self._most = request.call, self._most + 1
        if request.cache is None and call is not None:  # at its deadline, before it began
            call.waiting.remove(request)
        else:
            self._release(request)
        if call is not None and not call.unfinished and call in self._calls:
            self._calls.remove(call)

    def _release(self, request: Request) -> None:
        """Remove a request from the running ones and free its memory."""
        self._loop, self._loop_steps = None, 0
        self._running.remove(request)
        self._pages.release(request)
        if request.call is not None:
            request.call.running -= request.n_sequences

    def _preempt(self, request: Request) -> None:
        """Stop a sequence; it is computed again later, from the pages that are still shared then."""
        if request.call is not None:
            request.call.waiting.appendleft(request)
        self._release(request)

    # -- plans --------------------------------------------------------------------------------------------------------

    def _plan(self) -> list[tuple[Request, int]]:
        """Return the sequences of a step with their token counts: first those that draw, then prompts that fit."""
        self._admit()
        self._pages.begin()
        while True:
            chosen = self._choose([r for r in self._running if r.call is None or not r.call.paused])
            if chosen or not self._make_place():
                return chosen

    def _choose(self, able: list[Request]) -> list[tuple[Request, int]]:
        short = [request for request in able if request.call is not None and request.call.short]
        self._mixed = 0 < len(short) < len(able)
        self._only_short = self._mixed and self._credit < self._long_seconds
        if self._only_short:
            able = short
        chosen: list[tuple[Request, int]] = []
        taken: set[int] = set()

        def choose(request: Request, count: int) -> None:
            while not self._pages.reserve(request, count):
                victim = next((v for v in reversed(self._running) if v is request or id(v) not in taken), request)
                if victim is request:
                    if taken:  # wait for those that run in this step
                        return
                    if request is not self._running[0]:
                        self._preempt(request)
                        return
                    self._pages.force(request, count)
                    break
                self._preempt(victim)
            taken.add(id(request))
            chosen.append((request, count))

        able_ids = {id(request) for request in able}
        for request in [request for request in able if request.left == request.n_rows]:
            if request.cache is not None and sum(count for _, count in chosen) < self._step_tokens:  # else a victim
                choose(request, request.n_rows)
        n_tokens = sum(count for _, count in chosen)
        room = min(self._step_tokens - n_tokens, self._prompt_tokens[len(self._calls) > 1])
        firsts: dict[tuple[int, bytes], Request] = {}
        for request in [request for request in able if request.left > request.n_rows]:
            if room < 1 or request.cache is None or id(request) not in able_ids:
                continue
            if request.search is not None and request.beams:
                count = request.search.most(room)
            else:
                self._pages.extend(request)
                if self._pages.waits(request, firsts):
                    continue
                count = self._pages.whole(request, min(request.left, room))
            before = len(chosen)
            choose(request, count)
            room -= count if len(chosen) > before else 0
        return chosen

    def _admit(self) -> None:
        """Give caches to waiting requests: those of calls with the highest priority and the fewest running requests."""
        promised = 0
        while True:
            able = [call for call in self._calls if call.may_start(self._most)]
            if not able:
                return
            call = min(able, key=lambda c: (-c.priority, c.running))
            request = call.waiting[0]
            needed = self._pages.needed(request)
            n_sequences = sum(request.n_sequences for request in self._running)
            full = n_sequences + request.n_sequences > min(self._most, max(MAX_RUNNING, call.max_running))
            if self._running and (full or not self._pages.fits(promised + needed + n_sequences)):
                if self._running[-1].call is not None and self._running[-1].call.priority < call.priority:
                    self._preempt(self._running[-1])
                    continue
                return
            promised += needed - self._pages.of_source(request)  # the encoder runs at the start
            call.running += request.n_sequences
            call.waiting.popleft()
            self._pages.start(request)
            if request.number == 0:
                self._n_admitted += 1
                request.number = self._n_admitted
            self._running.append(request)
            self._running.sort(key=lambda r: (0 if r.call is None else -r.call.priority, r.number))
            self._loop, self._loop_steps = None, 0

    def _make_place(self) -> bool:
        """Stop a sequence that waits for its caller, if another one needs its place; return whether that was done."""
        paused = [request for request in self._running if request.call is not None and request.call.paused]
        if not paused or not any(call.waiting and not call.paused for call in self._calls):
            return False
        self._preempt(paused[-1])
        self._admit()
        return True


def _advanced(request: Request, logits: Logits) -> list[Draw | Failure]:
    """Advance a beam search, and return the ends of its requests, if it ended, or its error."""
    assert request.search is not None
    try:
        request.search.advance(logits)
    except Exception as error:  # of a processor of the user, for example
        return [Failure(request, error)]
    return _ends_of(request.search) if request.finish_reason is not None else []


def _ends_of(search: BeamSearch) -> list[Draw | Failure]:
    return [Draw(request, None, "", ends=True) for request in search.requests]


def _drawn(ids: Sequence[int], logprobs: Sequence[float] | None) -> DrawRow:
    """Return what draws the rows of a step that were drawn in the executor."""
    return lambda row, _: (ids[row], None if logprobs is None else logprobs[row])
