"""Detects hangs, and work that grows too fast, without a time limit."""

from __future__ import annotations

import time
from collections.abc import Callable

# A process that runs longer hangs. No test takes a hundredth of it on a quiet machine, so tests pass on a busy one too.
HANG_SECONDS = 600


def growth(work: Callable[[int], object], size: int, factor: int = 16, repeats: int = 3) -> float:
    """Return the growth of the work from `size` to `factor * size`: the ratio of this thread's CPU seconds.

    It is about `factor` for linear work and `factor` squared for quadratic work. Other processes do not add to CPU
    seconds. Each size uses the minimum of its repeats.
    """
    seconds = []
    for n in (size, factor * size):
        taken = []
        for _ in range(repeats):
            begin = time.thread_time()
            work(n)
            taken.append(time.thread_time() - begin)
        seconds.append(min(taken))
    return seconds[1] / max(seconds[0], 1e-6)
