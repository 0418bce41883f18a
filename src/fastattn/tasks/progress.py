"""Progress bars of calls, on standard error."""

from __future__ import annotations

from collections.abc import Iterable


def steps(n: int, size: int, *, show: bool | None, title: str = "Batches") -> Iterable[int]:
    """Return the start of each batch of `size` of n items, with a progress bar if `show` is true."""
    starts = range(0, n, size)
    if not show:
        return starts
    from tqdm.auto import tqdm

    bar: Iterable[int] = tqdm(starts, desc=title)
    return bar
