"""Texts are tokenized in windows, each while the window before it is computed, and run in batches of similar length."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from fastattn.errors import FastattnError, about_item
from fastattn.tasks.ahead import Cancel, prepare_ahead
from fastattn.tasks.progress import progress_bar, shown_by_log_level
from fastattn.tasks.sentence.features import Rows
from fastattn.tasks.sentence.prompts import with_prompt
from fastattn.tasks.sentence.text_model import Encoded, Pairs, TextTask, TextTruncation, TokenizingModule

WINDOW_TEXTS = 512  # maximum number of texts in a window, unless a batch has more
Part: TypeAlias = "tuple[int, Pairs]"  # the index of the first text of a window in the call, and the texts


@dataclass(frozen=True, slots=True)
class Window:
    """The tokens of a window. first: the index of its first text. cut: index of a cut text to its number of tokens."""

    first: int
    texts: Pairs
    encoded: Encoded
    cut: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEncoder:
    """How the texts of a call are tokenized.

    prefix: the prompt. where: returns the name of text i of the call for messages. cut: receives the index of each cut
    text and its number of tokens.
    """

    module: TokenizingModule
    truncation: TextTruncation
    task: TextTask | None
    prefix: str
    where: Callable[[int], str]
    cut: dict[int, int] | None = None

    def encode(self, part: Part, cancel: Cancel) -> Window:
        """Tokenize the texts of a window. Raises InputError."""
        first, texts = part
        window = Window(first, texts, [])
        cut: dict[int, int] = {}
        names = [self.where(first + i) for i in range(len(texts))]
        pairs = cancel.guard(with_prompt(self.prefix, texts))
        window.encoded.extend(self.module.encode(pairs, self.truncation, self.task, cut, names))
        window.cut.update({first + i: length for i, length in cut.items()})
        return window

    def batches(self, texts: Pairs, size: int, *, show: bool | None) -> Iterator[tuple[list[int], Encoded]]:
        """Yield the indices of the texts of each batch, and their tokens, the longest first.

        show: a progress bar, as in `SentenceTransformer.encode`.
        """
        with progress_bar(shown_by_log_level(show), -(-len(texts) // size), title="Batches") as done:
            for window in prepare_ahead(_parts(texts, size), self.encode):
                if self.cut is not None:
                    self.cut.update(window.cut)
                for batch in batches_by_length(window.encoded, size):
                    yield [window.first + i for i in batch], [window.encoded[i] for i in batch]
                    done(1)


def stream(
    parts: Iterator[Part], tokens: WindowEncoder, compute: Callable[[Window], Rows], *, ahead: bool
) -> Iterator[tuple[int, Rows]]:
    """Yield `compute(window)` of each part, in order, with the index of the first text.

    If a text of a window has an error, `compute` gets the window's texts one at a time, which gives the same bits. So
    the results before the error are yielded first. ahead: as in `prepare_ahead`.
    """

    def prepare(part: Part, cancel: Cancel) -> tuple[Part, Window | None]:
        try:
            return part, tokens.encode(part, cancel)
        except FastattnError:
            return part, None

    for (first, texts), window in prepare_ahead(parts, prepare, ahead=ahead):
        found: Rows | None = None
        if window is not None:
            with contextlib.suppress(FastattnError):
                found = compute(window)
        if window is not None and found is not None:
            if tokens.cut is not None:
                tokens.cut.update(window.cut)
            yield first, found
            continue
        for i, text in enumerate(texts, first):
            with about_item(i, tokens.where(i)):
                single = tokens.encode((i, [text]), Cancel())
                vectors = compute(single)
            if tokens.cut is not None:
                tokens.cut.update(single.cut)
            yield i, vectors


def batches_by_length(encoded: Encoded, size: int) -> Iterator[list[int]]:
    """Yield the indices of the texts of each batch. Texts of similar length share one."""
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i][0]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def window_sizes(batch_size: int, most: int = WINDOW_TEXTS) -> Iterator[int]:
    """Yield the number of texts of each window: first one batch, so that computing starts early, then up to `most`."""
    size, most = batch_size, max(1, most // batch_size) * batch_size
    while True:
        yield size
        size = min(2 * size, most)


def _parts(texts: Pairs, batch_size: int) -> Iterator[Part]:
    first = 0
    for size in window_sizes(batch_size):
        if first >= len(texts):
            return
        yield first, texts[first : first + size]
        first += size
