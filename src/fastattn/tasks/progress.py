"""Progress bars on standard error.

With `show_progress_bar=None`, the API that a call belongs to decides. In the API of sentence-transformers
(`encode`, `predict`, `rank`), a bar appears if the level of the logger "fastattn" is INFO or DEBUG:
`shown_by_log_level`. Elsewhere it appears on a terminal if the call takes long: `shown_on_terminal`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DELAY_SECONDS = 2.0  # a call that ends sooner shows no bar, unless it is asked for
_log = logging.getLogger("fastattn")


def on_terminal() -> bool:
    """Return whether standard error is a terminal."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def shown_by_log_level(show: bool | None) -> bool:
    """Return whether to show a bar in the API of sentence-transformers."""
    return _log.getEffectiveLevel() in (logging.INFO, logging.DEBUG) if show is None else show


def shown_on_terminal(show: bool | None, *, lazy: bool) -> bool:
    """Return whether to show a bar in other APIs: not for an iterator, whose reader often has a bar."""
    return (on_terminal() and not lazy) if show is None else show


@contextmanager
def progress_bar(
    show: bool, total: int | None, *, title: str | None = None, unit: str = "it", delay: float = 0, leave: bool = True
) -> Iterator[Callable[[int], object]]:
    """Show a bar over `total` units, None if unknown; the yielded function adds finished ones.

    delay: seconds before the bar appears. leave: whether it remains on the screen.
    """
    if not show:
        yield lambda count: None
        return
    with open_bar(total=total, desc=title, unit=unit, delay=delay, leave=leave) as bar:
        yield bar.update


def open_bar(**options: Any) -> Any:
    """Return a bar of tqdm."""
    from tqdm.auto import tqdm  # imported here, because few calls show a bar and the import is slow

    return tqdm(dynamic_ncols=True, **options)
