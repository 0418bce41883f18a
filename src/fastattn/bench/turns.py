"""Measuring: turns of every library on one piece of work, each between two measurements of the machine's limits.

Turns go limit, one library, limit, the next, ...; all others are stopped meanwhile. A turn counts if the limits before
and after it agree within 10 %, and its percent is against their mean; figures are medians over the turns. So the drift
of a shared machine, whose memory rate may halve within minutes, drops out of percents and ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastattn.bench.tables import quantity
from fastattn.errors import BenchError
from fastattn.profiling.limits import LeastTime

OURS = "fastattn"
STEADY = 0.1


class Worker(Protocol):
    """What answers commands; see `fastattn.bench.worker`."""

    def ask(self, **command: Any) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Limit(LeastTime):
    """The least time of a sample at one moment; operations (two a multiply-add) and bytes are what it costs."""

    operations: float
    bytes: float

    def __str__(self) -> str:
        if self.binds == "memory":
            return f"memory, {quantity(self.bytes / self.memory_seconds / 1e9)} GB/s"
        return f"compute, {quantity(self.operations / self.compute_seconds / 1e9)} GFLOP/s"


@dataclass(frozen=True, slots=True)
class Turn:
    """Some samples of one library, between two limits.

    waited: seconds a second that its threads were ready and had no core; at: counts the turns of all libraries.
    """

    before: Limit
    after: Limit
    seconds: list[float]
    waited: float = 0.0
    at: int = 0

    @property
    def steady(self) -> bool:
        """Whether the machine was the same before and after, and no other work took its cores."""
        a, b = self.before.seconds, self.after.seconds
        return abs(a - b) <= STEADY * max(a, b) and self.waited <= STEADY

    @property
    def limit_seconds(self) -> float:
        """The mean of both."""
        return (self.before.seconds + self.after.seconds) / 2

    @property
    def percent(self) -> float:
        """Of the limit, by the median sample."""
        return 100 * self.limit_seconds / statistics.median(self.seconds)


@dataclass(slots=True)
class Row:
    """All turns on one piece of work; `count` things (`unit`) are done in a sample."""

    name: str
    unit: str
    count: int
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    profile: dict[str, Any] | None = None

    def steady(self, library: str) -> list[Turn]:
        """The turns that count: the steady ones, or all if there are none."""
        turns = self.turns[library]
        return [turn for turn in turns if turn.steady] or turns

    def is_steady(self, library: str) -> bool:
        """Whether any turn is: without one, percents and ratios say little."""
        return any(turn.steady for turn in self.turns[library])

    def seconds(self, library: str) -> list[float]:
        """All samples that count."""
        return [time for turn in self.steady(library) for time in turn.seconds]

    def median(self, library: str) -> float:
        """Seconds of the median sample."""
        return statistics.median(self.seconds(library))

    def rate(self, library: str) -> float:
        """Tokens or sequences a second."""
        return self.count / self.median(library)

    def percent(self, library: str) -> float:
        """Of the limit: the median over the turns, each against its own."""
        return statistics.median(turn.percent for turn in self.steady(library))

    def ratio(self, library: str) -> float:
        """Time over ours: the median over its turns, each against our nearest one, so that drift drops out."""
        ours = self.steady(OURS)
        return statistics.median(
            statistics.median(turn.seconds) / statistics.median(_nearest(ours, turn).seconds)
            for turn in self.steady(library)
        )

    def limit(self, library: str) -> Limit:
        """A limit in the middle of those that were measured."""
        turns = sorted(self.steady(library), key=lambda turn: turn.before.seconds)
        return turns[len(turns) // 2].before

    def agreement(self, library: str) -> Agreement | None:
        """Of its result with ours; None where one of them has none."""
        if library not in self.results or OURS not in self.results:
            return None
        return compare(self.results[OURS], self.results[library])


def _nearest(turns: list[Turn], turn: Turn) -> Turn:
    return min(turns, key=lambda other: abs(other.at - turn.at))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two results are the same.

    same: share of equal tokens, or of sequences with the same highest value; difference: the largest one over the
    largest value (None for tokens).
    """

    same: float
    difference: float | None

    def __str__(self) -> str:
        if self.difference is None:
            return f"{_percent(self.same)} of tokens equal"
        return f"difference {self.difference:.0e}, {_percent(self.same)} same highest"


def _percent(share: float) -> str:
    """Never rounded up to all of it."""
    return "100 %" if share == 1 else f"{min(99.9, 100 * share):.1f} %"


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Agreement | None:
    """Two results of the same work."""
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
    """Turns in rotation until every library has `rounds` steady ones, or four times as many were tried.

    command: the work, as `fastattn.bench.worker` takes it. A library that fails gets its reason in `row.errors`.
    Raises BenchError where the limit cannot be measured or fastattn itself fails.
    """

    def limit() -> Limit:
        answer = workers[OURS].ask(do="limit", **command)
        if "error" in answer:
            raise BenchError(f"{row.name}: measuring the limit: {answer['error']}")
        return Limit(**answer)

    try:
        _rotate(row, workers, command, limit, rounds=rounds, seconds=seconds)
    finally:  # also of a run that ends early
        row.turns = {library: turns for library, turns in row.turns.items() if turns}


def _rotate(
    row: Row,
    workers: Mapping[str, Worker],
    command: Mapping[str, Any],
    limit: Callable[[], Limit],
    *,
    rounds: int,
    seconds: float,
) -> None:
    before, at = limit(), 0
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
