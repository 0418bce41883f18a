"""Lets a limited number of requests work, and a limited number wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator

from fastattn.server.problems import Problem

_MAX_RETRY_S = 60
_WEIGHT = 0.2  # of the last request in the mean duration


class Gate:
    """At most `most_running` requests work at a time; at most `most_waiting` more wait, first come, first served.

    Only for one event loop.
    """

    def __init__(self, most_running: int, most_waiting: int) -> None:
        self.most_running, self._most_waiting = most_running, most_waiting
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._mean_s = 1.0

    @property
    def waiting(self) -> int:
        """The number of requests that wait."""
        return sum(not future.done() for future in self._waiting)

    def retry_after(self) -> int:
        """Return the seconds after which a place is probably free."""
        rounds = (self.waiting + 1) / self.most_running
        return max(1, min(_MAX_RETRY_S, math.ceil(self._mean_s * rounds)))

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and have it for the block. Raises Problem with status 429 if too many wait."""
        await self._enter()
        begin = time.monotonic()
        try:
            yield
        finally:
            self._mean_s += _WEIGHT * (time.monotonic() - begin - self._mean_s)
            self._leave()

    async def _enter(self) -> None:
        if self.running < self.most_running:
            self.running += 1
            return
        if self.waiting >= self._most_waiting:
            raise Problem(
                429,
                "too many requests wait; try again later",
                None,
                "queue_full",
                {"retry-after": str(self.retry_after())},
            )
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it got the place at the same time
                self._leave()
            else:
                with contextlib.suppress(ValueError):  # `_leave` skipped it already
                    self._waiting.remove(future)
            raise

    def _leave(self) -> None:
        """Give the place to the first that waits."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return
        self.running -= 1
