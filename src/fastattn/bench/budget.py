"""The time limit of a whole run of `fastattn bench`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from fastattn.errors import BenchError


class OutOfTime(BenchError):
    """The time limit of the run has passed."""


class Budget:
    """Counts down from `seconds`, which may be infinite."""

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Return the seconds until the end, at least 0."""
        return max(0.0, self._end - self._clock())

    def check(self) -> None:
        """Raise OutOfTime after the end."""
        if self.left() <= 0:
            raise OutOfTime(f"stopped after {self.seconds:g} s")
