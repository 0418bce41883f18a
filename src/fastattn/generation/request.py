"""One sequence during generation."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastattn.generation.options import GenerationOptions
from fastattn.generation.stopping import TextState
from fastattn.graph.executor import Cache
from fastattn.models.outputs import FinishReason


@dataclass(slots=True, eq=False)
class Request:
    """One sequence: `ids` holds the prompt and the drawn tokens; the first `fed` of them are in the cache.

    min_new_tokens: no end-of-text id is drawn before this many tokens. options: how its tokens are drawn. eos_ids: the
    ids that end it. wants_logprobs: whether `logprobs` collects the log-probabilities of the drawn ids.
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
        return True

    def keep_new(self, count: int) -> None:
        """Drop the drawn tokens after the first `count`."""
        del self.ids[self.prompt_len + count :]
        del self.logprobs[count:]

    def append(self, token_id: int, *, is_end: bool) -> str:
        """Add a drawn token, record whether it ends the request, and return the text that it completes."""
        self.ids.append(token_id)
        piece = "" if self.text is None else self.text.push(token_id)
        if is_end:
            self.finish_reason = "eos"
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
