"""Runs the texts of a request in the engine of the model, together with those of all other requests."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from fastattn.api.causal_lm import CausalLM
from fastattn.errors import ContextLengthError
from fastattn.generation.call import Call
from fastattn.generation.engine import RUN_AHEAD
from fastattn.generation.generate import make_requests
from fastattn.generation.options import GenerationOptions
from fastattn.generation.request import Request
from fastattn.server.exchange import finite
from fastattn.server.problems import Problem
from fastattn.tasks.completion import Json, Tokens
from fastattn.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text, with the tokens that belong to it. index: of the text. ends: whether it is the last one."""

    index: int
    text: str
    tokens: Tokens
    ends: bool


@dataclass(slots=True)
class _Progress:
    """How much of a text was delivered: tokens, characters, and tokens that were listed with pieces."""

    n_taken: int = 0
    n_chars: int = 0
    n_listed: int = 0


class Generation:
    """The texts of one request. name: of the prompts in messages. Raises Problem, InputError, OutOfMemory."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        prompts: Sequence[Any],
        options: GenerationOptions,
        *,
        name: str,
        logprobs: bool,
    ) -> None:
        names = [name] if len(prompts) == 1 else [f"{name}[{i}]" for i in range(len(prompts))]
        try:
            self.requests = make_requests(model, prompts, options, tokenizer=tokenizer, names=names)
        except ContextLengthError as error:
            raise _too_long(error, name, options.max_new_tokens or 0) from None
        for request in self.requests:
            request.wants_logprobs = request.wants_logprobs or logprobs
        self._model, self._logprobs = model, logprobs
        self._call: Call | None = None
        self._per_prompt = options.n_requests

    @property
    def usage(self) -> Json:
        """The numbers of tokens."""
        n_prompt = sum(request.prompt_len for request in self.requests[:: self._per_prompt])
        n_new = sum(request.new_len for request in self.requests)
        return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}

    def submit(self, *, streams: bool) -> None:
        """Give the texts to the engine. Raises OutOfMemory if they can never run. `cancel` stops them."""
        ahead = RUN_AHEAD * len(self.requests) if streams else None
        self._call = Call(self.requests, every_token=streams, run_ahead=ahead)
        self._model.engine.submit(self._call)

    def cancel(self) -> None:
        """Stop the work after the running step. Does nothing at its end."""
        if self._call is not None:
            self._model.engine.cancel(self._call)

    async def finish(self) -> None:
        """Wait until all texts have ended."""
        assert self._call is not None
        while await self._model.engine.take_async(self._call) is not None:
            pass

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the texts in pieces, as they are generated."""
        assert self._call is not None
        places = {id(request): (i, _Progress()) for i, request in enumerate(self.requests)}
        for i, request in enumerate(self.requests):
            if not request.max_new_tokens:
                yield Piece(i, "", Tokens([], [], []), True)
        while (draw := await self._model.engine.take_async(self._call)) is not None:
            index, progress = places[id(draw.request)]
            progress.n_taken += draw.token_id is not None
            progress.n_chars += len(draw.piece)
            if draw.piece or draw.ends:
                yield Piece(index, draw.piece, self._tokens(draw.request, progress, ends=draw.ends), draw.ends)

    def _tokens(self, request: Request, progress: _Progress, *, ends: bool) -> Tokens:
        """Return the tokens since the last piece that no stop string can remove any more."""
        if not self._logprobs:
            return Tokens([], [], [])
        new = request.ids[request.prompt_len :]
        end = progress.n_listed
        if ends:
            end = len(new)
        else:
            new = new[: progress.n_taken]
            text = request.text
            if text is None or not request.options.stops() or text.length_of(new) == progress.n_chars:
                end = len(new)
        begin, progress.n_listed = progress.n_listed, end
        return tokens_of(request, begin, end)


def tokens_of(request: Request, begin: int, end: int) -> Tokens:
    """Return the new tokens of a request from number `begin` to `end`, with numbers that JSON can represent."""
    new = request.ids[request.prompt_len :][begin:end]
    tops: list[Any] = [(record.top_ids, record.top_logprobs.clip(min=-9999.0)) for record in request.records[begin:end]]
    return Tokens(new, [finite(value) for value in request.logprobs[begin:end]], tops or [None] * len(new))


def room(model: CausalLM, n_prompt: int) -> int:
    """Return how many tokens fit in the context after a prompt; at least 1, so that a longer prompt is an error."""
    return max(1, int(model.executor.program.max_positions) - max(1, n_prompt))


def _too_long(error: ContextLengthError, name: str, max_tokens: int) -> Problem:
    message = (
        f"{name}: expected at most {error.context} tokens in the prompt and max_tokens together, got "
        f"{error.n_tokens} and {max_tokens}"
    )
    return Problem(400, message, name, "context_length_exceeded")
