"""Runs many requests over one executor.

Each step holds the next token of every running sequence and, in what is left of the step's room, prompt tokens of new
ones. A sequence that ends leaves at once and the next waiting request comes in.

A row of output depends on its own sequence alone and a draw on (seed, position) alone, so how requests share steps does
not change what they say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.generation import numpy_sampler
from fastattn.generation.options import GenerationOptions
from fastattn.generation.stopping import TextState
from fastattn.graph.executor import Cache, Executor
from fastattn.graph.ir import Step

STEP_TOKENS = 1024  # tokens of one step at most, so that its memory is bounded
FinishReason: TypeAlias = Literal["eos", "stop_string", "length"]


@dataclass(slots=True, eq=False)
class Request:
    """One sequence on its way: `ids` is the prompt and what was drawn; `fed` of them are in the cache."""

    ids: list[int]
    prompt_len: int
    max_new_tokens: int
    seed: int
    text: TextState | None = None
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cache: Cache | None = None
    fed: int = 0

    @property
    def new_len(self) -> int:
        """How many tokens were drawn."""
        return len(self.ids) - self.prompt_len

    def keep_new(self, count: int) -> None:
        """Forget the drawn tokens after the first `count`."""
        del self.ids[self.prompt_len + count :]
        del self.logprobs[count:]

    def close(self) -> None:
        """Give the cache back."""
        if self.cache is not None:
            self.cache.close()
            self.cache = None


@dataclass(frozen=True, slots=True)
class Draw:
    """A token that a step drew, and the text that it made certain (where the request has a TextState)."""

    request: Request
    token_id: int
    piece: str


class Scheduler:
    """`step` until `done`; `close` (or leaving a `with`) gives all memory back, also in the middle."""

    def __init__(
        self,
        executor: Executor,
        requests: Sequence[Request],
        options: GenerationOptions,
        *,
        eos_ids: frozenset[int],
        step_tokens: int = STEP_TOKENS,
    ) -> None:
        self._executor = executor
        self._options = options
        self._eos = eos_ids
        self._step_tokens = step_tokens
        self._waiting = deque(request for request in requests if request.finish_reason is None)
        self._running: list[Request] = []

    @property
    def done(self) -> bool:
        """True when every request has ended."""
        return not self._waiting and not self._running

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the work; requests that had not finished keep what they have."""
        self._waiting.clear()
        for request in self._running:
            request.close()
        self._running.clear()

    def step(self) -> list[Draw]:
        """Run one step: the tokens it drew, none where it only read a part of a prompt."""
        chunks = self._plan()
        logits = self._run(chunks)
        ready = [request for request, count in chunks if request.fed == len(request.ids)]
        draws: list[Draw] = []
        if ready:
            ids, logprobs = self._sample(logits, ready)
            draws = [self._append(r, int(i), float(p)) for r, i, p in zip(ready, ids, logprobs, strict=True)]
        for request in [r for r in self._running if r.finish_reason is not None]:
            request.close()
            self._running.remove(request)
        return draws

    def _plan(self) -> list[tuple[Request, int]]:
        """Which sequences take part with how many tokens: those that draw first, then prompts while there is room."""
        while self._waiting and len(self._running) < self._options.max_batch_size:
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

    def _run(self, chunks: Sequence[tuple[Request, int]]) -> NDArray[np.floating[Any]]:
        counts = np.array([count for _, count in chunks], np.int32)
        cu_seqlens = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        whole = np.array([request.fed + count == len(request.ids) for request, count in chunks])
        step = Step(
            token_ids=np.concatenate([np.array(r.ids[r.fed : r.fed + n], np.int32) for r, n in chunks]),
            cu_seqlens=cu_seqlens,
            positions=np.concatenate([np.arange(r.fed, r.fed + n, dtype=np.int32) for r, n in chunks]),
            wanted=(cu_seqlens[1:] - 1)[whole].astype(np.int32),
            caches=tuple(request.cache for request, _ in chunks),
        )
        logits = self._executor.run(step, ["logits"])["logits"]
        for request, count in chunks:
            request.fed += count
        return cast("NDArray[np.floating[Any]]", logits)

    def _sample(
        self, logits: NDArray[np.floating[Any]], ready: Sequence[Request]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        options = self._options
        params = np.zeros(len(ready), numpy_sampler.SAMPLE_PARAMS)
        params["temperature"] = options.temperature
        params["top_p"] = options.top_p
        params["min_p"] = options.min_p
        params["repetition_penalty"] = options.repetition_penalty
        params["top_k"] = options.top_k
        params["do_sample"] = not options.greedy
        params["seed"] = [request.seed for request in ready]
        params["counter"] = [len(request.ids) for request in ready]
        history: list[NDArray[np.int32]] = [np.zeros(0, np.int32)]
        if options.repetition_penalty != 1:
            history += [np.array(request.ids, np.int32) for request in ready]
        lengths = [len(ids) for ids in history[1:]] or [0] * len(ready)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        too_short = [i for i, request in enumerate(ready) if request.new_len < options.min_new_tokens]
        if too_short and self._eos:
            logits = logits.copy()
            logits[np.ix_(too_short, sorted(self._eos))] = -np.inf
        if logits.dtype == np.float64:
            return numpy_sampler.sample(logits, params, np.concatenate(history), offsets)
        from fastattn import runtime

        return runtime.sample(logits, params, np.concatenate(history), offsets)

    def _append(self, request: Request, token_id: int, logprob: float) -> Draw:
        request.ids.append(token_id)
        request.logprobs.append(logprob)
        is_end = token_id in self._eos
        piece = ""
        if request.text is not None and not is_end:
            piece = request.text.push(token_id)
            if request.text.stopped:
                request.finish_reason = "stop_string"
                request.keep_new(request.text.whole_tokens())
        if is_end:
            request.finish_reason = "eos"
        elif request.finish_reason is None and request.new_len >= request.max_new_tokens:
            request.finish_reason = "length"
        if request.finish_reason is not None and request.text is not None:
            piece += request.text.finish()
        return Draw(request, token_id, piece)
