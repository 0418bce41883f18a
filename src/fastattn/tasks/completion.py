"""Completions in the shapes of llama-cpp-python and of OpenAI's API."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastattn.generation.request import Request
from fastattn.generation.text_stream import TextStream
from fastattn.tokenizer import Tokenizer

Json = dict[str, Any]
_FINISH = {"eos": "stop", "stop_string": "stop", "stopping_criteria": "stop", "length": "length"}


def head(kind: str, model: str, *, chat: bool) -> Json:
    """Return the first fields of an answer. kind: "text_completion", "chat.completion" or "chat.completion.chunk"."""
    name = "chatcmpl" if chat else "cmpl"
    return {"id": f"{name}-{uuid.uuid4()}", "object": kind, "created": int(time.time()), "model": model}


def finish_of(reason: str | None) -> str | None:
    """Return "stop" or "length"; None before the end."""
    return None if reason is None else _FINISH.get(reason, "length")


def usage(requests: Sequence[Request]) -> Json:
    """Return the numbers of tokens. requests: all texts of one prompt."""
    n_prompt, n_new = requests[0].prompt_len, sum(request.new_len for request in requests)
    return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}


def text_of(request: Request) -> str:
    """Return the new text of a request."""
    return "" if request.text is None else request.text.text


def completion_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], values: Sequence[float | None], tops: Sequence[Any], offset: int
) -> Json:
    """Return `logprobs` of a completion: of tokens and of the likeliest alternatives.

    values: log-probabilities, None for a first token. tops: (ids, log-probabilities) of each, or None. offset: position
    of the first token in the text.
    """
    tokens, offsets, listed = [], list[int](), list[Any]()
    for token_id, top in zip(ids, tops, strict=True):
        tokens.append(token_text(tokenizer, token_id))
        offsets.append(offset)
        offset += len(tokens[-1])
        listed.append(None if top is None else _named(tokenizer, *top))
    return {"tokens": tokens, "text_offset": offsets, "token_logprobs": list(values), "top_logprobs": listed}


@dataclass(frozen=True, slots=True)
class Tokens:
    """New tokens with their log-probabilities. tops: (ids, log-probabilities) of the likeliest for each, or None."""

    ids: list[int]
    logprobs: list[float]
    tops: list[Any]

    @classmethod
    def of(cls, request: Request) -> Tokens:
        """Return the new tokens of a request that has ended."""
        new = request.ids[request.prompt_len :]
        tops: list[Any] = [(record.top_ids, record.top_logprobs) for record in request.records]
        return cls(new, list(request.logprobs), tops or [None] * len(new))

    @classmethod
    def between(cls, stream: TextStream, n_prompt: int, begin: int, end: int) -> Tokens:
        """Return the new tokens of a stream from number `begin` to `end`."""
        new = stream.token_ids[n_prompt:][begin:end].tolist()
        tops: list[Any] = (stream.top_logprobs or [])[begin:end]
        return cls(new, stream.logprobs[begin:end].tolist(), tops or [None] * len(new))


def chat_logprobs(tokenizer: Tokenizer, tokens: Tokens, n_top: int, *, name: str = "content") -> Json:
    """Return `logprobs` of a message: a list of its tokens under this name."""
    content = []
    for token_id, logprob, top in zip(tokens.ids, tokens.logprobs, tokens.tops, strict=True):
        pairs = [] if top is None else zip(top[0].tolist(), top[1].tolist(), strict=True)
        others = [_token(tokenizer, other, value) for other, value in pairs][:n_top]
        content.append({**_token(tokenizer, token_id, logprob), "top_logprobs": others})
    return {name: content}


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return the text of a token on its own, with special tokens."""
    return str(tokenizer.decode([token_id]))


def _named(tokenizer: Tokenizer, ids: Any, logprobs: Any) -> dict[str, float]:
    """Return the log-probabilities by text; if two tokens have the same text, that of the likelier one."""
    named: dict[str, float] = {}
    for token_id, logprob in zip(np.asarray(ids).tolist(), np.asarray(logprobs).tolist(), strict=True):
        named.setdefault(token_text(tokenizer, token_id), logprob)
    return named


def _token(tokenizer: Tokenizer, token_id: int, logprob: float) -> Json:
    text = token_text(tokenizer, token_id)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8"))}
