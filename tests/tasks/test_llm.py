"""`Llm`: llama-cpp-python's shapes; the texts, scores and ends of `generate`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.errors import ConfigError, ContextLengthError, DTypeError, InputError
from fastattn.tasks.llm import Llm

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [{"role": "user", "content": "The sea"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 6}


@pytest.fixture(scope="module")
def llm() -> Iterator[Llm]:
    model = fastattn.pipeline("text-generation", threads=1).model
    with Llm(model) as found:
        yield found


@pytest.fixture
def chatty(llm: Llm, monkeypatch: pytest.MonkeyPatch) -> Llm:
    pytest.importorskip("jinja2")
    from dataclasses import replace

    tokenizer = llm.model.tokenizer
    assert tokenizer is not None
    state = replace(tokenizer._state, options=replace(tokenizer.options, chat_template=TEMPLATE))
    monkeypatch.setattr(tokenizer, "_state", state)
    return llm


def test_a_completion(llm: Llm) -> None:
    found = llm.create_completion("The sea", **GREEDY)
    ids = llm.model.tokenizer.encode("The sea")
    row = llm.model.generate(ids, max_new_tokens=6)
    text = llm.model.tokenizer.decode(row)[len("The sea") :]
    assert found["object"] == "text_completion"
    assert found["id"].startswith("cmpl-")
    assert isinstance(found["created"], int)
    assert found["choices"] == [{"text": text, "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert found["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 6, "total_tokens": len(ids) + 6}
    json.dumps(found)
    assert llm("The sea", **GREEDY)["choices"] == found["choices"]
    assert llm.create_completion(list(ids), **GREEDY)["choices"] == found["choices"]
    assert llm.create_completion("The sea", echo=True, **GREEDY)["choices"][0]["text"] == "The sea" + text
    stopped = llm.create_completion("The sea", stop=[text[3:5]], **GREEDY)["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (text[: text.index(text[3:5])], "stop")


def test_defaults_are_those_of_llama_cpp_python(llm: Llm) -> None:
    found = llm.create_completion("The sea", seed=3)["choices"][0]["text"]
    ids = llm.model.tokenizer.encode("The sea")
    row = llm.model.generate(
        ids, do_sample=True, seed=3, max_new_tokens=16, temperature=0.8, top_p=0.95, min_p=0.05, top_k=40
    )
    assert llm.model.tokenizer.decode(row)[len("The sea") :] == found


def test_chunks_of_a_completion(llm: Llm) -> None:
    whole = llm.create_completion("The sea", seed=3)["choices"][0]
    chunks = list(llm.create_completion("The sea", seed=3, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    echoed = list(llm.create_completion("The sea", seed=3, stream=True, echo=True))
    assert echoed[0]["choices"][0]["text"] == "The sea"


def test_logprobs_of_a_completion(llm: Llm) -> None:
    found = llm.create_completion("The sea", logprobs=3, echo=True, **GREEDY)["choices"][0]
    ids = llm.model.tokenizer.encode("The sea")
    row = llm.model.generate(ids, max_new_tokens=6)
    scores = llm.model.surprisal(row)
    listed = found["logprobs"]
    assert "".join(listed["tokens"]) == found["text"]
    assert [found["text"][at:].startswith(t) for t, at in zip(listed["tokens"], listed["text_offset"], strict=True)]
    assert listed["token_logprobs"][0] is None
    np.testing.assert_array_equal(np.array(listed["token_logprobs"][1:], np.float32), scores.logprobs[1:])
    assert listed["top_logprobs"][0] is None
    for token, logprob, top in list(
        zip(listed["tokens"], listed["token_logprobs"], listed["top_logprobs"], strict=True)
    )[len(ids) :]:
        assert top[token] == logprob == max(top.values())  # greedy
    new = llm.create_completion("The sea", logprobs=3, **GREEDY)["choices"][0]["logprobs"]
    assert new["tokens"] == listed["tokens"][len(ids) :]
    assert new["text_offset"][0] == len("The sea")
    assert new["top_logprobs"] == listed["top_logprobs"][len(ids) :]


def test_several_choices(llm: Llm) -> None:
    found = llm.create_completion("The sea", n=3, seed=1, max_tokens=4)
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert found["usage"]["completion_tokens"] == 12
    best = llm.create_completion("The sea", n=1, best_of=3, seed=1, max_tokens=4)
    assert best["choices"][0]["text"] in [choice["text"] for choice in found["choices"]]


def test_functions_of_the_user_get_rows(llm: Llm) -> None:
    shapes = set()

    def processor(ids: Any, scores: Any) -> Any:
        shapes.add((ids.ndim, scores.shape))
        scores[5] = 1e4
        return scores

    ids = llm.create_completion("The sea", logits_processor=processor, **GREEDY)["choices"][0]["text"]
    tokenizer = llm.model.tokenizer
    assert ids == tokenizer.decode([*tokenizer.encode("The sea"), *[5] * 6])[len("The sea") :]
    assert shapes == {(1, (llm.model.config.vocab_size,))}
    stopped = llm.create_completion("The sea", stopping_criteria=[lambda ids, _: len(ids) > 4], **GREEDY)
    assert stopped["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_token": 3}, InputError, "Llm: unknown keyword 'max_token'"),
        ({"mirostat_mode": 2}, InputError, "mirostat_mode: expected None or 0, got 2"),
        ({"suffix": "x"}, InputError, "suffix: expected None"),
        ({"logprobs": -1}, InputError, "logprobs: expected 0 to 1000"),
        ({"temperature": -1}, InputError, "temperature: expected"),
        ({"temperature": "a"}, DTypeError, "temperature: expected a number"),
        ({"echo": 1}, DTypeError, "echo: expected True or False"),
        ({"stream": True, "logprobs": 1}, InputError, "logprobs: expected None with stream=True"),
        ({"stream": True, "n": 2}, InputError, "n: expected 1 with stream=True"),
        ({"max_tokens": 10**6}, ContextLengthError, "prompt: expected prompt and max_new_tokens to fit"),
        ({"logits_processor": [3]}, DTypeError, "logits_processor: expected functions, got int"),
    ],
)
def test_arguments_that_are_refused(llm: Llm, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        llm.create_completion("The sea", **options)
    for prompt in (3, b"a", {"a": 1}):
        with pytest.raises(DTypeError, match=r"^prompt: expected str or token ids"):
            llm.create_completion(prompt)  # type: ignore[arg-type]


def test_a_chat(chatty: Llm) -> None:
    tokenizer = chatty.model.tokenizer
    prompt = f"{tokenizer.bos_token}<user>The sea\n<assistant>"
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    assert tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"] == ids
    row = chatty.model.generate([ids], max_new_tokens=6, attention_mask=[[1] * len(ids)])[0]
    text = tokenizer.decode(row, skip_special_tokens=True)[len("<user>The sea\n<assistant>") :]
    found = chatty.create_chat_completion(CHAT, **GREEDY)
    assert found["object"] == "chat.completion"
    assert found["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": "length"}
    ]
    json.dumps(found)
    chunks = list(chatty.create_chat_completion(CHAT, stream=True, **GREEDY))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    listed = chatty.create_chat_completion(CHAT, logprobs=True, top_logprobs=2, **GREEDY)["choices"][0]["logprobs"]
    assert [item["token"] for item in listed["content"]] == [tokenizer.decode([i]) for i in row[len(ids) :]]
    assert all(item["top_logprobs"][0]["logprob"] == item["logprob"] for item in listed["content"])
    assert all(len(item["top_logprobs"]) == 2 for item in listed["content"])
    with pytest.raises(InputError, match="top_logprobs: expected None without logprobs=True"):
        chatty.create_chat_completion(CHAT, top_logprobs=2)
    with pytest.raises(DTypeError, match="messages: expected a list of messages, got str"):
        chatty.create_chat_completion("Hi")  # type: ignore[arg-type]


def test_a_model_without_a_template(llm: Llm) -> None:
    with pytest.raises(ConfigError, match="expected a tokenizer with a chat_template, got one without"):
        llm.create_chat_completion(CHAT)


def test_loading(tmp_path: Path) -> None:
    from fastattn.tasks.demo import demo_model

    with Llm(str(demo_model("text-generation")), n_threads=1) as found:
        assert found.model.executor.threads == 1  # type: ignore[attr-defined]
        with pytest.raises(InputError, match="model: expected a folder or hub id with loading options"):
            Llm(found.model, n_threads=2)
    with pytest.raises(InputError, match="n_threads: expected None, because threads is set"):
        Llm(tmp_path, n_threads=1, threads=1)
