"""How tests notice a hang, and that work does not grow too fast, without a bound on time."""

from __future__ import annotations

import time
from collections.abc import Callable

# A process that runs longer hangs. No test takes a hundredth of it on a quiet machine, so a busy one passes too.
HANG_SECONDS = 600


def growth(work: Callable[[int], object], size: int, factor: int = 16, repeats: int = 3) -> float:
    """By how much the work grows from `size` to `factor * size`: the ratio of CPU seconds of this thread.

    About `factor` for linear work, `factor` squared for quadratic work. Other processes do not add to CPU seconds, and
    each size counts with the least of its repeats.
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
