"""Text in pieces, as it is generated."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import InputError
from fastattn.generation.scheduler import Request, Scheduler
from fastattn.models.outputs import FinishReason


class TextStream(Iterator[str], AsyncIterator[str]):
    """Pieces of text as they are generated. `close`, leaving a `with` block or dropping the stream stops the work.

    `async for` works too: each step runs in a thread, and cancelling the task closes the stream.

    `token_ids` holds the prompt and the tokens drawn so far; `finish_reason` is None until the end. Only one thread at
    a time may request a piece. A second thread gets an InputError, and the stream continues. If another thread closes
    the stream, it ends after the piece that is in progress.
    """

    def __init__(self, scheduler: Scheduler, request: Request) -> None:
        self._lock = threading.Lock()  # acquired without blocking
        self._closing = False
        self._request = request
        self._scheduler = scheduler

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """The prompt and the new tokens, int32 [n_tokens]."""
        return np.array(self._request.ids, np.int32)

    @property
    def n_new_tokens(self) -> int:
        """The number of drawn tokens."""
        return self._request.new_len

    @property
    def seed(self) -> int:
        """The seed that repeats this text."""
        return self._request.seed

    @property
    def finish_reason(self) -> FinishReason | None:
        """ "eos", "stop_string" or "length" at the end; None before."""
        return self._request.finish_reason

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        if not self._lock.acquire(blocking=False):
            raise InputError("stream: expected one thread at a time, got a call while it is in use by another thread")
        try:
            return self._next_piece()
        except BaseException:
            self._closing = True
            raise
        finally:
            self._lock.release()
            if self._closing:
                self.close()

    def _next_piece(self) -> str:
        while not self._scheduler.done:
            for draw in self._scheduler.step():
                if draw.piece:
                    return draw.piece
        raise StopIteration

    def __aiter__(self) -> TextStream:
        return self

    async def __anext__(self) -> str:
        import asyncio

        try:
            piece = await asyncio.to_thread(next, self, None)
        except asyncio.CancelledError:
            self.close()  # the step that runs in the thread is the last
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Call `close`; for contextlib.aclosing."""
        self.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> TextStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_scheduler"):  # else __init__ failed earlier
            self.close()

    def close(self) -> None:
        """Stop the work and free its memory. May be called twice, and from any thread."""
        self._closing = True
        if self._lock.acquire(blocking=False):  # else the thread that holds the lock closes the stream
            try:
                self._scheduler.close()
            finally:
                self._lock.release()
