"""/v1/chat/completions: the answers of the library, through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

import fastattn as fa
from fastattn.server.models import Served
from tests.server.live import Live, live

CHAT: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}]
RENDERED = "<system>Be brief.<user>hello there<assistant>"


@pytest.fixture(scope="module")
def llm(server: Live) -> fa.Llm:
    return fa.Llm(server.app.models.generators()["chat"])


def wanted(llm: fa.Llm, **options: Any) -> Any:
    """Return the answer of the library, whose defaults are others than OpenAI's."""
    given = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, **options}
    return llm.create_chat_completion(CHAT, **given)


def test_answer_is_that_of_the_library(client: openai.OpenAI, llm: fa.Llm) -> None:
    found = client.chat.completions.create(
        model="chat", messages=CHAT, max_tokens=20, seed=3, logprobs=True, top_logprobs=2
    )
    ours = wanted(llm, max_tokens=20, seed=3, logprobs=True, top_logprobs=2)
    choice = ours["choices"][0]
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].message.content == choice["message"]["content"]
    assert found.choices[0].finish_reason == choice["finish_reason"]
    assert found.choices[0].logprobs is not None
    assert [one.model_dump() for one in found.choices[0].logprobs.content or ()] == choice["logprobs"]["content"]
    assert found.usage is not None
    assert found.usage.prompt_tokens == ours["usage"]["prompt_tokens"] == len(llm.model.tokenizer.encode(RENDERED))


def test_without_max_tokens_the_answer_fills_the_context(client: openai.OpenAI, llm: fa.Llm) -> None:
    found = client.chat.completions.create(model="chat", messages=CHAT, temperature=0)
    assert found.usage is not None
    full = llm.model.executor.program.max_positions
    assert found.usage.total_tokens == full or found.choices[0].finish_reason == "stop"
    assert found.choices[0].message.content == wanted(llm, temperature=0)["choices"][0]["message"]["content"]


def test_stream_joins_to_the_answer(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "chat", "messages": CHAT, "max_completion_tokens": 16, "n": 2, "seed": 4}
    whole = client.chat.completions.create(**given)
    texts, roles, reasons, usage = ["", ""], [], {}, []
    for chunk in client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}):
        usage.append(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == ["assistant"] * 2
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert set(usage[:-1]) == {None}
    assert usage[-1] == whole.usage


def test_parts_of_text_are_one_text(client: openai.OpenAI) -> None:
    parts: Any = [CHAT[0], {"role": "user", "content": [{"type": "text", "text": t} for t in ("hello", " there")]}]
    one = client.chat.completions.create(model="chat", messages=CHAT, max_tokens=8, seed=1)
    other = client.chat.completions.create(model="chat", messages=parts, max_tokens=8, seed=1)
    assert one.choices[0].message.content == other.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_response_format(client: openai.OpenAI, stream: bool) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    kind: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    given: dict[str, Any] = {"model": "chat", "messages": CHAT, "max_tokens": 40, "seed": 1, "response_format": kind}
    if stream:
        chunks = client.chat.completions.create(**given, stream=True)
        text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    else:
        text = client.chat.completions.create(**given).choices[0].message.content
    assert json.loads(text)["a"] in (1, 2)


def test_neutral_fields_change_nothing(client: openai.OpenAI) -> None:
    given: dict[str, Any] = {"model": "chat", "messages": CHAT, "max_tokens": 8, "seed": 1}
    plain = client.chat.completions.create(**given)
    other = client.chat.completions.create(
        **given, user="me", store=False, metadata={"a": "b"}, tools=[], tool_choice="none", service_tier="auto"
    )
    assert plain.choices[0].message == other.choices[0].message


def test_a_template_of_the_settings(server: Live) -> None:
    model = server.app.models.generators()["chat"]
    served = Served("other", "", {"generate": model}, template="{{ messages[0].content }}")
    with live([served]) as other, other.client() as client:
        body = {"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 6, "seed": 2}
        chat = client.post("/v1/chat/completions", json=body).json()
        plain = {"prompt": "hello there", "max_tokens": 6, "seed": 2}
        text = client.post("/v1/completions", json=plain).json()
    assert chat["choices"][0]["message"]["content"] == text["choices"][0]["text"]
    assert chat["usage"] == text["usage"]
