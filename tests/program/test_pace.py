"""When steps stop using threads that other programs delay, and when they use them again."""

from __future__ import annotations

from fastattn import _core

WORK = 10_000_000  # multiply-adds
TEAM, ALONE, HELD_UP = 0.0005, 0.0008, 0.010  # seconds


def run(pace: _core.Pace, n_steps: int, team: float, alone: float = ALONE, rows: int = 1) -> list[bool]:
    """Run steps with these times; return which of them ran alone."""
    found = []
    for _ in range(n_steps):
        found.append(pace.alone(rows))
        pace.took(rows, WORK, alone if found[-1] else team, found[-1])
    return found


def test_a_steady_pace_stays_on_all_threads() -> None:
    pace = _core.Pace()
    assert not any(run(pace, 100, TEAM))
    assert not any(run(pace, 100, 3 * TEAM))  # slower, but by less than the cost of waiting for a thread
    assert not any(run(pace, 2, HELD_UP))  # only occasionally
    assert not any(run(pace, 100, TEAM))


def test_steps_that_wait_go_alone_for_longer_and_longer() -> None:
    pace = _core.Pace()
    run(pace, 10, TEAM)
    assert run(pace, 3, HELD_UP) == [False] * 3
    found = run(pace, 1000, HELD_UP)
    trials = [i for i, alone in enumerate(found) if not alone]
    assert trials == [32, 97, 226, 483, 996]  # one step each, after 32, 64, 128, ... steps alone


def test_a_trial_that_is_fast_brings_all_threads_back() -> None:
    pace = _core.Pace()
    run(pace, 10, TEAM)
    run(pace, 3, HELD_UP)
    assert run(pace, 32, HELD_UP) == [True] * 32
    assert not any(run(pace, 100, TEAM))
    run(pace, 3, HELD_UP)
    assert run(pace, 33, HELD_UP) == [True] * 32 + [False]


def test_alone_must_be_worth_it() -> None:
    pace = _core.Pace()
    run(pace, 10, TEAM)
    run(pace, 3, HELD_UP)
    assert run(pace, 2, HELD_UP, alone=HELD_UP) == [True, False]


def test_short_steps_wait_for_nobody_and_kinds_of_steps_are_apart() -> None:
    pace = _core.Pace()
    run(pace, 10, TEAM / 100)
    assert not any(run(pace, 100, 0.0009))
    run(pace, 10, TEAM, rows=100)
    run(pace, 3, HELD_UP, rows=100)
    assert pace.alone(100)
    assert not pace.alone(1)
