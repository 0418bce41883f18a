"""Measures all libraries on one workload in turns, each between two measurements of the machine's limits.

The order is limit, one library, limit, the next, ...; all other libraries are stopped during a turn. A turn counts if
the limits before and after it agree within 10 %. Its percentage is relative to their mean. Results are medians over the
turns. The memory rate of a shared machine may halve within minutes; this method removes such drift from percentages and
ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastattn.bench.tables import quantity
from fastattn.errors import BenchError
from fastattn.profiling.limits import STEADY, LeastTime, are_same

OURS = "fastattn"


class Worker(Protocol):
    """An object that answers commands; see `fastattn.bench.worker`."""

    def ask(self, **command: Any) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Limit(LeastTime):
    """The minimum time of a sample at one moment; operations (two per multiply-add) and bytes are its cost."""

    operations: float
    bytes: float

    def __str__(self) -> str:
        if self.binds == "memory":
            return f"memory, {quantity(self.bytes / self.memory_seconds / 1e9)} GB/s"
        return f"compute, {quantity(self.operations / self.compute_seconds / 1e9)} GFLOP/s"


@dataclass(frozen=True, slots=True)
class Turn:
    """Samples of one library between two limits.

    waited: the time that its threads were ready but had no core, summed over the threads, per second of the turn; at:
    index among the turns of all libraries.
    """

    before: Limit
    after: Limit
    seconds: list[float]
    waited: float = 0.0
    at: int = 0

    @property
    def steady(self) -> bool:
        """Whether the machine was unchanged during the turn and no other work used its cores."""
        return are_same(self.before.seconds, self.after.seconds) and self.waited <= STEADY

    @property
    def limit_seconds(self) -> float:
        """The mean of the two limits."""
        return (self.before.seconds + self.after.seconds) / 2

    @property
    def percent(self) -> float:
        """Percent of the limit for the median sample."""
        return 100 * self.limit_seconds / statistics.median(self.seconds)


@dataclass(slots=True)
class Row:
    """All turns on one workload; a sample processes `count` items of `unit`."""

    name: str
    unit: str
    count: int
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    profile: dict[str, Any] | None = None

    def steady(self, library: str) -> list[Turn]:
        """Return the turns that count: the steady ones, or all if there are none."""
        turns = self.turns[library]
        return [turn for turn in turns if turn.steady] or turns

    def is_steady(self, library: str) -> bool:
        """Return whether any turn is steady; without one, percentages and ratios are unreliable."""
        return any(turn.steady for turn in self.turns[library])

    def seconds(self, library: str) -> list[float]:
        """Return all samples that count."""
        return [time for turn in self.steady(library) for time in turn.seconds]

    def median(self, library: str) -> float:
        """Return the seconds of the median sample."""
        return statistics.median(self.seconds(library))

    def rate(self, library: str) -> float:
        """Return tokens or sequences per second."""
        return self.count / self.median(library)

    def percent(self, library: str) -> float:
        """Return the percent of the limit: the median over the turns, each relative to its own limit."""
        return statistics.median(turn.percent for turn in self.steady(library))

    def ratio(self, library: str) -> float:
        """Return the time relative to ours: the median over its turns.

        Each turn is compared with our nearest turn, which removes drift.
        """
        ours = self.steady(OURS)
        return statistics.median(
            statistics.median(turn.seconds) / statistics.median(_nearest(ours, turn).seconds)
            for turn in self.steady(library)
        )

    def limit(self, library: str) -> Limit:
        """Return the median of the measured limits."""
        turns = sorted(self.steady(library), key=lambda turn: turn.before.seconds)
        return turns[len(turns) // 2].before

    def agreement(self, library: str) -> Agreement | None:
        """Return the agreement of its result with ours; None if one of them has no result."""
        if library not in self.results or OURS not in self.results:
            return None
        return compare(self.results[OURS], self.results[library])


def _nearest(turns: list[Turn], turn: Turn) -> Turn:
    return min(turns, key=lambda other: abs(other.at - turn.at))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two results agree.

    same: share of equal tokens, or of sequences with the highest value at the same index; difference: the largest
    difference divided by the largest value (None for tokens).
    """

    same: float
    difference: float | None

    def __str__(self) -> str:
        if self.difference is None:
            return f"{_percent(self.same)} of tokens equal"
        return f"difference {self.difference:.0e}, {_percent(self.same)} same argmax"


def _percent(share: float) -> str:
    """Format a share, never rounded up to 100 %."""
    return "100 %" if share == 1 else f"{min(99.9, 100 * share):.1f} %"


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Agreement | None:
    """Compare two results of the same workload."""
    if "tokens" in ours and "tokens" in theirs:
        a, b = np.array(ours["tokens"]), np.array(theirs["tokens"])
        return Agreement(float(np.mean(a == b)) if a.shape == b.shape else 0.0, None)
    if "values" in ours and "values" in theirs:
        x, y = np.array(ours["values"]), np.array(theirs["values"])
        if x.shape != y.shape:
            return Agreement(0.0, float("inf"))
        tops = zip(ours.get("top", ()), theirs.get("top", ()), strict=True)
        same = [a == b for a, b in tops] or [True]
        difference = np.abs(x - y).max(initial=0.0) / max(np.abs(x).max(initial=0.0), np.finfo(np.float32).tiny)
        return Agreement(sum(same) / len(same), float(difference))
    return None


def measure(
    row: Row, workers: Mapping[str, Worker], command: Mapping[str, Any], *, rounds: int, seconds: float
) -> None:
    """Run turns in rotation until every library has `rounds` steady ones, or four times as many were tried.

    command: the workload, as `fastattn.bench.worker` takes it. If a library fails, its reason is stored in
    `row.errors`. Raises BenchError if the limit cannot be measured or fastattn itself fails.
    """

    def limit() -> Limit:
        answer = workers[OURS].ask(do="limit", **command)
        if "error" in answer:
            raise BenchError(f"{row.name}: measuring the limit: {answer['error']}")
        return Limit(**answer)

    before, at = limit(), 0
    try:
        for _ in range(4 * rounds):
            for library, worker in workers.items():
                turns = row.turns.setdefault(library, [])
                if library in row.errors or sum(turn.steady for turn in turns) >= rounds:
                    continue
                answer = worker.ask(do="run", seconds=seconds, **command)
                if "error" in answer:
                    row.errors[library] = answer["error"]
                    if library == OURS:
                        raise BenchError(f"{row.name}: {answer['error']}")
                    continue
                after = limit()
                turns.append(Turn(before, after, answer.pop("seconds"), answer.pop("waited", 0.0), at))
                row.results[library] = answer
                before, at = after, at + 1
    finally:  # also if the run ends early
        row.turns = {library: turns for library, turns in row.turns.items() if turns}
