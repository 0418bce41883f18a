"""Speculation: a step verifies several proposed tokens of a sequence at once, and the output stays the same.

A sequence with k proposed tokens feeds 1 + k tokens. Each of these rows draws its token as without speculation, because
a draw depends only on the tokens before it, the seed and the position. Draws count up to the first one that differs
from its proposal; the keys and values after it are discarded. docs/design/0024-speculation.md has the reasons.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from fastattn.errors import FastattnError, InputError
from fastattn.generation.options import GenerationOptions
from fastattn.generation.payoff import EARNED, MAX_ROWS, Account, Offer, Payoff, Tries
from fastattn.generation.proposals import Drafting, PromptLookup, draft_together

if TYPE_CHECKING:
    from fastattn.generation.page_plan import PagePlan
    from fastattn.generation.prompts import LanguageModel
    from fastattn.generation.request import Request

_log = logging.getLogger("fastattn")
NGRAM = 2  # as in transformers
DRAFT_TOKENS = 8  # maximum per proposal of a draft model
_LOOK_AGAIN = 8  # tokens until a sequence tries again after its proposals did not pay
_AFTER_NOTHING = 2  # the same after a source had nothing; twice as long each time, because a look takes microseconds
_MOST_QUIET = 16  # steps that are counted together if nothing can be proposed in them
_PRICE_OF_READING = 1.0  # tokens that reading a text costs at most
_Source: TypeAlias = "PromptLookup | Drafting"


@dataclass(slots=True, eq=False)
class Speculation:
    """The proposals for one request.

    n_proposed, n_accepted: tokens that were verified, and those that were drawn too. n_steps: steps in which the
    request drew tokens. account: of its source. kind: of the last proposal.
    """

    source: _Source
    n_proposed: int = 0
    n_accepted: int = 0
    n_steps: int = 0
    tries: Tries = field(default_factory=Tries)
    account: Account | None = None
    kind: int = 0
    off: bool = False

    def stop(self) -> None:
        """Propose nothing from now on."""
        self.off = True
        self.source.close()


class Verified(NamedTuple):
    """What a step did for a sequence: tokens that were proposed, those of them that were drawn, and all drawn ones."""

    n_proposed: int
    n_accepted: int
    n_drawn: int


@runtime_checkable
class _HasCopies(Protocol):
    def copy_in(self, dtype: str) -> LanguageModel:
        """Return the model with weights of another dtype."""


def _assistant_of(model: LanguageModel, chosen: Any) -> LanguageModel:
    """Return the draft model that an option names. Raises InputError for one of another vocabulary, ConfigError."""
    if isinstance(chosen, str):
        if not isinstance(model, _HasCopies):
            raise InputError(
                f"assistant_model: expected a model from from_pretrained for {chosen!r}, got another; pass a "
                "draft model"
            )
        return model.copy_in(chosen)
    if chosen.executor not in model.engine.assistants:
        _check_vocabulary(model, chosen)
        model.engine.assistants.add(chosen.executor)
    assistant: LanguageModel = chosen
    return assistant


def _check_vocabulary(model: LanguageModel, assistant: LanguageModel) -> None:
    """Raise InputError if an id means another token to the assistant."""
    outputs = assistant.executor.program.outputs
    width = assistant.executor.program.values[outputs["logits"]].width if "logits" in outputs else 0
    expected = model.executor.program
    n_ids = expected.values[expected.outputs["logits"]].width
    if width != n_ids:
        raise InputError(
            f"assistant_model: expected a model with the same {n_ids} ids, got one with {width}; use a smaller "
            'model of the same family, or "int4" for a copy of the model'
        )
    ours, theirs = model.tokenizer, assistant.tokenizer
    if ours is not None and theirs is not None and ours.get_vocab() != theirs.get_vocab():
        raise InputError(
            "assistant_model: expected a model with the same tokenizer, got one with other tokens; use a smaller "
            'model of the same family, or "int4" for a copy of the model'
        )


def speculation_of(model: LanguageModel, options: GenerationOptions) -> Speculation | None:
    """Return what a request speculates with; None if its options ask for nothing, or constrain its text.

    Raises InputError, ConfigError.
    """
    if options.constraint is not None:  # most proposals would break it
        return None
    if options.prompt_lookup_num_tokens is not None:
        ngram = options.max_matching_ngram_size
        return Speculation(PromptLookup(options.prompt_lookup_num_tokens, NGRAM if ngram is None else ngram))
    if options.assistant_model is not None:
        assistant, n_tokens = _assistant_of(model, options.assistant_model), options.num_assistant_tokens
        return Speculation(Drafting(assistant.executor, DRAFT_TOKENS if n_tokens is None else n_tokens))
    return None


class Speculator:
    """Decides which tokens a scheduler's steps verify. One thread at a time."""

    def __init__(self) -> None:
        self.payoff = Payoff()
        self._draft_seconds = 0.0  # of draft models in this step, which have their own price
        # Steps of the same rows in which nothing can be proposed are only counted, because a small model's step takes
        # not much longer than the bookkeeping. `_n_quiet` of them are left, `_n_skipped` are not recorded yet.
        self._quiet_rows: list[Request] = []
        self._n_quiet = self._n_skipped = 0
        self._charged: list[Account] = []  # sources of the last step, if it verified proposals

    def propose(self, chunks: Sequence[tuple[Request, int]], pages: PagePlan, step_tokens: int) -> None:
        """Set the proposals of the requests that a step feeds one token each; none beside prompts or many sequences."""
        self._draft_seconds, n_rows = 0.0, len(chunks)
        if self._n_quiet:
            if [request for request, _ in chunks] == self._quiet_rows:
                return
            self._settle()
        if n_rows > MAX_ROWS or not any(request.speculation for request, _ in chunks):
            return
        if self.payoff.measures(n_rows) or any(request.left != 1 for request, _ in chunks):
            return
        offers = self._offers([request for request, _ in chunks])
        if not offers:
            return
        room = step_tokens - n_rows
        wanted: list[tuple[Request, Speculation, int]] = []
        counts = self.payoff.choose(n_rows, [offer for _, _, offer in offers])
        if not any(counts):  # the step would take too long
            for _, speculation, _ in offers:
                speculation.tries.waits = _LOOK_AGAIN
        for (request, speculation, _), count in zip(offers, counts, strict=True):
            count = min(count, room)
            if count > 0 and pages.reserve(request, count, after=1):
                wanted.append((request, speculation, count))
                room -= count
        self._fill(wanted, n_rows)

    def _account(self, speculation: Speculation) -> Account:
        if speculation.account is None:
            speculation.account = self.payoff.account(speculation.source.key)
        return speculation.account

    def has_offers(self, rows: Sequence[Request]) -> bool:
        """Return whether something can be proposed for a step of these rows, which are those of the last step."""
        if self._n_quiet:
            return False
        return len(rows) <= MAX_ROWS and not self.payoff.measures(len(rows)) and bool(self._offers(rows))

    def _offers(self, rows: Sequence[Request]) -> list[tuple[Request, Speculation, Offer]]:
        offers: list[tuple[Request, Speculation, Offer]] = []
        for request in rows:
            speculation = request.speculation
            if speculation is not None and (offer := self._offer(request, speculation)) is not None:
                offers.append((request, speculation, offer))
        return offers

    def _offer(self, request: Request, speculation: Speculation) -> Offer | None:
        """Return what can be proposed for a request now."""
        if speculation.off or speculation.tries.waits > 0:
            return None
        account = self._account(speculation)
        most = request.max_new_tokens - request.new_len - 1
        if request.context is not None:  # the window must not move between two draws of a step
            most = min(most, request.context - len(request.window))
        if most < 1 or account.credit <= 0:
            return None
        speculation.kind, count = speculation.source.offer(request, most)
        if count < 1:
            speculation.tries.had_nothing(_AFTER_NOTHING, most=_LOOK_AGAIN)
            return None
        speculation.tries.n_nothing = 0
        drafts = isinstance(speculation.source, Drafting)
        return Offer(speculation.tries.rate(speculation.kind, account), count, account, drafts)

    def _fill(self, wanted: Sequence[tuple[Request, Speculation, int]], n_rows: int) -> None:
        """Get the proposals from their sources."""
        drafting: dict[int, list[tuple[Request, Speculation, int]]] = {}
        for request, speculation, count in wanted:
            if isinstance(speculation.source, PromptLookup):
                request.proposed = speculation.source.take(count)
            else:
                drafting.setdefault(id(speculation.source.executor), []).append((request, speculation, count))
        for together in drafting.values():
            self._draft(together, n_rows)

    def _draft(self, wanted: Sequence[tuple[Request, Speculation, int]], n_rows: int) -> None:
        account = self._account(wanted[0][1])
        sources = [(s.source, request, n) for request, s, n in wanted if isinstance(s.source, Drafting)]
        begin = time.perf_counter()
        try:
            found, only_drafts = draft_together(sources, account.drafts)
        except (FastattnError, MemoryError) as error:  # the text goes on without proposals
            for _, speculation, _ in wanted:
                speculation.stop()
            _log.warning("assistant_model: no longer used for %d texts: %s", len(wanted), error)
            return
        seconds = time.perf_counter() - begin
        self._draft_seconds += seconds
        for (request, _, _), tokens in zip(wanted, found, strict=True):
            request.proposed = tokens
        # Reading a text is needed once. Its full price would keep a good draft model from being used at all.
        self.payoff.charge(account, n_rows, seconds, most=math.inf if only_drafts else _PRICE_OF_READING)

    def record(self, rows: Sequence[Request], results: Sequence[Verified], seconds: float) -> None:
        """Record a step that fed one token of each row and its proposals. seconds: with the time to propose them.

        A sequence that ended before the first wrong proposal does not count as a failure.
        """
        if self._n_quiet:
            if rows == self._quiet_rows and self._n_quiet > 1:
                self._n_quiet, self._n_skipped = self._n_quiet - 1, self._n_skipped + 1
                return
            self._settle()
        verified: list[tuple[Account, int, int]] = []
        for request, (n_proposed, n_accepted, n_drawn) in zip(rows, results, strict=True):
            speculation = request.speculation
            if speculation is None:
                continue
            account, tries = self._account(speculation), speculation.tries
            account.add(EARNED * n_drawn)
            if tries.waits:
                tries.waits = max(0, tries.waits - n_drawn)
            if n_proposed:
                speculation.n_proposed += n_proposed
                speculation.n_accepted += n_accepted
                verified.append((account, n_proposed, n_accepted))
                if request.finish_reason is None:
                    tries.add(speculation.kind, account, n_accepted, n_proposed)
        seconds -= self._draft_seconds
        self._draft_seconds = 0.0
        if verified:
            self.payoff.verified(len(rows), verified, seconds)
        elif self._charged and not self.payoff.measures(len(rows)):
            self.payoff.returned(len(rows), self._charged, seconds)
        else:
            self.payoff.passed(len(rows), seconds)
        self._charged = [account for account, _, _ in verified]
        if not verified:
            self._quiet_rows, self._n_quiet = list(rows), self._steps_without_offers(rows)

    def _steps_without_offers(self, rows: Sequence[Request]) -> int:
        """Return for how many steps of these rows nothing can be proposed, if each draws one token of each."""
        least = _MOST_QUIET
        for request in rows:
            speculation = request.speculation
            if speculation is not None and not speculation.off:
                missing = -self._account(speculation).credit
                least = min(least, max(speculation.tries.waits, math.ceil(missing / (EARNED * len(rows)))))
        return least

    def _settle(self) -> None:
        """Record the steps that were only counted."""
        skipped, self._n_skipped, self._n_quiet = self._n_skipped, 0, 0
        for request in self._quiet_rows if skipped else ():
            if request.speculation is not None:
                self._account(request.speculation).add(EARNED * skipped)
                request.speculation.tries.waits = max(0, request.speculation.tries.waits - skipped)
        self.payoff.skipped(len(self._quiet_rows), skipped)
