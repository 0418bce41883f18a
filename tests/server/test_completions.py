"""/v1/completions: the texts, log-probabilities and usage of the library, through OpenAI's own client."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from fastattn.api.causal_lm import CausalLM
from fastattn.generation import request_seed
from tests.server.live import WAIT, Live, events

MODEL = "gpt2-litbank"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def lm(server: Live) -> CausalLM:
    return server.app.models.generators()[MODEL]


def ids_of(lm: CausalLM, text: str = PROMPT) -> list[int]:
    assert lm.tokenizer is not None
    return lm.tokenizer.encode(text)


def alone(lm: CausalLM, prompt: list[int], **options: Any) -> tuple[str, list[float], list[int]]:
    """Return the text of a prompt alone, its log-probabilities and new ids."""
    assert lm.tokenizer is not None
    given = {"do_sample": True, "top_k": 0, **options}
    found = lm.generate(prompt, return_dict_in_generate=True, **given)
    new = found.sequences[0][len(prompt) :].tolist()
    before = lm.tokenizer.decode(prompt, skip_special_tokens=True)
    text = lm.tokenizer.decode([*prompt, *new], skip_special_tokens=True)[len(before) :]
    return text, found.logprobs[0].tolist(), new


def test_seeded_text_is_that_of_the_library(client: openai.OpenAI, lm: CausalLM) -> None:
    found = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=20, seed=7, temperature=0.9, top_p=0.9, logprobs=3
    )
    text, logprobs, new = alone(lm, ids_of(lm), max_new_tokens=20, seed=7, temperature=0.9, top_p=0.9)
    choice = found.choices[0]
    assert choice.text == text
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs == logprobs
    assert "".join(choice.logprobs.tokens or ()) == text
    assert [len(top) for top in choice.logprobs.top_logprobs or ()] == [3] * 20
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len(ids_of(lm)), len(new))


def test_greedy_text(client: openai.OpenAI, lm: CausalLM) -> None:
    found = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0)
    assert found.choices[0].text == alone(lm, ids_of(lm), max_new_tokens=12, do_sample=False)[0]


@pytest.mark.parametrize(
    ("sent", "options"),
    [
        ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
        ({"frequency_penalty": -0.5}, {"frequency_penalty": -0.5}),
        ({"logit_bias": {"262": 5, "11": -100}}, {"logit_bias": {262: 5, 11: -100}}),
        ({"extra_body": {"top_k": 5}}, {"top_k": 5}),
        ({"extra_body": {"min_p": 0.2}}, {"min_p": 0.2}),
        ({"extra_body": {"repetition_penalty": 1.4}}, {"repetition_penalty": 1.4}),
        ({"seed": -3}, {"seed": 2**64 - 3}),
    ],
)
def test_each_option_is_used(
    client: openai.OpenAI, lm: CausalLM, sent: dict[str, Any], options: dict[str, Any]
) -> None:
    found = client.completions.create(**{"model": MODEL, "prompt": PROMPT, "max_tokens": 24, "seed": 3, **sent})
    plain = alone(lm, ids_of(lm), max_new_tokens=24, seed=3)[0]
    wanted = alone(lm, ids_of(lm), **{"max_new_tokens": 24, "seed": 3, **options})[0]
    assert found.choices[0].text == wanted != plain


def test_several_prompts_and_choices(client: openai.OpenAI, lm: CausalLM) -> None:
    prompts = [PROMPT, "The sea"]
    found = client.completions.create(model=MODEL, prompt=prompts, n=2, max_tokens=6, seed=5)
    wanted = [
        alone(lm, ids_of(lm, prompt), max_new_tokens=6, seed=request_seed(5, 2 * i + j))[0]
        for i, prompt in enumerate(prompts)
        for j in range(2)
    ]
    assert [choice.text for choice in found.choices] == wanted
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.usage is not None
    assert found.usage.prompt_tokens == sum(len(ids_of(lm, prompt)) for prompt in prompts)
    assert found.usage.completion_tokens == 24


def test_token_ids_are_prompts(client: openai.OpenAI, lm: CausalLM) -> None:
    as_text = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=8, seed=1)
    as_ids = client.completions.create(model=MODEL, prompt=ids_of(lm), max_tokens=8, seed=1)
    as_lists = client.completions.create(model=MODEL, prompt=[ids_of(lm)], max_tokens=8, seed=1)
    assert as_text.choices[0].text == as_ids.choices[0].text == as_lists.choices[0].text


def test_best_of_is_the_likeliest(client: openai.OpenAI, lm: CausalLM) -> None:
    found = client.completions.create(model=MODEL, prompt=PROMPT, best_of=4, max_tokens=6, seed=2)
    drawn = [alone(lm, ids_of(lm), max_new_tokens=6, seed=request_seed(2, i)) for i in range(4)]
    best = max(drawn, key=lambda one: np.mean(one[1]))
    assert [choice.text for choice in found.choices] == [best[0]]
    assert found.usage is not None
    assert found.usage.completion_tokens == 24


def test_stop_ends_the_text(client: openai.OpenAI, lm: CausalLM) -> None:
    text = alone(lm, ids_of(lm), max_new_tokens=20, seed=7)[0]
    stop = text.split()[2]
    found = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=20, seed=7, stop=[stop, "zzz"])
    assert found.choices[0].text == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"


def test_echo_scores_the_prompt(client: openai.OpenAI, lm: CausalLM) -> None:
    found = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=0, echo=True, logprobs=1)
    choice = found.choices[0]
    assert choice.text == PROMPT
    assert choice.logprobs is not None
    wanted = lm.surprisal(ids_of(lm)).logprobs
    assert choice.logprobs.token_logprobs is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == wanted[1:].tolist()
    longer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2, echo=True, logprobs=1, seed=1)
    listed = longer.choices[0].logprobs
    assert listed is not None
    assert "".join(listed.tokens or ()) == longer.choices[0].text
    assert (listed.token_logprobs or [])[: len(wanted)] == choice.logprobs.token_logprobs
    places = listed.text_offset or []
    assert [longer.choices[0].text[i:].startswith(token) for i, token in zip(places, listed.tokens or (), strict=True)]


@pytest.mark.parametrize("options", [{}, {"stop": ["the"]}, {"n": 3}, {"echo": True}])
def test_stream_has_the_same_texts_and_logprobs(client: openai.OpenAI, options: dict[str, Any]) -> None:
    given = {"model": MODEL, "prompt": [PROMPT, "The sea"], "max_tokens": 14, "seed": 11, "logprobs": 2, **options}
    whole = client.completions.create(**given)
    texts = dict.fromkeys(range(len(whole.choices)), "")
    values: dict[int, list[Any]] = {i: [] for i in texts}
    offsets: dict[int, list[int]] = {i: [] for i in texts}
    reasons = {}
    last = None
    for chunk in client.completions.create(**given, stream=True, stream_options={"include_usage": True}):
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs is not None:
                values[choice.index] += choice.logprobs.token_logprobs or []
                offsets[choice.index] += choice.logprobs.text_offset or []
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert last is not None
    assert (last.choices, last.usage) == ([], whole.usage)
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert reasons[choice.index] == choice.finish_reason
        assert choice.logprobs is not None
        assert values[choice.index] == choice.logprobs.token_logprobs
        assert offsets[choice.index] == choice.logprobs.text_offset


def test_stream_of_no_tokens(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 0, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        found = events(response)
    assert [choice["finish_reason"] for chunk in found for choice in chunk["choices"]] == ["length"]


def test_structured_output(client: openai.OpenAI) -> None:
    pytest.importorskip("llguidance")
    found = client.completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=30, seed=1, logprobs=2, extra_body={"choices": [" yes", " no"]}
    )
    assert found.choices[0].text in (" yes", " no")
    assert found.choices[0].finish_reason == "stop"


def test_concurrent_requests_equal_those_alone(server: Live, lm: CausalLM) -> None:
    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=WAIT) as client:

            async def one(i: int) -> Any:
                given: dict[str, Any] = {"model": MODEL, "prompt": PROMPT[: 4 + i % 9], "seed": i, "logprobs": 1}
                given |= {"max_tokens": 4 + i // 2, "temperature": 0.5 + 0.02 * i}
                if i % 2:
                    return (await client.completions.create(**given)).choices[0]
                text, values = "", list[float]()
                async for chunk in await client.completions.create(**given, stream=True):
                    text += chunk.choices[0].text
                    if chunk.choices[0].logprobs is not None:
                        values += chunk.choices[0].logprobs.token_logprobs or []
                return text, values

            return await asyncio.gather(*(one(i) for i in range(32)))

    for i, found in enumerate(asyncio.run(run())):
        text, logprobs, _ = alone(
            lm, ids_of(lm, PROMPT[: 4 + i % 9]), max_new_tokens=4 + i // 2, seed=i, temperature=0.5 + 0.02 * i
        )
        if i % 2:
            found = (found.text, found.logprobs.token_logprobs)
        assert found == (text, logprobs)
