"""The requests of one caller, and the draws that wait for the caller."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from fastattn.generation.request import Request

_leaked: list[object] = []  # a destructor in the child could wait for a lock that a thread of the parent holds
SHORT_TOKENS = 128  # a call of at most this many tokens overtakes longer calls


class Draw(NamedTuple):
    """A token drawn by a step, and the text that it completes (if the request has a TextState).

    token_id is None if the request ended without a token: at its deadline, or with its beam search. ends: whether it is
    the last of its request.
    """

    request: Request
    token_id: int | None
    piece: str
    ends: bool


class Failure(NamedTuple):
    """A request that cannot go on. Other requests do."""

    request: Request
    error: Exception


class Call:
    """Requests that were submitted together.

    max_running: how many of them run at a time. priority: calls with a higher one go first. every_token: whether the
    caller takes every draw; otherwise only the last one of each request. run_ahead: how many draws may wait for the
    caller before its requests pause; None: any number.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        max_running: int = 32,
        priority: int = 0,
        every_token: bool = False,
        run_ahead: int | None = None,
    ) -> None:
        self.requests = requests
        self.max_running, self.priority = max_running, priority
        self.every_token, self.run_ahead = every_token, run_ahead
        self.waiting: deque[Request] = deque()
        self.wait_again()
        self.running = 0  # sequences
        self.closed = False  # it was stopped, or an error ended it
        self._ended: set[int] = set()  # ids of the requests whose last draw was given to the caller
        self._n_requests = sum(request.finish_reason is None for request in requests)
        self.short = sum(r.n_sequences * (r.prompt_len + r.max_new_tokens) for r in self.waiting) <= SHORT_TOKENS
        for request in requests:
            request.call = self
        # For the caller. The deques and the queue need no lock, so a signal handler or a finalizer may use them.
        self.ready: deque[Draw] = deque()
        self.last: Draw | None = None  # the last one that the caller took
        self.error: BaseException | None = None
        self.process: Any = None  # the engine's state that it was submitted to
        self.abandoned = False  # its event loop was closed
        self.background = False  # whether a thread of the engine leads for it
        self.listening = False  # the caller waits for the bell
        self.in_main_thread = threading.current_thread() is threading.main_thread()
        self._bell: SimpleQueue[None] = SimpleQueue()
        self.on_ring: Callable[[], object] | None = None  # instead of the bell: for a caller that is not a thread

    def wait_again(self) -> None:
        """Make all unfinished requests wait; those of a beam search count as one."""
        self.waiting = deque(request for request in self.requests if request.finish_reason is None and request.runs)

    def may_start(self, most: int) -> bool:
        """Return whether the next request that waits may run too. most: the limit of sequences of all calls."""
        if not self.waiting or self.paused:
            return False
        return self.running == 0 or self.running + self.waiting[0].n_sequences <= min(self.max_running, most)

    @property
    def unfinished(self) -> bool:
        """Whether a request waits or runs. Only for the leader: others see it change at any time."""
        return bool(self.waiting) or self.running > 0

    @property
    def done(self) -> bool:
        """Whether nothing more comes for the caller, other than what is ready or an error. Read it before those."""
        return self.closed or len(self._ended) >= self._n_requests

    def has_end_of(self, request: Request) -> bool:
        """Return whether the last draw of a request was given to the caller."""
        return id(request) in self._ended

    @property
    def paused(self) -> bool:
        """Whether the requests wait for the caller to take what is ready."""
        return self.run_ahead is not None and len(self.ready) >= self.run_ahead

    def put(self, draw: Draw) -> None:
        """Give a draw to the caller, if the caller takes it, and wake the caller."""
        if self.every_token or draw.ends:
            if draw is not self.last and (not self.ready or self.ready[-1] is not draw):  # else it has it already
                self.ready.append(draw)
            if draw.ends:
                self._ended.add(id(draw.request))
            self.ring()

    def restart(self) -> None:
        """Compute the requests again, in the child of a fork. The caches of the parent are leaked."""
        for request in self.requests:
            if request.search is not None and any(one.finish_reason is None for one in request.search.requests):
                request.search.rewind(request.search.state)  # the parent may have been at its end
                _leaked.append(request.search.leak())
            if request.finish_reason is None:
                _leaked.append(request.cache)
                if request.speculation is not None:
                    _leaked.append(request.speculation.source.forget())
                request.cache, request.node, request.fed, request.awaited = None, None, 0, False
                request.proposed = ()
        self.wait_again()
        self.running = 0

    def take(self) -> Draw | None:
        """Return the next draw for the caller, or None. Raises the error that ended the call."""
        while self.ready:
            draw = self.ready.popleft()
            if draw is not self.last:
                self.last = draw
                return draw
        if self.error is not None:
            raise self.error
        return None

    def ring(self) -> None:
        """Wake the caller if it waits."""
        if self.listening:
            self.listening = False
            if self.on_ring is None:
                self._bell.put(None)
                return
            try:
                self.on_ring()
            except RuntimeError:  # the event loop was closed
                self.abandoned = True

    def wait(self, seconds: float) -> None:
        """Wait for `ring`, at most this long."""
        try:
            self._bell.get(timeout=seconds)
        except Empty:
            self.listening = False
