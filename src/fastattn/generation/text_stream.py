"""Text piece by piece, as it is generated."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import InputError
from fastattn.models.outputs import FinishReason


class Draw(Protocol):
    """A new token's text."""

    @property
    def piece(self) -> str: ...


class Work(Protocol):
    """What draws the tokens: a scheduler of one request."""

    @property
    def done(self) -> bool: ...
    def step(self) -> Iterable[Draw]: ...
    def close(self) -> None: ...


class Continued(Protocol):
    """The request."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def new_len(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def finish_reason(self) -> FinishReason | None: ...


class TextStream(Iterator[str], AsyncIterator[str]):
    """Pieces of text as they come. `close`, leaving a `with` block or dropping the stream ends the work.

    `async for` works, too: each step runs in a thread, and cancelling the task closes the stream.

    `token_ids` is the prompt and what was drawn so far; `finish_reason` is None until the end. One thread at a time
    may ask for a piece: InputError says so to the other, and the stream goes on. Closed by another thread, it ends with
    the piece that is on its way.
    """

    def __init__(self, work: Work, request: Continued) -> None:
        self._lock = threading.Lock()  # never waited for
        self._closing = False
        self._request = request
        self._work = work

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """Prompt and new tokens, int32 [n_tokens]."""
        return np.array(self._request.ids, np.int32)

    @property
    def n_new_tokens(self) -> int:
        """How many tokens were drawn."""
        return self._request.new_len

    @property
    def seed(self) -> int:
        """The seed that repeats this text."""
        return self._request.seed

    @property
    def finish_reason(self) -> FinishReason | None:
        """ "eos", "stop_string" or "length" at the end, None before."""
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
        while not self._work.done:
            for draw in self._work.step():
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
            self.close()  # the step that is on its way in the thread is the last
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """`close`, for contextlib.aclosing."""
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
        if hasattr(self, "_work"):  # else __init__ did not get that far
            self.close()

    def close(self) -> None:
        """End the work and free its memory; may be called twice, and from any thread."""
        self._closing = True
        if self._lock.acquire(blocking=False):  # else whoever holds it closes on its way out
            try:
                self._work.close()
            finally:
                self._lock.release()
