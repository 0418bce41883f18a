"""Decides how many proposed tokens a step verifies, from measured step times and acceptance rates.

A step with more rows takes longer, and only the proposals that are drawn save steps. Nothing here changes a result.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from fastattn.generation.options import MAX_AHEAD

MAX_ROWS = 32  # sequences of a step that still verifies proposals: more of them already use the weights well
EARNED = 0.02  # credit per token drawn, so that steps with proposals that are never drawn add about 2 % to the time
_FIRST_CREDIT = 1.5  # tokens
_MOST_CREDIT = 3.0
_LEAST_CREDIT = -16.0  # limits what one step that was slow for another reason can cost
_HOPE_OF_TIME = 0.97
_HOPE = 0.4  # assumed rate of acceptance of a sequence that waited long enough to try again
_DOUBT = 0.95  # the highest rate, so that the first proposal of one sequence goes before the last of another
_PATIENCE = 64  # maximum tokens between two attempts
_ROW_COST = 0.05  # assumed cost of a further row, as a fraction of the step, until it is measured
_DRAFT_COST = 0.25  # the same for a step of a draft model
_MEASURE_AGAIN = 32  # verifying steps in a row, until one without proposals is measured
_FORGET = 512  # steps without proposals until the times of other numbers of rows are measured again
_FADING = 0.9
_PRIOR = 2.0  # weight of the rate of other sequences, in attempts


@dataclass(slots=True)
class Rate:
    """How many of the proposals were drawn, with a memory that fades. An attempt ends at the first wrong one."""

    accepted: float = 0.0
    tried: float = 0.0

    def add(self, n_accepted: int, *, all_right: bool) -> None:
        self.accepted = _FADING * self.accepted + n_accepted
        self.tried = _FADING * self.tried + n_accepted + (0 if all_right else 1)

    def given(self, prior: float) -> float:
        """Return the probability that a proposal is drawn. prior: that of other sequences."""
        return (self.accepted + _PRIOR * prior) / (self.tried + _PRIOR)


class StepTimes:
    """Seconds of decode steps by their number of rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def add(self, n_rows: int, seconds: float) -> None:
        known = self.of(n_rows)
        self._seconds[n_rows] = seconds if known is None else _smoothed(known, seconds)

    def forget_others(self, n_rows: int) -> None:
        """Keep only the time of `n_rows`, because the machine and the lengths of texts change."""
        self._seconds = {n: seconds for n, seconds in self._seconds.items() if n == n_rows}

    def of(self, n_rows: int) -> float | None:
        """Return the expected seconds of a step; None before any was measured."""
        if n_rows in self._seconds or not self._seconds:
            return self._seconds.get(n_rows)
        below = max((n for n in self._seconds if n < n_rows), default=None)
        above = min((n for n in self._seconds if n > n_rows), default=None)
        if below is None:
            return self._seconds[min(self._seconds)]
        least = self._seconds[below]
        if above is None:
            return least * (1 + _ROW_COST * (n_rows - below))
        return least + max(0.0, self._seconds[above] - least) * (n_rows - below) / (above - below)

    def hope(self) -> None:
        """Expect a little less, because what seems too slow is not measured again."""
        self._seconds = {n_rows: _HOPE_OF_TIME * seconds for n_rows, seconds in self._seconds.items()}


def _smoothed(known: float, found: float) -> float:
    """Return a mean that follows lower times faster, because delays by other programs only add."""
    return known + (0.5 if found < known else 0.3) * (min(found, 2 * known) - known)


@dataclass(slots=True)
class Account:
    """What proposals of one source, such as prompt lookup, have saved and cost, in tokens.

    rates: by kind of proposal, over all sequences. drafts: times of the steps of a draft model.
    """

    credit: float = _FIRST_CREDIT
    rates: dict[int, Rate] = field(default_factory=dict)
    drafts: StepTimes = field(default_factory=StepTimes)

    def add(self, tokens: float) -> None:
        self.credit = min(_MOST_CREDIT, max(_LEAST_CREDIT, self.credit + tokens))


@dataclass(slots=True)
class Tries:
    """The attempts of one sequence. waits: tokens until the next one. failures, n_nothing: in a row."""

    rates: dict[int, Rate] = field(default_factory=dict)
    waits: int = 0
    failures: int = 0
    n_nothing: int = 0

    def rate(self, kind: int, account: Account) -> float:
        """Return the expected rate of acceptance; a sequence whose turn it is has a chance."""
        prior = account.rates.setdefault(kind, Rate()).given(0.5)
        return min(_DOUBT, max(_HOPE, self.rates.setdefault(kind, Rate()).given(prior)))

    def had_nothing(self, waits: int, *, most: int) -> None:
        """Record that the source had nothing. The next look waits; twice as long each time, up to `most` tokens."""
        self.waits = min(most, waits << min(self.n_nothing, 8))
        self.n_nothing += 1

    def add(self, kind: int, account: Account, n_accepted: int, n_proposed: int) -> None:
        """Record an attempt. After a failure, the next one waits; twice as long after each further failure."""
        for rates in (self.rates, account.rates):
            rates.setdefault(kind, Rate()).add(n_accepted, all_right=n_accepted == n_proposed)
        self.failures = 0 if n_accepted else self.failures + 1
        if self.failures > 1:
            self.waits = min(_PATIENCE, 2 ** (self.failures - 2))


@dataclass(slots=True)
class Offer:
    """Up to `count` tokens that a source can propose for one sequence.

    rate: the chance of each to be drawn, after those before it. drafts: whether a draft model computes them.
    """

    rate: float
    count: int
    account: Account
    drafts: bool


class Payoff:
    """The times and the accounts of one executor."""

    def __init__(self) -> None:
        self._times = StepTimes()
        self._accounts: dict[Hashable, Account] = {}
        self._n_verifying = 0  # steps since one without proposals
        self._n_passed = 0  # steps without proposals

    def account(self, key: Hashable) -> Account:
        return self._accounts.setdefault(key, Account())

    def measures(self, n_rows: int) -> bool:
        """Return whether a step of `n_rows` sequences must be measured without proposals."""
        return self._n_verifying >= _MEASURE_AGAIN or self._times.of(n_rows) is None

    def choose(self, n_rows: int, offers: Sequence[Offer]) -> list[int]:
        """Return how many tokens of each offer a step of `n_rows` sequences verifies: the most tokens per second.

        A further token of an offer is worth the chance that it and all before it are drawn. Call it after a step
        without proposals was measured.
        """
        counts = [0] * len(offers)
        plain = self._times.of(n_rows) or 1.0
        worth = sorted(
            ((offer.rate**i, at) for at, offer in enumerate(offers) for i in range(1, offer.count + 1)), reverse=True
        )[:MAX_AHEAD]
        best, tokens, drafts = n_rows / plain, float(n_rows), 0.0
        taken, together = list(counts), dict[tuple[int, int], int]()  # sequences in each step of a draft model
        for n, (gain, at) in enumerate(worth, 1):
            tokens, offer = tokens + gain, offers[at]
            taken[at] += 1
            if offer.drafts:
                n_before = together.get((id(offer.account), taken[at]), 0)
                together[id(offer.account), taken[at]] = n_before + 1
                drafts += _draft_seconds(offer.account, n_before + 1, plain)
                drafts -= _draft_seconds(offer.account, n_before, plain)
            speed = tokens / (max(plain, self._times.of(n_rows + n) or plain) + drafts)
            if speed > best:
                best, counts = speed, list(taken)
        for offer in () if any(counts) else offers:
            offer.account.drafts.hope()
        return counts

    def passed(self, n_rows: int, seconds: float) -> None:
        """Record a decode step without proposals."""
        self._times.add(n_rows, seconds)
        self._n_verifying = 0
        self.skipped(n_rows, 1)

    def skipped(self, n_rows: int, count: int) -> None:
        """Count decode steps without proposals whose times are not recorded."""
        before, self._n_passed = self._n_passed, self._n_passed + count
        if self._n_passed // _FORGET > before // _FORGET:
            self._times.forget_others(n_rows)

    def returned(self, n_rows: int, accounts: Sequence[Account], seconds: float) -> None:
        """Record the first decode step after one with proposals: it plans again and starts the decode loop again.

        The time that it takes beyond other steps, up to one step, is charged to the proposals.
        """
        plain = self._times.of(n_rows) or seconds
        lost = min(1.0, max(0.0, seconds / plain - 1)) * n_rows
        for account in accounts:
            account.add(-lost / len(accounts))

    def verified(self, n_rows: int, results: Sequence[tuple[Account, int, int]], seconds: float) -> None:
        """Record a decode step with proposals. results: of each sequence, the tokens proposed and accepted."""
        n_proposed = sum(n for _, n, _ in results)
        plain = self._times.of(n_rows) or seconds
        lost = max(0.0, seconds / plain - 1) * n_rows  # tokens that steps without proposals would have drawn
        for account, n, n_accepted in results:
            account.add(n_accepted - lost * n / n_proposed)
        self._times.add(n_rows + n_proposed, seconds)
        self._n_verifying += 1

    def charge(self, account: Account, n_rows: int, seconds: float, *, most: float = math.inf) -> None:
        """Record the time of a draft model beside a step of `n_rows` sequences. most: tokens that it can cost."""
        plain = self._times.of(n_rows)
        if plain:
            account.add(-min(most, n_rows * seconds / plain))


def _draft_seconds(account: Account, n_rows: int, plain: float) -> float:
    """Return the expected seconds of a draft model's step. plain: of the model's step without proposals."""
    if n_rows == 0:
        return 0.0
    found = account.drafts.of(n_rows)
    return _DRAFT_COST * plain if found is None else found
