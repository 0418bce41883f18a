"""Runs the items of a pipeline call in steps, and yields their results in order.

A window of items is read and tokenized, if possible while the window before it is computed (`ahead.py`). Its sequences
are sorted by length, so that similar ones share a step. A result depends only on its own item, so neither the window
nor the steps change it. Memory is bounded by two windows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import FastattnError, about_item
from fastattn.tasks.ahead import Cancel, prepare_ahead
from fastattn.tasks.pipeline_source import Item, Source
from fastattn.tasks.progress import DELAY_SECONDS, progress_bar, shown_on_terminal

DEFAULT_BATCH_SIZE = 32
WINDOW_STEPS = 16
WINDOW_TOKENS = 2**16
TOKEN_CHARS = 4  # approximate characters per token, because windows are read before their texts are tokenized
Reduced = TypeVar("Reduced")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence of a step: an item, or a part of it. name: the item's, for messages. detail: for `Job.reduce`."""

    name: str
    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32]
    detail: Any = None


@dataclass(frozen=True, slots=True)
class Named(Generic[Item]):
    """An item, its index in the call and its name for messages."""

    index: int
    item: Item
    name: str


class Job(ABC, Generic[Item, Reduced, Result]):
    """How a pipeline computes the result of an item.

    ahead: whether another thread may tokenize items while `forward` runs. n_sequences: approximate, per item.
    """

    ahead: ClassVar[bool] = True
    n_sequences: int = 1

    @abstractmethod
    def encode(self, index: int, item: Item, name: str) -> Sequence[Part]:
        """Return the sequences of an item."""

    def encode_all(self, items: Iterable[Named[Item]]) -> Iterator[Sequence[Part]]:
        """Yield the sequences of each item. A job overrides this if the tokenizer is faster with several texts.

        An error may be about any of the items; `encode` is then called for each of them.
        """
        for given in items:
            yield self.encode(given.index, given.item, given.name)

    @abstractmethod
    def forward(self, parts: Sequence[Part]) -> Iterable[tuple[int, Any]]:
        """Run one step; yield the index of each sequence with the model's output for it, in any order."""

    @abstractmethod
    def reduce(self, part: Part, output: Any) -> Reduced:
        """Return the part of a sequence's output that the result needs. The output is freed after the step."""

    @abstractmethod
    def finish(self, item: Item, reduced: list[Reduced]) -> Result:
        """Return the result of an item from its sequences, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """The sequences that share a step: at most batch_size of them, with at most max_batch_tokens tokens.

    batch_size None: DEFAULT_BATCH_SIZE, or no limit if max_batch_tokens is set. A longer sequence has a step of its
    own. A window has the sequences of about window_steps steps, or about window_tokens tokens if that is less.
    """

    batch_size: int | None = None
    max_batch_tokens: int | None = None
    show_progress_bar: bool | None = None
    window_steps: int = WINDOW_STEPS
    window_tokens: int = WINDOW_TOKENS

    @property
    def sequences(self) -> int | None:
        """The number of sequences of a step."""
        return DEFAULT_BATCH_SIZE if self.batch_size is None and self.max_batch_tokens is None else self.batch_size

    def fills(self, n_sequences: int, n_chars: int, n_steps: int) -> bool:
        """Return whether texts with this many sequences and characters fill n_steps."""
        n_tokens = n_chars // TOKEN_CHARS
        return (
            n_tokens >= self.window_tokens
            or (self.sequences is not None and n_sequences >= n_steps * self.sequences)
            or (self.max_batch_tokens is not None and n_tokens >= n_steps * self.max_batch_tokens)
        )

    def steps(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the indices of the sequences of each step, the longest first."""
        step: list[int] = []
        n_tokens = 0
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            too_many = self.sequences is not None and len(step) >= self.sequences
            too_long = self.max_batch_tokens is not None and n_tokens + lengths[i] > self.max_batch_tokens
            if step and (too_many or too_long):
                yield step
                step, n_tokens = [], 0
            step.append(i)
            n_tokens += lengths[i]
        if step:
            yield step


@dataclass(slots=True)
class _Entry(Generic[Item, Reduced]):
    """An item of a window. name: for messages. waiting: the number of its sequences without an output."""

    index: int
    name: str
    item: Item
    parts: Sequence[Part]
    reduced: list[Reduced | None] = field(default_factory=list)
    waiting: int = 0
    error: FastattnError | None = None


def run_job(
    job: Job[Item, Reduced, Result], source: Source[Item], limits: StepLimits
) -> list[Result] | Iterator[Result]:
    """Return the results of all items, or an iterator over them if the source is lazy."""
    if not source.lazy:
        return list(_results(job, source, limits))
    results = _results(job, source, limits)
    return results if source.total is None else SizedIterator(results, source.total)


class SizedIterator(Iterator[Result]):
    """An iterator with a length: the number of all results, including those already delivered."""

    def __init__(self, results: Iterator[Result], total: int) -> None:
        self._results, self._total = results, total

    def __next__(self) -> Result:
        return next(self._results)

    def __len__(self) -> int:
        return self._total

    def close(self) -> None:
        """Stop the work."""
        getattr(self._results, "close", lambda: None)()


def _results(job: Job[Item, Reduced, Result], source: Source[Item], limits: StepLimits) -> Iterator[Result]:
    """Yield the results of all items in order. An error about an item is raised after the results before it."""
    show = limits.show_progress_bar
    delay = 0.0 if show else DELAY_SECONDS
    shown = shown_on_terminal(show, lazy=source.lazy)
    with progress_bar(shown, source.total, unit=" items", delay=delay, leave=bool(show)) as done:
        ahead = job.ahead and limits.sequences != 1
        for window in prepare_ahead(_windows(job, source, limits), _Encoder(job).encode, ahead=ahead):
            if window.error is not None and not source.lazy:
                raise window.error
            _compute(job, window.entries, limits, done)
            while window.entries:
                entry = window.entries.popleft()
                if entry.error is not None:
                    raise entry.error
                with about_item(entry.index, entry.name):
                    result = job.finish(entry.item, cast("list[Reduced]", entry.reduced))
                yield result
            if window.error is not None:
                raise window.error


def _windows(job: Job[Item, Reduced, Result], source: Source[Item], limits: StepLimits) -> Iterator[list[Named[Item]]]:
    """Yield the items of each window. An error of the source is raised after the items before it."""
    # With one sequence per step, items are read one at a time. Otherwise windows grow, so first results come early.
    longest = 1 if limits.sequences == 1 else limits.window_steps
    n_steps = 1 if source.lazy else longest
    items = enumerate(source.items)
    error: Exception | None = None
    ended = False
    while not ended:
        window: list[Named[Item]] = []
        n_chars = 0
        while not limits.fills(len(window) * job.n_sequences, n_chars, n_steps):
            try:
                found = next(items, None)
            except Exception as raised:  # of any type: it may come from the caller's generator
                error, ended = raised, True
                break
            if found is None:
                ended = True
                break
            index, item = found
            window.append(Named(index, item, source.name_of(index)))
            n_chars += job.n_sequences * _n_chars(item)
        if window:
            yield window
        n_steps = min(2 * n_steps, longest)
    if error is not None:
        raise error


def _n_chars(item: object) -> int:
    """Return the number of characters of an item's texts."""
    if isinstance(item, str):
        return len(item)
    if isinstance(item, Mapping):
        return sum(_n_chars(value) for value in item.values())
    return sum(_n_chars(value) for value in item) if isinstance(item, (list, tuple)) else 0


@dataclass(frozen=True, slots=True)
class _Window(Generic[Item, Reduced]):
    """The tokenized items of a window; error: about the item after them."""

    entries: deque[_Entry[Item, Reduced]]
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class _Encoder(Generic[Item, Reduced, Result]):
    """Tokenizes windows of items."""

    job: Job[Item, Reduced, Result]

    def encode(self, items: list[Named[Item]], cancel: Cancel) -> _Window[Item, Reduced]:
        """Tokenize the items up to the first one with an error."""
        entries: deque[_Entry[Item, Reduced]] = deque()
        try:
            found = [*self.job.encode_all(cancel.guard(items))]
        except FastattnError:  # about any of the items
            found = []
        entries.extend(map(_entry, items, found))
        for given in cancel.guard(items[len(found) :]):
            try:
                with about_item(given.index, given.name):
                    parts = self.job.encode(given.index, given.item, given.name)
            except Exception as error:  # of any type, such as MemoryError
                return _Window(entries, error)
            entries.append(_entry(given, parts))
        return _Window(entries)


def _entry(given: Named[Item], parts: Sequence[Part]) -> _Entry[Item, Any]:
    return _Entry(given.index, given.name, given.item, parts, [None] * len(parts), len(parts))


def _compute(
    job: Job[Item, Reduced, Result],
    window: deque[_Entry[Item, Reduced]],
    limits: StepLimits,
    done: Callable[[int], object],
) -> None:
    """Run the sequences of a window. An error about an output is stored with its item."""
    places = [(entry, i) for entry in window for i in range(len(entry.parts))]
    parts = list(chain.from_iterable(entry.parts for entry in window))
    for step in limits.steps([len(part.ids) for part in parts]):
        for i, output in job.forward([parts[i] for i in step]):
            entry, place = places[step[i]]
            try:
                with about_item(entry.index, entry.name):
                    entry.reduced[place] = job.reduce(entry.parts[place], output)
            except FastattnError as error:
                entry.error = entry.error or error
            entry.waiting -= 1
            if not entry.waiting:
                done(1)
