"""One sequence during generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastattn.generation.options import GenerationOptions
from fastattn.generation.prefix_tree import Node
from fastattn.generation.processors import Processor, stops_at
from fastattn.generation.source import Source
from fastattn.generation.stopping import TextState
from fastattn.generation.structured import Mask
from fastattn.graph.executor import Cache
from fastattn.graph.kinds import LoraAdapter
from fastattn.models.outputs import FinishReason

if TYPE_CHECKING:
    from fastattn.generation.beam_search import Beam, BeamSearch, SearchState
    from fastattn.generation.call import Call
    from fastattn.generation.speculation import Speculation

_PLAIN = GenerationOptions()


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

    min_new_tokens: no end-of-text id is drawn before this many tokens. logprobs: of the drawn ids, if `wants_logprobs`.
    source: what the encoder reads; None without an encoder. Requests with a source share no pages, because their keys
    and values depend on it. options: how this sequence draws its tokens. eos_ids: they end it. index: its place
    in the call, for messages.
    deadline: the time.monotonic() at which it ends; None: never. processors: of its logits. mask: the last of them, if
    its options constrain the text. siblings: all requests of the same prompt. records: of the drawn tokens, if its
    options ask for any. search: the beam search that this request runs for all requests of its prompt. score,
    beam_indices: of beam search, as in GenerateOutput.
    """

    ids: list[int]
    prompt_len: int
    max_new_tokens: int
    seed: int
    text: TextState | None = None
    min_new_tokens: int = 0
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cache: Cache | None = None
    source: Source | None = None
    fed: int = 0
    options: GenerationOptions = _PLAIN
    eos_ids: frozenset[int] = frozenset()
    wants_logprobs: bool = False
    index: int = 0
    deadline: float | None = None
    processors: tuple[Processor, ...] = ()
    mask: Mask | None = None
    siblings: list[Request] = field(default_factory=list)
    records: list[TokenRecord] = field(default_factory=list)
    search: BeamSearch | None = None
    score: float | None = None
    beam_indices: list[int] | None = None
    # With a context, a text may be longer than it: when it is full, the next tokens are computed from the end of the
    # text, `window`, which begins at `base`.
    context: int | None = None
    base: int = 0
    # State of the scheduler. node: the end of the pages that the cache shares with the prefix tree. n_unseen: how many
    # pages before it the cache has freed, because of sliding windows. awaited: another sequence waits for keys and
    # values that this one computes. draws_in_core: False if the draw needs numpy, or after logits that are not finite.
    node: Node | None = None
    n_unseen: int = 0
    # call: what it was submitted with. number: the order of its first admission. pins: keep its pages; `pinned` are
    # their nodes.
    awaited: bool = False
    draws_in_core: bool = True
    call: Call | None = None
    number: int = 0
    pins: bool = False
    pinned: Sequence[Node] = ()
    # speculation: where proposals come from, if its options ask for them. proposed: tokens that the next step verifies;
    # it feeds them after those of `ids`.
    speculation: Speculation | None = None
    proposed: Sequence[int] = ()
    adapter: LoraAdapter | None = None

    @property
    def new_len(self) -> int:
        """The number of drawn tokens."""
        return len(self.ids) - self.prompt_len

    def join(
        self,
        siblings: list[Request],
        processors: tuple[Processor, ...],
        mask: Mask | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        """Set the processors and the source of proposals, and become one of the requests of a prompt."""
        self.processors, self.siblings, self.mask, self.speculation = processors, siblings, mask, speculation
        if mask is not None:
            self.processors = (*processors, mask)
        self.wants_logprobs = self.options.best_of is not None
        self.draws_in_core = not self.needs_numpy
        siblings.append(self)

    @property
    def needs_numpy(self) -> bool:
        """Whether its options ask for more than the sampler of the step can do."""
        options = self.options
        return bool(self.processors) or options.records_tokens or options.num_beams > 1 or not options.filters_in_core

    @property
    def runs(self) -> bool:
        """Whether the scheduler runs it: a beam search runs only its first request."""
        return self.search is not None or self.options.num_beams == 1

    @property
    def n_sequences(self) -> int:
        """The number of texts that it computes at a time."""
        return 1 if self.search is None else self.options.num_beams

    @property
    def beams(self) -> Sequence[Beam]:
        """The beams of its search, when the prompt is in the cache."""
        return () if self.search is None else self.search.beams

    @property
    def n_rows(self) -> int:
        """The number of rows of logits that its next draw needs."""
        return max(1, len(self.beams))

    @property
    def left(self) -> int:
        """The number of ids, of the beams if there are any, that are not in a cache."""
        beams = self.beams
        return sum(beam.left for beam in beams) if beams else len(self.ids) - self.base - self.fed

    def parts(self, count: int) -> Sequence[tuple[Request | Beam, int]]:
        """Return what a step feeds if it feeds `count` tokens of this request."""
        return self.search.parts(count) if self.search is not None and self.search.beams else ((self, count),)

    @property
    def window(self) -> list[int]:
        """The ids that the cache is for."""
        return self.ids[self.base :] if self.base else self.ids

    def slides(self) -> bool:
        """Return whether the window must move before the next token."""
        return self.context is not None and len(self.ids) - self.base > self.context

    def slide(self) -> None:
        """Move the window to where it belongs."""
        self.base = 0 if self.context is None else window_start(len(self.ids), self.context)

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
            self._end_at_stop()
        return piece

    def end(self, reason: FinishReason) -> str:
        """End the request without another token, and return the rest of its text.

        The reason is "stop_string" if the rest completes a stop string.
        """
        self.finish_reason = reason
        piece = "" if self.text is None else self.text.finish()
        self._end_at_stop()
        return piece

    def _end_at_stop(self) -> None:
        """If the text has a stop string, end the request with the tokens before it."""
        if self.text is not None and self.text.stopped:
            self.finish_reason = "stop_string"
            self.keep_new(self.text.whole_tokens(self.ids[self.prompt_len :]))

    def mark(self) -> int | SearchState:
        """Return what `rewind` needs to undo a step."""
        return len(self.ids) if self.search is None else self.search.state

    def rewind(self, mark: int | SearchState) -> None:
        """Return to a mark after an interrupted step."""
        if isinstance(mark, int):
            self.rewind_ids(mark)
        elif self.search is not None:
            self.search.rewind(mark)

    def rewind_ids(self, length: int) -> None:
        """Return to the first `length` ids."""
        del self.ids[length:]
        self.proposed = ()
        del self.logprobs[max(0, self.new_len) :], self.records[max(0, self.new_len) :]
        self.finish_reason = None
        self.slide()
        if self.text is not None:
            self.text = self.text.again(self.ids[self.prompt_len :])

    def forget_pages(self) -> None:
        """Free the cache; the next step starts from the first token."""
        self.close()
        self.node, self.fed, self.n_unseen, self.awaited, self.proposed = None, 0, 0, False, ()

    def close(self) -> None:
        if self.search is not None:
            self.search.close()
        if self.cache is not None:
            self.cache.close()
            self.cache = None
        if self.speculation is not None:
            self.speculation.source.close()


def window_start(length: int, context: int) -> int:
    """Return where the window of a text of `length` tokens begins: it moves by half a context when that is full."""
    step = max(1, context // 2)
    return 0 if length <= context else -(-(length - context) // step) * step
