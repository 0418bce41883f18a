"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastattn.api.causal_lm import CausalLM
from fastattn.checks import Neutral
from fastattn.generation.prompts import encode_prompt, need_tokenizer
from fastattn.generation.results import best_requests
from fastattn.options import INT32_MAX
from fastattn.server.completions import timed
from fastattn.server.exchange import Exchange
from fastattn.server.fields import Fields
from fastattn.server.generation import Generation, room, tokens_of
from fastattn.server.models import Served
from fastattn.server.problems import Problem
from fastattn.server.sampling import MAX_TOP, NEUTRAL, read_sampling, read_stream
from fastattn.tasks.completion import Json, Tokens, chat_logprobs, finish_of, head, text_of

if TYPE_CHECKING:
    from fastattn.server.app import App

_MAX_MESSAGES = 4096
_NO_TOOLS = "tool calls in a model's answers are not recognized"
_NEUTRAL: Mapping[str, Neutral] = {
    **NEUTRAL,
    "tools": Neutral((), _NO_TOOLS),
    "functions": Neutral((), _NO_TOOLS),
    "tool_choice": Neutral(("none", "auto"), _NO_TOOLS),
    "function_call": Neutral(("none", "auto"), _NO_TOOLS),
    "parallel_tool_calls": Neutral((True, False)),
    "audio": Neutral((), "answers are texts"),
    "prediction": Neutral((), "use a model's own options"),
}
_MESSAGE_NEUTRAL: Mapping[str, Neutral] = {
    "refusal": Neutral(),
    "audio": Neutral(),
    "annotations": Neutral(),
    "function_call": Neutral((), _NO_TOOLS),
    "tool_calls": Neutral((), _NO_TOOLS),
}


async def chat(app: App, exchange: Exchange) -> None:
    """Answer a conversation."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    served, model = app.models.of_kind("generate", fields.text("model"))
    streams, usage = read_stream(fields)
    messages = _read_messages(fields)
    _check_modalities(fields)
    wanted = fields.flag("logprobs", False)
    n_top = fields.count("top_logprobs", None, 0, MAX_TOP)
    if n_top and not wanted:
        raise fields.refuse("top_logprobs", f"expected none without logprobs, got {n_top}")
    max_tokens = _read_max_tokens(fields)
    most = INT32_MAX if max_tokens is None else max_tokens
    options = read_sampling(fields, n_high=app.options.max_choices, max_tokens=most, n_top=n_top or 0)
    options = replace(options, adapter_name=served.adapter)
    fields.finish(_NEUTRAL)
    if streams and (options.best_of or 1) > options.num_return_sequences:
        raise fields.refuse("best_of", "expected at most n with stream, got more", "unsupported")
    async with app.generating.place():
        ids = await app.in_thread(lambda: _encode(served, model, messages))
        if max_tokens is None:
            limit = room(model, len(ids))
            options = replace(options, max_new_tokens=limit, min_new_tokens=min(options.min_new_tokens, limit))
        tokenizer = need_tokenizer(model, "chat")
        run = await app.in_thread(
            lambda: Generation(model, tokenizer, [ids], options, name="messages", logprobs=wanted)
        )
        listing = _Listing(tokenizer, n_top or 0, wanted=wanted)
        with app.counting(exchange, served.name, run):
            run.submit(streams=streams)
            if streams:
                await _stream(app, exchange, served.name, run, listing, usage=usage)
            else:
                await run.finish()
                await exchange.reply(await app.in_thread(lambda: _answer(served.name, run, listing)))


class _Listing:
    """How log-probabilities are listed."""

    def __init__(self, tokenizer: Any, n_top: int, *, wanted: bool) -> None:
        self._tokenizer, self._n_top, self._wanted = tokenizer, n_top, wanted

    def of(self, tokens: Tokens) -> Json | None:
        return chat_logprobs(self._tokenizer, tokens, self._n_top) if self._wanted and tokens.ids else None


def _read_max_tokens(fields: Fields) -> int | None:
    old, new = fields.count("max_tokens", None, 1), fields.count("max_completion_tokens", None, 1)
    if old is not None and new is not None and old != new:
        raise fields.refuse("max_tokens", "expected none, because max_completion_tokens means the same, got both")
    found: int | None = old if new is None else new
    return found


def _check_modalities(fields: Fields) -> None:
    if fields.raw("modalities") not in (None, ["text"]):
        raise fields.refuse("modalities", 'expected ["text"]', "unsupported")


def _read_messages(fields: Fields) -> list[dict[str, str]]:
    """Return the role and the text of each message. Raises Problem."""
    values = fields.raw("messages")
    if not isinstance(values, list) or not 1 <= len(values) <= _MAX_MESSAGES:
        raise fields.refuse("messages", f"expected a list of 1 to {_MAX_MESSAGES} messages")
    messages = []
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise fields.refuse(f"messages[{i}]", "expected an object")
        message = Fields(value, f"messages[{i}]")
        role = message.text("role")
        if not role:
            raise message.refuse("role", "expected a role, got none", "missing")
        content = _read_content(message)
        message.finish(_MESSAGE_NEUTRAL)
        messages.append({"role": role, "content": content})
    return messages


def _read_content(message: Fields) -> str:
    """Return the text of a message; parts of type "text" are joined."""
    value = message.raw("content")
    if not isinstance(value, list):
        content: str | None = message.text("content")
        if content is None:
            raise message.refuse("content", "expected a text, got none", "missing")
        return content
    parts = []
    for i, item in enumerate(value):
        if not isinstance(item, dict) or item.get("type") != "text":
            raise message.refuse(f"content[{i}]", 'expected a part of type "text"', "unsupported")
        part = Fields({key: entry for key, entry in item.items() if key != "type"}, f"content[{i}]")
        text = part.text("text")
        if text is None:
            raise message.refuse(f"content[{i}]", 'expected "text", got none', "missing")
        part.finish()
        parts.append(text)
    return "".join(parts)


def _encode(served: Served, model: CausalLM, messages: list[dict[str, str]]) -> Any:
    tokenizer = need_tokenizer(model, "chat")
    if served.template is None and tokenizer.chat_template is None:
        raise Problem(
            400,
            f"model: {served.name!r:.80} has no chat template; use /v1/completions",
            "model",
            "unsupported_by_model",
        )
    text = tokenizer.apply_chat_template(
        messages, chat_template=served.template, add_generation_prompt=True, tokenize=False
    )
    return encode_prompt(tokenizer, text, "messages", add_special_tokens=False)


def _answer(name: str, run: Generation, listing: _Listing) -> Json:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": text_of(request), "refusal": None},
            "logprobs": listing.of(tokens_of(request, 0, request.new_len)),
            "finish_reason": finish_of(request.finish_reason),
        }
        for i, request in enumerate(best_requests(run.requests))
    ]
    return {**head("chat.completion", name, chat=True), "choices": choices, "usage": run.usage}


async def _stream(app: App, exchange: Exchange, name: str, run: Generation, listing: _Listing, *, usage: bool) -> None:
    first = head("chat.completion.chunk", name, chat=True)
    extra: Json = {"usage": None} if usage else {}

    def chunk(index: int, delta: Json, reason: str | None, logprobs: Json | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_of(reason)}
        return {**first, "choices": [choice], **extra}

    await exchange.start_events()
    for index in range(len(run.requests)):
        await exchange.event(chunk(index, {"role": "assistant", "content": ""}, None))
    async for piece in timed(app, name, run):
        listed = listing.of(piece.tokens)
        if piece.text or listed is not None:
            await exchange.event(chunk(piece.index, {"content": piece.text}, None, listed))
        if piece.ends:
            await exchange.event(chunk(piece.index, {}, run.requests[piece.index].finish_reason))
    if usage:
        await exchange.event({**first, "choices": [], "usage": run.usage})
    await exchange.end_events()
