"""Prepares the next part of a call in another thread while the caller computes the current one.

Tokenizing and computing overlap, because both release the GIL. At most two parts are in memory. The thread only
prepares: the caller's iterators, which may wait or belong to one thread, are read in the caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from threading import Thread
from typing import Generic, TypeAlias, TypeVar

from fastattn.tokenizer.library import uses_threads

Given = TypeVar("Given")
Made = TypeVar("Made")
Item = TypeVar("Item")
_CHECK_SECONDS = 0.5  # how often a waiting caller checks that the thread exists: after a fork it does not


class Cancel:
    """Ends the preparation of a part early."""

    def __init__(self) -> None:
        self.wanted = False

    def guard(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items until the preparation is canceled."""
        for item in items:
            if self.wanted:
                raise _CanceledError
            yield item


class _CanceledError(Exception):
    """The result of a part is no longer needed."""


Prepare: TypeAlias = Callable[[Given, Cancel], Made]


def prepare_ahead(parts: Iterator[Given], prepare: Prepare[Given, Made], *, ahead: bool = True) -> Generator[Made]:
    """Yield `prepare(part, cancel)` of each part, in order.

    While the caller handles a result, a thread prepares the next one; `prepare` should read its items through
    `cancel.guard`. An error of `parts` or of `prepare` is raised after the results before it. Closing the iterator, or
    an interrupt, ends the thread first. Without a second part, no thread starts. Nor does one start if the tokenizers
    library uses threads of its own: then `prepare` holds the GIL, and a thread would only delay the caller. ahead:
    False reads a part only after the caller has handled the result before it.
    """
    if not ahead or uses_threads():
        for part in parts:
            yield prepare(part, Cancel())
        return
    current: _Ahead[Given, Made] | None = None
    error: Exception | None = None
    ended = False
    try:
        while True:
            upcoming: _Ahead[Given, Made] | None = None
            if not ended:
                try:
                    upcoming = _Ahead(next(parts), prepare)
                except StopIteration:
                    ended = True
                except Exception as found:  # of any type: it may come from the caller's iterator
                    error, ended = found, True
            if current is None:
                current = upcoming
                if current is None:
                    break
                continue
            ready = current.result()
            current = upcoming
            if current is not None:
                current.start()
            yield ready
    finally:
        if current is not None:
            current.cancel()
    if error is not None:
        raise error


class _Ahead(Generic[Given, Made]):
    """A part that is prepared in a thread, or without `start`, in the thread that needs the result."""

    def __init__(self, part: Given, prepare: Prepare[Given, Made]) -> None:
        self._part, self._prepare = part, prepare
        self._cancel = Cancel()
        self._made: list[Made] = []
        self._error: BaseException | None = None
        self._thread: Thread | None = None

    def start(self) -> None:
        """Start the thread, if the system has room for one."""
        self._thread = Thread(target=self._run, name="fastattn-tokenize")
        try:
            self._thread.start()
        except RuntimeError:  # the limit of threads is reached, or the interpreter is ending
            self._thread = None

    def result(self) -> Made:
        """Wait for the result; raise the error of `prepare`."""
        self._join()
        if not self._made and self._error is None:  # no thread, or it exists only in the parent of this process
            self._run()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._made.pop()

    def cancel(self) -> None:
        """End the thread, if there is one."""
        self._cancel.wanted = True
        self._join()

    def _join(self) -> None:
        thread = self._thread
        while thread is not None and thread.is_alive():
            thread.join(_CHECK_SECONDS)

    def _run(self) -> None:
        try:
            self._made.append(self._prepare(self._part, self._cancel))
        except BaseException as error:
            self._error = error
