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


def joined(chunks: list[Any]) -> dict[str, list[Any]]:
    """Return the lists of the log-probabilities of all chunks, one after the other."""
    listed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    names = ("tokens", "text_offset", "token_logprobs", "top_logprobs")
    return {name: [item for part in listed if part is not None for item in part[name]] for name in names}


def same_logprobs(found: dict[str, list[Any]], wanted: dict[str, list[Any]]) -> bool:
    """Compare the lists; those of a stream are float32 too."""
    rows = [
        np.array([np.nan if x is None else x for x in part["token_logprobs"]], np.float32) for part in (found, wanted)
    ]
    return rows[0].tobytes() == rows[1].tobytes() and all(
        found[name] == wanted[name] for name in ("tokens", "text_offset", "top_logprobs")
    )


@pytest.mark.parametrize("n_top", [0, 3])
@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"stop": ["and", ",q"]}, {"stop": [" the sun was"]}, {"temperature": 1.5, "seed": 5}]
)
def test_logprobs_of_chunks(llm: Llm, options: dict[str, Any], echo: bool, n_top: int) -> None:
    given: dict[str, Any] = {**GREEDY, "max_tokens": 14, "logprobs": n_top, "echo": echo, **options}
    whole = llm.create_completion("The sea", **given)["choices"][0]
    chunks = list(llm.create_completion("The sea", stream=True, **given))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    assert same_logprobs(joined(chunks), whole["logprobs"])
    json.dumps(chunks)
    if not options:  # every token comes with its own piece of text
        for chunk in chunks[echo:-1]:
            choice = chunk["choices"][0]
            assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
            assert len(choice["logprobs"]["tokens"]) == 1


def test_chunks_list_no_token_that_a_stop_string_removes(llm: Llm) -> None:
    """After every chunk, the listed tokens are a prefix of those of the whole answer."""
    plain = llm.create_completion("The sea", max_tokens=30, temperature=0, logprobs=0)["choices"][0]
    text = plain["text"]
    for begin in range(2, 12):
        given: dict[str, Any] = {"max_tokens": 30, "temperature": 0, "logprobs": 1, "stop": [text[begin : begin + 4]]}
        whole = llm.create_completion("The sea", **given)["choices"][0]["logprobs"]
        seen: list[str] = []
        for chunk in llm.create_completion("The sea", stream=True, **given):
            listed = chunk["choices"][0]["logprobs"]
            seen += [] if listed is None else listed["tokens"]
            assert seen == whole["tokens"][: len(seen)]
        assert seen == whole["tokens"]


def test_logprobs_of_a_stream(llm: Llm) -> None:
    model = llm.model
    ids = model.tokenizer.encode("The sea")
    wanted = model.generate(ids, max_new_tokens=9, top_logprobs=2, return_dict_in_generate=True)
    with model.stream(ids, max_new_tokens=9, top_logprobs=2, logprobs=True) as pieces:
        next(pieces)
        assert pieces.n_final_tokens == 1
        list(pieces)
        assert pieces.logprobs.tobytes() == wanted.logprobs[0].tobytes()
        assert pieces.top_logprobs is not None
        assert wanted.top_logprobs is not None
        for (found, values), (top, logprobs) in zip(pieces.top_logprobs, wanted.top_logprobs[0], strict=True):
            assert (found.tolist(), values.tobytes()) == (top.tolist(), logprobs.tobytes())
        assert pieces.n_final_tokens == pieces.n_new_tokens == 9
    with model.stream(ids, max_new_tokens=2) as pieces:
        list(pieces)
        assert len(pieces.logprobs) == 0
        assert pieces.top_logprobs is None
    with pytest.raises(DTypeError, match="logprobs: expected True or False"):
        model.stream(ids, logprobs=1)  # type: ignore[arg-type]


def test_a_prompt_of_no_dimension(llm: Llm) -> None:
    with pytest.raises(DTypeError, match="prompt: expected str or token ids, got ndarray"):
        llm.create_completion(np.array(5))


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
        ({"stream": True, "n": 2}, InputError, "n: expected 1 with stream=True"),
        ({"max_tokens": 10**6}, ContextLengthError, "prompt: expected prompt and max_tokens to fit"),
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
    streamed = list(chatty.create_chat_completion(CHAT, stream=True, logprobs=True, top_logprobs=2, **GREEDY))
    parts = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    content = [item for part in parts if part is not None for item in part["content"]]
    assert [item["token"] for item in content] == [item["token"] for item in listed["content"]]
    assert [item["top_logprobs"] for item in content] == [item["top_logprobs"] for item in listed["content"]]
    for item in content:
        assert item["logprob"] == item["top_logprobs"][0]["logprob"]
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
    with Llm(model_path=demo_model("text-generation")) as found:
        assert found("The sea", max_tokens=2)["usage"]["completion_tokens"] == 2
    with pytest.raises(InputError, match="model_path: expected None, because model is set"):
        Llm(tmp_path, model_path=tmp_path)
    with pytest.raises(InputError, match="model: expected a folder, a GGUF file, a hub id or a loaded model, got None"):
        Llm()
    with pytest.raises(InputError, match="n_threads: expected None, because threads is set"):
        Llm(tmp_path, n_threads=1, threads=1)
