"""Progress bars of calls, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

DELAY_SECONDS = 2.0  # a call that ends sooner shows no bar, unless it is asked for


def on_terminal() -> bool:
    """Return whether standard error is a terminal."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


@contextmanager
def progress_bar(show: bool | None, total: int | None, *, lazy: bool) -> Iterator[Callable[[int], object]]:
    """Show a bar on standard error; the yielded function adds finished items.

    show: None shows it on a terminal if the call takes long, but not for an iterator, whose reader often has a bar.
    """
    if show is False or (show is None and (lazy or not on_terminal())):
        yield lambda count: None
        return
    from tqdm.auto import tqdm  # not above: few calls show a bar, and the import takes long

    with tqdm(total=total, unit=" items", delay=0 if show else DELAY_SECONDS, leave=bool(show)) as bar:
        yield bar.update


def steps(n: int, size: int, *, show: bool | None, title: str = "Batches") -> Iterable[int]:
    """Return the start of each batch of `size` of n items, with a progress bar if `show` is true."""
    starts = range(0, n, size)
    if not show:
        return starts
    from tqdm.auto import tqdm

    bar: Iterable[int] = tqdm(starts, desc=title)
    return bar
