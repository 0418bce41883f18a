"""How many proposed tokens a step verifies, with given times instead of measured ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from fastattn.generation import speculation
from fastattn.generation.payoff import EARNED, Account, Offer, Payoff, StepTimes, Tries
from fastattn.generation.proposals import PromptLookup
from fastattn.generation.request import Request


def payoff_with(times: dict[int, float]) -> Payoff:
    """Return a Payoff that has measured these seconds by number of rows, in turns, until its means have settled."""
    payoff = Payoff()
    for _ in range(60):
        for n_rows, seconds in times.items():
            payoff.passed(n_rows, seconds)
    return payoff


def test_times_between_and_beyond_measured_ones() -> None:
    times = StepTimes()
    assert times.of(3) is None
    times.add(2, 1.0)
    assert times.of(2) == 1.0
    assert times.of(1) == 1.0
    assert times.of(4) == pytest.approx(1.1)  # 5 % per row
    for _ in range(60):
        times.add(10, 3.0)
    assert times.of(6) == pytest.approx(2.0)
    times.forget_others(2)
    assert times.of(10) == pytest.approx(1.4)


def test_the_choice_has_the_most_expected_tokens_per_second() -> None:
    numbers = random.Random(0)
    for _ in range(30):
        n_rows = numbers.randint(1, 4)
        seconds, times = 1.0, {}
        for n in range(n_rows, n_rows + 13):
            times[n] = seconds
            seconds += numbers.choice((0.0, 0.05, 0.3, 0.6))
        payoff = payoff_with(times)
        offers = [
            Offer(numbers.uniform(0.4, 0.95), numbers.randint(1, 3), Account(), drafts=False) for _ in range(n_rows)
        ]

        def speed(
            counts: tuple[int, ...], offers: list[Offer] = offers, payoff: Payoff = payoff, n_rows: int = n_rows
        ) -> float:
            tokens = sum(sum(o.rate**i for i in range(count + 1)) for o, count in zip(offers, counts, strict=True))
            time = payoff._times.of(n_rows + sum(counts))
            assert time is not None
            return tokens / time

        best = max(map(speed, itertools.product(*(range(offer.count + 1) for offer in offers))))
        assert speed(tuple(payoff.choose(n_rows, offers))) == pytest.approx(best)


def test_a_slow_draft_model_is_not_asked() -> None:
    payoff, account = payoff_with({1: 1.0, 2: 1.01, 3: 1.02}), Account()
    offer = Offer(0.9, 2, account, drafts=True)
    account.drafts.add(1, 0.2)
    assert payoff.choose(1, [offer]) == [2]
    slow = Account()
    slow.drafts.add(1, 1.0)
    assert payoff.choose(1, [Offer(0.9, 2, slow, drafts=True)]) == [0]
    expected = slow.drafts.of(1)
    assert expected is not None
    assert expected < 1.0  # it is tried again later


def test_proposals_that_are_always_wrong_cost_two_percent() -> None:
    """Even a sequence that does not wait between its attempts, with steps that take twice as long."""
    payoff = payoff_with({1: 1.0})
    account = payoff.account("wrong")
    lost, n_steps = 0.0, 3000
    for _ in range(n_steps):
        account.add(EARNED)
        if account.credit > 0:
            payoff.verified(1, [(account, 8, 0)], 2.0)
            lost += 1.0
    assert lost <= 1.5 + EARNED * n_steps + 1


def test_attempts_wait_longer_after_each_failure() -> None:
    tries, account = Tries(), Account()
    waits = []
    for _ in range(12):
        tries.waits = 0
        tries.add(1, account, 0, 3)
        waits.append(tries.waits)
    assert waits == [0, 1, 2, 4, 8, 16, 32, 64, 64, 64, 64, 64]
    tries.waits = 0
    tries.add(1, account, 1, 3)
    assert (tries.failures, tries.waits) == (0, 0)


def test_looks_wait_longer_after_each_that_found_nothing() -> None:
    tries, waits = Tries(), []
    for _ in range(5):
        tries.had_nothing(2, most=8)
        waits.append(tries.waits)
    assert waits == [2, 4, 8, 8, 8]


def test_the_step_after_proposals_is_charged_for_what_it_takes_longer() -> None:
    payoff, one, other = payoff_with({2: 1.0}), Account(), Account()
    payoff.returned(2, [one, other], 1.25)
    assert (one.credit, other.credit) == (1.25, 1.25)  # half a token of two sequences
    payoff.returned(2, [one], 90.0)
    assert one.credit == 1.25 - 2  # at most a step
    payoff.returned(2, [other], 0.5)
    assert other.credit == 1.25
    assert payoff._times.of(2) == 1.0


def test_times_are_measured_again_after_steps_that_were_only_counted() -> None:
    payoff = Payoff()
    payoff.passed(1, 1.0)
    payoff.verified(1, [(Account(), 1, 1)], 5.0)
    measured = payoff._times.of(2)
    assert measured != pytest.approx(1.05)
    payoff.skipped(1, 510)
    assert payoff._times.of(2) == measured
    payoff.skipped(1, 3)
    assert payoff._times.of(2) == pytest.approx(1.05)


class Room:
    """Pages that are never full."""

    def reserve(self, request: Request, count: int, *, after: int = 0) -> bool:
        return True


def attempts(most_quiet: int, monkeypatch: pytest.MonkeyPatch, *, found: Callable[[int], int]) -> list[tuple[int, int]]:
    """Return the steps with proposals, and how many they had. found: how many the source has in a step."""
    monkeypatch.setattr(speculation, "_MOST_QUIET", most_quiet)
    request = Request([1, 2], 2, 10_000, 0)
    request.speculation = speculation.Speculation(PromptLookup(8, 2))
    speculator, seen, step = speculation.Speculator(), list[tuple[int, int]](), 0
    monkeypatch.setattr(PromptLookup, "_look_up", lambda *_: ([7] * found(step), 1))
    for step in range(600):
        request.fed = len(request.ids) - 1
        if speculator.has_offers([request]) or step % 64 == 0:  # the scheduler plans when a page is full
            speculator.propose([(request, 1)], Room(), 1024)  # type: ignore[arg-type]
        n_proposed, request.proposed = len(request.proposed), ()
        if n_proposed:
            seen.append((step, n_proposed))
        request.ids.append(3)
        speculator.record([request], [speculation.Verified(n_proposed, 0, 1)], 1.0 + 0.05 * n_proposed)
    return seen


@pytest.mark.parametrize(
    "found", [lambda step: 8, lambda step: 0, lambda step: 3 * (step % 7 == 0), lambda step: 8 * (step > 300)]
)
def test_steps_that_are_only_counted_change_no_decision(
    monkeypatch: pytest.MonkeyPatch, found: Callable[[int], int]
) -> None:
    quiet, plain = (attempts(most, monkeypatch, found=found) for most in (16, 0))
    assert quiet == plain
    assert bool(quiet) == any(map(found, range(600)))
    assert sum(0.05 * n for _, n in quiet) <= 1.5 + EARNED * 600 + 0.4  # credit, and one step beyond it


def test_rates_of_a_sequence_begin_with_those_of_others() -> None:
    account, first = Account(), Tries()
    for _ in range(50):
        first.add(2, account, 4, 4)
    assert first.rate(2, account) == 0.95
    assert Tries().rate(2, account) > 0.9
    assert Tries().rate(1, account) == 0.5  # another kind of proposal
    for _ in range(50):
        first.add(2, account, 0, 4)
    assert first.rate(2, account) == 0.4
