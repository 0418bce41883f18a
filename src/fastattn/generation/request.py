"""One sequence during generation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastattn.generation.options import GenerationOptions
from fastattn.generation.processors import Processor, stops_at
from fastattn.generation.stopping import TextState
from fastattn.graph.executor import Cache
from fastattn.models.outputs import FinishReason


class TokenRecord(NamedTuple):
    """What is recorded of one drawn token, as far as its request asks for it.

    top_ids int32 [n], top_logprobs float32 [n]: the most likely ids. scores [vocab]: after processors and filters.
    logits [vocab].
    """

    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    scores: NDArray[np.floating[Any]] | None
    logits: NDArray[np.floating[Any]] | None


@dataclass(slots=True, eq=False)
class Request:
    """One sequence: `ids` holds the prompt and the drawn tokens; the first `fed` of them are in the cache.

    min_new_tokens: no end-of-text id is drawn before this many tokens. options: how its tokens are drawn. eos_ids: the
    ids that end it. wants_logprobs: whether `logprobs` collects the log-probabilities of the drawn ids. processors: of
    its logits. siblings: all requests of the same prompt. records: of the drawn tokens, if its options ask for any.
    score, beam_indices: of beam search, as in GenerateOutput.
    """

    ids: list[int]
    prompt_len: int
    max_new_tokens: int
    seed: int
    text: TextState | None = None
    min_new_tokens: int = 0
    options: GenerationOptions = field(default_factory=GenerationOptions)
    eos_ids: frozenset[int] = frozenset()
    wants_logprobs: bool = False
    processors: tuple[Processor, ...] = ()
    siblings: list[Request] = field(default_factory=list)
    records: list[TokenRecord] = field(default_factory=list)
    score: float | None = None
    beam_indices: list[int] | None = None
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cache: Cache | None = None
    fed: int = 0

    @property
    def new_len(self) -> int:
        """The number of drawn tokens."""
        return len(self.ids) - self.prompt_len

    @property
    def draws_in_core(self) -> bool:
        """Whether a step can draw the next token itself, without returning logits."""
        return not (self.processors or self.options.records_tokens) and self.options.filters_in_core

    def keep_new(self, count: int) -> None:
        """Drop the drawn tokens after the first `count`."""
        del self.ids[self.prompt_len + count :]
        del self.logprobs[count:], self.records[count:]

    def append(self, token_id: int, *, is_end: bool, asks_user: bool = True) -> str:
        """Add a drawn token, record whether it ends the request, and return the text that it completes.

        asks_user: whether stopping_criteria are called.
        """
        self.ids.append(token_id)
        piece = "" if self.text is None else self.text.push(token_id)
        if is_end:
            self.finish_reason = "eos"
        elif asks_user and self.options.stopping_criteria and stops_at(self.options.stopping_criteria, self.ids):
            self.finish_reason = "stopping_criteria"
        elif self.new_len >= self.max_new_tokens:
            self.finish_reason = "length"
        if self.text is not None:
            if self.finish_reason is not None or self.text.stopped:
                piece += self.text.finish()
            if self.text.stopped:
                self.finish_reason = "stop_string"
                self.keep_new(self.text.whole_tokens(self.ids[self.prompt_len :]))
        return piece

    def close(self) -> None:
        if self.cache is not None:
            self.cache.close()
            self.cache = None
