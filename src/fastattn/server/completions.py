"""`POST /v1/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastattn.api.causal_lm import CausalLM
from fastattn.checks import Neutral
from fastattn.generation.options import GenerationOptions
from fastattn.generation.prompts import encode_prompt, need_tokenizer, read_prompts
from fastattn.generation.request import Request
from fastattn.generation.results import best_requests
from fastattn.generation.scoring import prompt_records
from fastattn.server import fields as reading
from fastattn.server.encoding import Stop, run_stoppable
from fastattn.server.exchange import Exchange, finite
from fastattn.server.generation import Generation, Piece, tokens_of
from fastattn.server.sampling import MAX_TOP, NEUTRAL, read_sampling, read_stream
from fastattn.tasks.completion import Json, Tokens, completion_logprobs, finish_of, head, text_of
from fastattn.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fastattn.server.app import App

_NEUTRAL = {**NEUTRAL, "suffix": Neutral(("",), "models here continue texts; write the whole prompt")}
_DEFAULT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Job:
    """A request that was checked. before: the text of each prompt. n_top: None lists no log-probabilities."""

    name: str
    model: CausalLM
    tokenizer: Tokenizer
    ids: list[NDArray[np.int32]]
    before: list[str]
    options: GenerationOptions
    n_top: int | None
    echo: bool

    def prompt_of(self, index: int) -> int:
        """Return which prompt a text belongs to."""
        return index // self.options.num_return_sequences

    def listed_prompts(self, stop: Stop) -> list[Json | None]:
        """Compute the log-probabilities of the tokens of each prompt; None if they are not wanted."""
        found: list[Json | None] = [None] * len(self.ids)
        if self.echo and self.n_top is not None:
            for i in range(len(found)):
                stop.check()
                found[i] = self._listed_prompt(i, self.n_top)
        return found

    def _listed_prompt(self, index: int, n_top: int) -> Json:
        found = prompt_records(self.model, self.ids[index], n_top, self.options.adapter_name)
        values = [None if value is None else finite(value) for value, _ in found]
        tops: list[Any] = [None if not n_top or top is None else (top[0], top[1].clip(min=-9999.0)) for _, top in found]
        return completion_logprobs(self.tokenizer, self.ids[index].tolist(), values, tops, 0)


async def complete(app: App, exchange: Exchange) -> None:
    """Continue texts."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    served, model = app.models.of_kind("generate", fields.text("model"))
    streams, usage = read_stream(fields)
    prompts = reading.read_prompts(fields, "prompt", app.options.max_choices, empty_text=True)
    n_top = fields.count("logprobs", None, 0, MAX_TOP)
    max_tokens = fields.count("max_tokens", _DEFAULT_TOKENS)
    options = read_sampling(
        fields, n_high=max(1, app.options.max_choices // len(prompts)), max_tokens=max_tokens, n_top=n_top
    )
    options = replace(options, adapter_name=served.adapter)
    echo = fields.flag("echo", False)
    fields.finish(_NEUTRAL)
    if streams and (options.best_of or 1) > options.num_return_sequences:
        raise fields.refuse("best_of", "expected at most n with stream, got more", "unsupported")
    async with app.generating.place():
        job, run = await app.in_thread(lambda: _prepare(served.name, model, prompts, options, n_top, echo))
        with app.counting(exchange, served.name, run):
            prompts_listed = await run_stoppable(app, job.listed_prompts)
            run.submit(streams=streams)
            if streams:
                await _stream(app, exchange, job, run, prompts_listed, usage=usage)
            else:
                await run.finish()
                await exchange.reply(await app.in_thread(lambda: _answer(job, run, prompts_listed)))


def _prepare(
    name: str, model: CausalLM, prompts: Any, options: GenerationOptions, n_top: int | None, echo: bool
) -> tuple[Job, Generation]:
    tokenizer = need_tokenizer(model, "completions")
    ids, before = [], []
    for i, prompt in enumerate(prompts):
        place = "prompt" if len(prompts) == 1 else f"prompt[{i}]"
        ids.append(_ids(model, tokenizer, prompt, place))
        text = prompt if isinstance(prompt, str) else tokenizer.decode(ids[-1].tolist(), skip_special_tokens=True)
        before.append(str(text))
    job = Job(name, model, tokenizer, ids, before, options, n_top, echo)
    return job, Generation(model, tokenizer, ids, options, name="prompt", logprobs=n_top is not None)


def _ids(model: CausalLM, tokenizer: Tokenizer, prompt: Any, place: str) -> NDArray[np.int32]:
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt, place)
    ones = np.ones(len(prompt), np.int64)  # no id is padding
    return read_prompts(model, prompt, ones, GenerationOptions(overflow="slide"), name=place).ids[0]


def _answer(job: Job, run: Generation, prompts: list[Json | None]) -> Json:
    choices = []
    for index, request in enumerate(best_requests(run.requests)):
        place = job.prompt_of(index)
        before = job.before[place]
        listed = None
        if job.n_top is not None:
            own = _listed(job, request, len(before))
            listed = _joined(prompts[place], own) if job.echo else own
        choices.append(
            {
                "text": (before if job.echo else "") + text_of(request),
                "index": index,
                "logprobs": listed,
                "finish_reason": finish_of(request.finish_reason),
            }
        )
    return {**head("text_completion", job.name, chat=False), "choices": choices, "usage": run.usage}


def _listed(job: Job, request: Request, offset: int) -> Json:
    found = tokens_of(request, 0, request.new_len)
    return completion_logprobs(job.tokenizer, found.ids, found.logprobs, found.tops, offset)


def _joined(first: Json | None, second: Json) -> Json:
    """Return the lists of a prompt and of its new text as one; offsets of the second count from its first token."""
    if first is None:
        return second
    end = sum(map(len, first["tokens"]))
    begin = second["text_offset"][0] if second["text_offset"] else 0
    moved = {**second, "text_offset": [offset - begin + end for offset in second["text_offset"]]}
    return {key: [*first[key], *moved[key]] for key in first}


async def _stream(
    app: App, exchange: Exchange, job: Job, run: Generation, prompts: list[Json | None], *, usage: bool
) -> None:
    first = {**head("text_completion", job.name, chat=False)}
    extra: Json = {"usage": None} if usage else {}

    def chunk(index: int, text: str, reason: str | None, logprobs: Json | None) -> Json:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_of(reason)}
        return {**first, "choices": [choice], **extra}

    offsets = [len(job.before[job.prompt_of(i)]) for i in range(len(run.requests))]
    await exchange.start_events()
    if job.echo:
        for index in range(len(run.requests)):
            listed = prompts[job.prompt_of(index)]
            offsets[index] = (
                len(job.before[job.prompt_of(index)]) if listed is None else sum(map(len, listed["tokens"]))
            )
            await exchange.event(chunk(index, job.before[job.prompt_of(index)], None, listed))
    async for piece in timed(app, job.name, run):
        listed = _of_piece(job, piece.tokens, offsets[piece.index])
        offsets[piece.index] += 0 if listed is None else sum(map(len, listed["tokens"]))
        if piece.text or listed is not None:
            await exchange.event(chunk(piece.index, piece.text, None, listed))
        if piece.ends:
            await exchange.event(chunk(piece.index, "", run.requests[piece.index].finish_reason, None))
    if usage:
        await exchange.event({**first, "choices": [], "usage": run.usage})
    await exchange.end_events()


def _of_piece(job: Job, tokens: Tokens, offset: int) -> Json | None:
    if not tokens.ids:
        return None
    return completion_logprobs(job.tokenizer, tokens.ids, tokens.logprobs, tokens.tops, offset)


async def timed(app: App, name: str, run: Generation) -> AsyncIterator[Piece]:
    """Yield the pieces of a generation; record when the first one came."""
    begin, seen = time.monotonic(), False
    async for piece in run.pieces():
        if not seen:
            seen = True
            app.metrics.first_token_seconds.labels(name).observe(time.monotonic() - begin)
        yield piece
