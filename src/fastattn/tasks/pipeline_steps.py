"""Runs the items of a pipeline call in steps, and yields their results in order.

A window of items is read and tokenized. Its sequences are sorted by length, so that similar ones share a step. A result
depends only on its own item, so neither the window nor the steps change it. Memory is bounded by the window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import FastattnError, about_item
from fastattn.tasks.pipeline_source import Item, Source
from fastattn.tasks.progress import DELAY_SECONDS, progress_bar, shown_on_terminal

DEFAULT_BATCH_SIZE = 32
WINDOW_STEPS = 16
WINDOW_TOKENS = 2**16
Reduced = TypeVar("Reduced")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence of a step: an item, or a part of it. name: the item's, for messages. detail: for `Job.reduce`."""

    name: str
    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32]
    detail: Any = None


class Job(ABC, Generic[Item, Reduced, Result]):
    """How a pipeline computes the result of an item."""

    @abstractmethod
    def encode(self, index: int, item: Item, name: str) -> Sequence[Part]:
        """Return the sequences of an item."""

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
    """The sequences that share a step: at most batch_size of them, with max_batch_tokens tokens.

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

    def fills(self, n_sequences: int, n_tokens: int, n_steps: int) -> bool:
        """Return whether this many sequences and tokens fill n_steps."""
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
    """An iterator with a length: the number of all results, also of those that were already delivered."""

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
    """Yield the results in order. An error about an item, or from the source, follows the results before it."""
    reader = _Reader(job, source, limits)
    show, delay = limits.show_progress_bar, 0 if limits.show_progress_bar else DELAY_SECONDS
    shown = shown_on_terminal(show, lazy=source.lazy)
    with progress_bar(shown, source.total, unit=" items", delay=delay, leave=bool(show)) as done:
        # With one sequence per step, items are read one at a time. Else windows grow, so first results come early.
        longest = 1 if limits.sequences == 1 else limits.window_steps
        n_steps = 1 if source.lazy else longest
        while True:
            window = reader.read(n_steps)
            _compute(job, window, limits, done)
            while window:
                entry = window.popleft()
                if entry.error is not None:
                    raise entry.error
                with about_item(entry.index, entry.name):
                    result = job.finish(entry.item, cast("list[Reduced]", entry.reduced))
                yield result
            if reader.error is not None:
                raise reader.error
            if reader.ended:
                return
            n_steps = min(2 * n_steps, longest)


class _Reader(Generic[Item, Reduced, Result]):
    """Reads windows of items. error: the exception of the source, or of the tokenization of an item, if any."""

    def __init__(self, job: Job[Item, Reduced, Result], source: Source[Item], limits: StepLimits) -> None:
        self._job, self._source, self._limits = job, source, limits
        self._items = enumerate(source.items)
        self.ended = False
        self.error: Exception | None = None

    def read(self, n_steps: int) -> deque[_Entry[Item, Reduced]]:
        """Return the next items, with the sequences of about n_steps; fewer at the end."""
        window: deque[_Entry[Item, Reduced]] = deque()
        n_parts = n_tokens = 0
        while not self._limits.fills(n_parts, n_tokens, n_steps):
            try:
                found = next(self._items, None)
                if found is None:
                    self.ended = True
                    break
                index, item = found
                name = self._source.name_of(index)
                with about_item(index, name):
                    parts = self._job.encode(index, item, name)
            except Exception as error:  # of any type: it may come from the caller's generator
                if not self._source.lazy:
                    raise
                self.error = error
                break
            window.append(_Entry(index, name, item, parts, [None] * len(parts), len(parts)))
            n_parts += len(parts)
            n_tokens += sum(len(part.ids) for part in parts)
        return window


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
