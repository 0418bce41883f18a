"""Runs embedding and scoring requests in threads, in parts between which a request can be stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastattn.server.fields import Fields
from fastattn.server.problems import Problem
from fastattn.tokenizer import Tokenizer
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE

if TYPE_CHECKING:
    from fastattn.server.app import App

_Result = TypeVar("_Result")
PART = 32  # texts of a step


class Stopped(Exception):
    """The request was canceled while its thread worked."""


class Stop:
    """Whether a request was canceled."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Cancel the request."""
        self._event.set()

    def check(self) -> None:
        """Raise Stopped if the request was canceled."""
        if self._event.is_set():
            raise Stopped


async def encode(app: App, work: Callable[[Stop], _Result]) -> _Result:
    """Run a function in a thread when there is a place. It is stopped at the next `check` if the task is canceled.

    The place stays taken until the function has ended.
    """
    async with app.encoding.place():
        return await run_stoppable(app, work)


async def run_stoppable(app: App, work: Callable[[Stop], _Result]) -> _Result:
    """Run a function in a thread; if the task is canceled, stop it at its next `check` and wait for its end."""
    stop = Stop()
    running = asyncio.ensure_future(app.in_thread(lambda: work(stop)))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({running})
        if not running.cancelled():
            running.exception()  # read the error, or asyncio would log it as never retrieved
        raise


def parts(lengths: Sequence[int], stop: Stop) -> Iterator[list[int]]:
    """Yield the indices of the texts in parts of similar length; stop between them."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for begin in range(0, len(order), PART):
        stop.check()
        yield order[begin : begin + PART]


class Limit:
    """How long texts may be, and whether longer ones are cut. Raises Problem."""

    def __init__(self, fields: Fields) -> None:
        self.truncate = fields.flag("truncate", False)
        side = str(fields.text("truncation_direction", "right")).lower()
        if side not in ("left", "right"):
            raise fields.refuse("truncation_direction", 'expected "left" or "right"')
        if side == "left" and self.truncate:
            raise fields.refuse("truncation_direction", 'expected "right"; texts are cut at their end', "unsupported")

    def check(self, name: str, lengths: Sequence[int], most: float) -> int:
        """Return the number of tokens that a model reads. Raises Problem for a text that is too long."""
        for i, length in enumerate(lengths):
            if length > most and not self.truncate:
                message = f"{name}[{i}]: expected at most {int(most)} tokens, got {length}; truncate cuts longer texts"
                raise Problem(400, message, name, "context_length_exceeded")
        return sum(int(min(length, most)) for length in lengths)


def token_counts(tokenizer: Tokenizer, items: Sequence[tuple[str, str | None]]) -> list[int]:
    """Return the number of tokens of texts and pairs, with special tokens."""
    encoded: Any = tokenizer.encode_pairs(items, max_length=None, strategy=DO_NOT_TRUNCATE)
    return [len(ids) for ids, _ in encoded]
