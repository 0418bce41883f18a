"""Where proposed tokens come from: the text itself, or a smaller model.

A proposal is only a guess. `fastattn.generation.scheduler` draws the token of every position as it would without it.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Protocol

from fastattn.generation.feed import draw_from_logits, sampling_of, step_of
from fastattn.generation.payoff import StepTimes
from fastattn.generation.request import Request
from fastattn.graph.executor import DrawingExecutor, Executor

_READ_TOKENS = 256  # maximum tokens of a text that a draft model reads beside one step


class Source(Protocol):
    """Proposes tokens for one sequence. Sources with the same key share one `Account`."""

    @property
    def key(self) -> Hashable: ...

    def offer(self, request: Request, most: int) -> tuple[int, int]:
        """Return the kind of the next proposal, and how many tokens it can have, at most `most`."""

    def close(self) -> None:
        """Free the memory; a later proposal starts again."""

    def forget(self) -> object:
        """Start again, and return what `close` would free."""


class PromptLookup:
    """Proposes what followed the last tokens of the text where they occurred before (Saxena 2023).

    n_tokens: maximum per proposal. ngram: how many of the last tokens are compared at most; the longest match wins, and
    among equally long ones the last. The kind of a proposal is the length of its match.
    """

    key = "prompt lookup"

    def __init__(self, n_tokens: int, ngram: int) -> None:
        self._n_tokens, self._ngram = n_tokens, ngram
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram -> the index after its last occurrence
        self._n_known = 0  # the n-grams that end before this index are known
        self._found: list[int] = []

    def offer(self, request: Request, most: int) -> tuple[int, int]:
        self._found, kind = self._look_up(request.ids, min(most, self._n_tokens))
        return kind, len(self._found)

    def take(self, count: int) -> list[int]:
        """Return the first tokens of the last offer."""
        return self._found[:count]

    def close(self) -> None:
        """Keep the n-grams, which stay true."""

    def forget(self) -> object:
        return None

    def _look_up(self, ids: list[int], most: int) -> tuple[list[int], int]:
        self._learn(ids)
        for n in range(min(self._ngram, len(ids)), 0, -1):
            begin = self._ends.get(tuple(ids[-n:]))
            if begin is None:
                continue
            found = ids[begin : begin + most]
            for at in range(len(found), most):  # the match is near the end: repeat the proposal
                found.append(found[at - len(ids) + begin])
            return found, n
        return [], 0

    def _learn(self, ids: list[int]) -> None:
        """Add the n-grams that some token follows."""
        if len(ids) < self._n_known:  # an interrupted step was undone
            self._ends, self._n_known = {}, 0
        for end in range(max(1, self._n_known), len(ids)):
            for n in range(1, min(self._ngram, end) + 1):
                self._ends[tuple(ids[end - n : end])] = end
        self._n_known = len(ids)


class Drafting:
    """Proposes what a smaller model draws next, with the options and the seed of the request.

    The same random number decides both draws, so two models that agree on the probabilities draw the same token.
    executor: of the smaller model. n_tokens: maximum per proposal.
    """

    def __init__(self, executor: Executor, n_tokens: int) -> None:
        self.executor, self._n_tokens = executor, n_tokens
        self._draft: Request | None = None  # the text and what was drafted, with keys and values of the smaller model
        self._n_same = 0  # ids of the draft that are the request's

    @property
    def key(self) -> Hashable:
        return id(self.executor)

    def offer(self, request: Request, most: int) -> tuple[int, int]:
        room = self.executor.program.max_positions - len(request.window)
        return 0, max(0, min(most, self._n_tokens, room))

    def follow(self, request: Request) -> Request:
        """Return the draft, after dropping what the request did not draw."""
        draft = self._draft
        if draft is None:
            draft = Request([], request.prompt_len, request.max_new_tokens, request.seed)
            draft.options, draft.eos_ids = request.options, request.eos_ids
            draft.min_new_tokens, draft.cache = request.min_new_tokens, self.executor.new_cache()
            self._draft, self._n_same = draft, 0
        same = min(self._n_same, len(request.ids))
        while same < min(len(draft.ids), len(request.ids)) and draft.ids[same] == request.ids[same]:
            same += 1
        fed = max(0, min(draft.fed, same - request.base, len(request.window) - 1)) if draft.base == request.base else 0
        if draft.cache is not None and fed < draft.fed:
            draft.cache.truncate(fed)
        draft.ids, draft.base, draft.fed = list(request.ids), request.base, fed
        self._n_same = len(request.ids)
        return draft

    def close(self) -> None:
        draft, self._draft = self._draft, None
        if draft is not None:
            draft.close()

    def forget(self) -> object:
        draft, self._draft = self._draft, None
        return draft


def draft_together(wanted: Sequence[tuple[Drafting, Request, int]], times: StepTimes) -> tuple[list[list[int]], bool]:
    """Return up to `count` tokens for each request, and whether the common steps of the executor only drafted.

    Otherwise the draft model also read a text, or a part of it, that was new to it. A long one takes several calls,
    which propose nothing for it. times: gets those of the steps that drafted. Raises FastattnError.
    """
    executor, only_drafts = wanted[0][0].executor, True
    found: list[list[int]] = [[] for _ in wanted]
    drafts = [source.follow(request) for source, request, _ in wanted]
    pending = list(range(len(wanted)))
    while pending:
        chunks = [(drafts[i], min(drafts[i].left, _READ_TOKENS)) for i in pending]
        drawn = [i for i, (draft, count) in zip(pending, chunks, strict=True) if count == draft.left]
        begin = time.perf_counter()
        step, sampling = step_of(chunks), sampling_of([drafts[i] for i in drawn])
        if isinstance(executor, DrawingExecutor):
            ids, _ = executor.draw(step, sampling)
        else:
            ids, _ = draw_from_logits(executor, step, sampling)
        for draft, count in chunks:
            draft.fed += count
        if all(count <= 2 for _, count in chunks):  # after accepted proposals, the draft lacks two tokens
            times.add(len(chunks), time.perf_counter() - begin)
        else:
            only_drafts = False
        for i, token_id in zip(drawn, ids, strict=True):
            found[i].append(token_id)
            drafts[i].ids.append(token_id)
        pending = [i for i in drawn if len(found[i]) < wanted[i][2]]
    return found, only_drafts
