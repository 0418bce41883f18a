"""Progress on standard error; bars only on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from fastattn.cli.streams import say
from fastattn.tasks.progress import on_terminal, open_bar, progress_bar

_DELAY_SECONDS = 0.5


def progress(total: int | None, unit: str) -> AbstractContextManager[Callable[[int], object]]:
    """Show a bar over `total` items, None if unknown; the function that it yields adds completed items.

    It does nothing without a terminal.
    """
    return progress_bar(on_terminal(), total, unit=f" {unit}", delay=_DELAY_SECONDS, leave=False)


class Reporter:
    """Reports the progress of a long command: plain lines, and on a terminal a bar with the latest line."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def say(self, line: str) -> None:
        """Report the next step."""
        if self._bar is not None:
            self._bar.set_description_str(line)
        else:
            say(line)

    def step(self, done: int, total: int) -> None:
        """Report that `done` of `total` steps are complete."""
        if self._bar is None and on_terminal():
            self._bar = open_bar(total=total, leave=False, bar_format="{desc} {bar} {elapsed}")
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
