"""Turns, with workers whose clock is a list of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from fastattn.bench.turns import Agreement, Limit, Row, Turn, compare, measure
from fastattn.errors import BenchError

LIMIT = {"compute_seconds": 1.0, "memory_seconds": 0.5, "operations": 10.0, "bytes": 4.0}


class Fake:
    """Answers from lists; the last answer of a list is repeated."""

    def __init__(self, runs: list[dict[str, Any]], limits: list[dict[str, Any]] | None = None) -> None:
        self.asked: list[str] = []
        self._runs, self._limits = self._endless(runs), self._endless(limits or [LIMIT])

    @staticmethod
    def _endless(answers: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        yield from answers
        while True:
            yield answers[-1]

    def ask(self, **command: Any) -> dict[str, Any]:
        self.asked.append(command["do"])
        return dict(next(self._limits if command["do"] == "limit" else self._runs))


def run(*seconds: float, **more: Any) -> dict[str, Any]:
    return {"seconds": list(seconds), **more}


def measured(*, rounds: int = 2, **workers: Fake) -> Row:
    row = Row("work", "tokens", 8)
    measure(row, workers, {"name": "work"}, rounds=rounds, seconds=0.0)
    return row


def test_figures() -> None:
    row = measured(fastattn=Fake([run(2.0, 4.0, 3.0), run(2.0, 2.0)]), other=Fake([run(6.0), run(5.0)]))
    assert row.median("fastattn") == 2.0
    assert row.seconds("fastattn") == [2.0, 4.0, 3.0, 2.0, 2.0]
    assert row.rate("fastattn") == 4.0
    assert row.percent("fastattn") == (100 * 1.0 / 3.0 + 100 * 1.0 / 2.0) / 2
    assert row.ratio("other") == (6.0 / 3.0 + 5.0 / 2.0) / 2
    assert row.ratio("fastattn") == 1.0


def test_every_turn_is_between_two_limits() -> None:
    ours, other = Fake([run(2.0)]), Fake([run(3.0)])
    measured(rounds=1, fastattn=ours, other=other)
    assert ours.asked == ["limit", "run", "limit", "limit"]
    assert other.asked == ["run"]


def test_turns_on_a_changing_machine_do_not_count() -> None:
    slow = {**LIMIT, "compute_seconds": 2.0}
    row = measured(rounds=1, fastattn=Fake([run(9.0), run(9.0), run(2.0)], [LIMIT, slow, LIMIT, LIMIT]))
    assert [turn.steady for turn in row.turns["fastattn"]] == [False, False, True]
    assert row.seconds("fastattn") == [2.0]
    assert row.is_steady("fastattn")


def test_a_machine_that_is_never_steady() -> None:
    """After four times the rounds, all turns count."""
    limits = [{**LIMIT, "compute_seconds": 1.0 + i % 2} for i in range(20)]
    row = measured(rounds=2, fastattn=Fake([run(2.0)], limits))
    assert len(row.turns["fastattn"]) == 8
    assert not row.is_steady("fastattn")
    assert len(row.seconds("fastattn")) == 8


def test_a_turn_whose_threads_waited_does_not_count() -> None:
    row = measured(rounds=1, fastattn=Fake([run(9.0, waited=0.8), run(2.0, waited=0.01)]))
    assert row.seconds("fastattn") == [2.0]


def test_the_nearest_turn_of_ours() -> None:
    """The machine's speed halves between two rounds: a ratio does not change."""
    row = measured(fastattn=Fake([run(1.0), run(2.0)]), other=Fake([run(3.0), run(6.0)]))
    assert row.ratio("other") == 3.0


def test_a_library_that_fails_is_left_out_and_the_others_go_on() -> None:
    broken = Fake([run(1.0), {"error": "RuntimeError: no memory"}])
    row = measured(rounds=3, fastattn=Fake([run(2.0)]), broken=broken, dead=Fake([{"error": "gone"}]))
    assert row.errors == {"broken": "RuntimeError: no memory", "dead": "gone"}
    assert broken.asked == ["run", "run"]
    assert len(row.turns["fastattn"]) == 3
    assert "dead" not in row.turns


def test_our_own_failure_is_an_error() -> None:
    with pytest.raises(BenchError, match="work: measuring the limit: OSError"):
        measured(fastattn=Fake([run(1.0)], [{"error": "OSError"}]))
    with pytest.raises(BenchError, match="work: MemoryError"):
        measured(fastattn=Fake([{"error": "MemoryError"}]))


def test_what_binds() -> None:
    assert (Limit(1.0, 0.5, 10e9, 4e9).binds, str(Limit(1.0, 0.5, 10e9, 4e9))) == ("compute", "compute, 10.0 GFLOP/s")
    assert (Limit(0.5, 1.0, 10e9, 4e9).seconds, str(Limit(0.5, 1.0, 10e9, 4e9))) == (1.0, "memory, 4.00 GB/s")
    turn = Turn(Limit(1.0, 0.5, 1, 1), Limit(1.05, 0.5, 1, 1), [2.0, 4.0, 2.05])
    assert turn.steady
    assert turn.percent == 100 * 1.025 / 2.05


def test_agreement_of_tokens() -> None:
    assert compare({"tokens": [[1, 2], [3, 4]]}, {"tokens": [[1, 2], [3, 5]]}) == Agreement(0.75, None)
    assert compare({"tokens": [[1, 2]]}, {"tokens": [[1]]}) == Agreement(0.0, None)
    assert str(Agreement(0.75, None)) == "75.0 % of tokens equal"
    assert str(Agreement(0.9999, None)) == "99.9 % of tokens equal"  # never rounded up to all
    assert str(Agreement(1.0, None)) == "100 % of tokens equal"


def test_agreement_of_values() -> None:
    ours = {"values": [1.0, -4.0], "top": [0]}
    assert compare(ours, {"values": [1.0, -2.0], "top": [0]}) == Agreement(1.0, 0.5)
    assert compare(ours, {"values": [1.0, -4.0], "top": [1]}) == Agreement(0.0, 0.0)
    assert compare(ours, {"values": [1.0], "top": [0]}) == Agreement(0.0, math.inf)
    assert math.isnan(compare(ours, {"values": [1.0, math.nan], "top": [0]}).difference)  # type: ignore[union-attr, arg-type]
    assert compare(ours, {"tokens": [[1]]}) is None
    assert str(Agreement(1.0, 2e-6)) == "difference 2e-06, 100 % same argmax"


def test_agreement_needs_both() -> None:
    row = measured(fastattn=Fake([run(1.0, tokens=[[1]])]), other=Fake([run(1.0, tokens=[[2]])]), mute=Fake([run(1.0)]))
    assert row.agreement("other") == Agreement(0.0, None)
    assert row.agreement("mute") is None
    assert row.agreement("absent") is None
