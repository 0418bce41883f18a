"""Text in pieces, as it is generated."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import InputError
from fastattn.generation.call import Call, Draw
from fastattn.generation.engine import RUN_AHEAD, Engine
from fastattn.generation.request import Request
from fastattn.generation.results import speculation_stats
from fastattn.models.outputs import FinishReason


class TextStream(Iterator[str], AsyncIterator[str]):
    """Pieces of text as they are generated. `close`, leaving a `with` block or dropping the stream stops the work.

    `async for` works too: a thread runs the steps, and canceling the task closes the stream. The steps of other calls
    on the model draw up to 16 tokens before this stream asks for them.

    `token_ids` holds the prompt and the tokens drawn so far, `logprobs` and `top_logprobs` their log-probabilities if
    the call asked for them; `finish_reason` is None until the end. Only one thread at a time may request a piece. A
    second thread gets an InputError, and the stream continues. If another thread closes the stream, it ends after the
    piece that is in progress.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self._lock = threading.Lock()  # acquired without blocking
        self._closing = False
        self._request = request
        self._engine = engine
        self._call = Call([request], priority=request.options.priority, every_token=True, run_ahead=RUN_AHEAD)
        self._submitted = False
        self._n_taken = self._n_final = self._n_chars = 0  # of the pieces so far: tokens, and characters

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """The prompt and the new tokens, int32 [n_tokens]."""
        return np.array(self._request.ids, np.int32)

    @property
    def n_new_tokens(self) -> int:
        """The number of drawn tokens."""
        return self._request.new_len

    @property
    def n_final_tokens(self) -> int:
        """The number of new tokens that belong to the pieces so far, and that no stop string can remove any more."""
        if self._call.done and not self._call.ready and self.finish_reason is not None:
            return self.n_new_tokens
        text, new = self._request.text, self._request.ids[self._request.prompt_len :][: self._n_taken]
        if text is None or not self._request.options.stops() or text.length_of(new) == self._n_chars:
            self._n_final = len(new)
        return self._n_final

    @property
    def logprobs(self) -> NDArray[np.float32]:
        """The log-probabilities of the new tokens, float32 [n_new_tokens]; empty without logprobs=True."""
        return np.array(self._request.logprobs[: self.n_new_tokens], np.float32)

    @property
    def top_logprobs(self) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]] | None:
        """The likeliest ids for each new token, and their log-probabilities; None without the option top_logprobs."""
        if not self._request.options.top_logprobs:
            return None
        records = self._request.records[: self.n_new_tokens]
        return [(record.top_ids, record.top_logprobs) for record in records]

    @property
    def seed(self) -> int:
        """The seed that repeats this text."""
        return self._request.seed

    @property
    def finish_reason(self) -> FinishReason | None:
        """ "eos", "stop_string", "stopping_criteria", "length" or "time" at the end; None before."""
        return self._request.finish_reason

    @property
    def stats(self) -> Mapping[str, int]:
        """n_proposed_tokens, n_accepted_tokens and n_steps so far; empty without speculation."""
        return speculation_stats([self._request])

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        self._begin()
        try:
            while not self._closing and (draw := self._engine.take(self._submit())) is not None:
                self._count(draw)
                if draw.piece:
                    return draw.piece
            raise StopIteration
        except BaseException:
            self._closing = True
            raise
        finally:
            self._end()

    def _begin(self) -> None:
        """Start to take a piece. Raises InputError if another thread or task does."""
        if not self._lock.acquire(blocking=False):
            raise InputError(
                "stream: expected one thread at a time, got a call while it is in use by another thread; "
                "call stream once for each thread"
            )

    def _submit(self) -> Call:
        if not self._submitted and not self._closing:
            self._submitted = True
            self._engine.submit(self._call)
        return self._call

    def _count(self, draw: Draw) -> None:
        self._n_taken += draw.token_id is not None
        self._n_chars += len(draw.piece)

    def _end(self) -> None:
        self._lock.release()
        if self._closing:
            self.close()

    def __aiter__(self) -> TextStream:
        return self

    async def __anext__(self) -> str:
        self._begin()
        try:
            while not self._closing and (draw := await self._engine.take_async(self._submit())) is not None:
                self._count(draw)
                if draw.piece:
                    return draw.piece
            raise StopAsyncIteration
        except BaseException:  # canceling the task, for example; a running step is the last
            self._closing = True
            raise
        finally:
            self._end()

    async def aclose(self) -> None:
        """Call `close`, and wait for the running step; for contextlib.aclosing."""
        self._closing = True
        await self._engine.cancel_async(self._call)

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> TextStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_submitted"):  # else __init__ failed earlier
            self.close()

    def close(self) -> None:
        """Stop the work; its memory is free after the running step. May be called twice, and from any thread."""
        self._closing = True
        self._engine.cancel(self._call)
