"""Wrong requests: a typed 4xx that names the field, in the shape of the API, and never a traceback."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import openai
import pytest

from tests.server.live import Live
from tests.server.test_limits import eventually

COMPLETION = {"model": "gpt2-litbank", "prompt": "Once", "max_tokens": 4}
CHAT = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
EMBEDDING = {"model": "bert-sst2", "input": "a"}


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi", **fields}]}


@pytest.mark.parametrize(
    ("route", "base", "changed", "param"),
    [
        ("completions", COMPLETION, {"heat": 1}, "heat"),
        ("completions", COMPLETION, {"\ud800": 1}, "'\\ud800'"),
        ("completions", COMPLETION, {"a b" * 1000: 1}, "'" + ("a b" * 27)[:76] + "..."),
        ("completions", COMPLETION, {"temperature": "hot"}, "temperature"),
        ("completions", COMPLETION, {"temperature": 2.5}, "temperature"),
        ("completions", COMPLETION, {"temperature": True}, "temperature"),
        ("completions", COMPLETION, {"top_p": -0.1}, "top_p"),
        ("completions", COMPLETION, {"max_tokens": -1}, "max_tokens"),
        ("completions", COMPLETION, {"max_tokens": 1.5}, "max_tokens"),
        ("completions", COMPLETION, {"max_tokens": 10**30}, "max_tokens"),
        ("completions", COMPLETION, {"n": 10**9}, "n"),
        ("completions", COMPLETION, {"n": 0}, "n"),
        ("completions", COMPLETION, {"n": 2, "temperature": 0}, "n"),
        ("completions", COMPLETION, {"best_of": 2, "n": 3}, "best_of"),
        ("completions", COMPLETION, {"best_of": 4, "stream": True}, "best_of"),
        ("completions", COMPLETION, {"logprobs": 50257}, "logprobs"),
        ("completions", COMPLETION, {"logprobs": True}, "logprobs"),
        ("completions", COMPLETION, {"stop": ["a"] * 65}, "stop"),
        ("completions", COMPLETION, {"stop": [1]}, "stop"),
        ("completions", COMPLETION, {"stop": ""}, "stop"),
        ("completions", COMPLETION, {"seed": 1.5}, "seed"),
        ("completions", COMPLETION, {"seed": 2**64}, "seed"),
        ("completions", COMPLETION, {"logit_bias": [1]}, "logit_bias"),
        ("completions", COMPLETION, {"logit_bias": {"a": 1}}, "logit_bias"),
        ("completions", COMPLETION, {"logit_bias": {"1": 101}}, "logit_bias"),
        ("completions", COMPLETION, {"logit_bias": {"99999999": 1}}, "logit_bias"),
        ("completions", COMPLETION, {"suffix": "the end"}, "suffix"),
        ("completions", COMPLETION, {"user": 1}, "user"),
        ("completions", COMPLETION, {"stream": "yes"}, "stream"),
        ("completions", COMPLETION, {"stream_options": {"include_usage": True}}, "stream_options"),
        ("completions", COMPLETION, {"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ("completions", COMPLETION, {"response_format": {"type": "xml"}}, "response_format"),
        ("completions", COMPLETION, {"response_format": "json"}, "response_format"),
        ("completions", COMPLETION, {"regex": "a", "choices": ["b"]}, "regex"),
        ("completions", COMPLETION, {"choices": []}, "choices"),
        ("completions", COMPLETION, {"prompt": None}, "prompt"),
        ("completions", COMPLETION, {"prompt": []}, "prompt"),
        ("completions", COMPLETION, {"prompt": {}}, "prompt"),
        ("completions", COMPLETION, {"prompt": ["a", 1]}, "prompt"),
        ("completions", COMPLETION, {"prompt": [[1], "a"]}, "prompt"),
        ("completions", COMPLETION, {"prompt": [1, 10**9]}, "prompt"),
        ("completions", COMPLETION, {"prompt": [-1]}, "prompt"),
        ("completions", COMPLETION, {"prompt": "\ud800"}, "prompt"),
        ("completions", COMPLETION, {"prompt": ["a"] * 129}, "prompt"),
        ("completions", COMPLETION, {"prompt": "the " * 300}, "prompt"),
        ("completions", COMPLETION, {"max_tokens": 4096}, "prompt"),
        ("completions", COMPLETION, {"model": 1}, "model"),
        ("chat/completions", CHAT, {"messages": []}, "messages"),
        ("chat/completions", CHAT, {"messages": "Hi"}, "messages"),
        ("chat/completions", CHAT, {"messages": ["Hi"]}, "messages[0]"),
        ("chat/completions", CHAT, {"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ("chat/completions", CHAT, message(content=None), "messages[0].content"),
        ("chat/completions", CHAT, message(name="me"), "messages[0].name"),
        ("chat/completions", CHAT, message(tool_calls=[{"id": "1"}]), "messages[0].tool_calls"),
        ("chat/completions", CHAT, message(content=[{"type": "image_url"}]), "messages[0].content[0]"),
        ("chat/completions", CHAT, {"tools": [{"type": "function"}]}, "tools"),
        ("chat/completions", CHAT, {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat/completions", CHAT, {"max_completion_tokens": 5}, "max_tokens"),
        ("chat/completions", CHAT, {"max_tokens": 0}, "max_tokens"),
        ("chat/completions", CHAT, {"max_tokens": 10_000}, "messages"),
        ("chat/completions", CHAT, {"modalities": ["audio"]}, "modalities"),
        ("chat/completions", CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
        ("embeddings", EMBEDDING, {"input": ""}, "input"),
        ("embeddings", EMBEDDING, {"input": []}, "input"),
        ("embeddings", EMBEDDING, {"input": ["a"] * 2049}, "input"),
        ("embeddings", EMBEDDING, {"input": "bad " * 200}, "input"),
        ("embeddings", EMBEDDING, {"input": [10**6]}, "input"),
        ("embeddings", EMBEDDING, {"encoding_format": "int8"}, "encoding_format"),
        ("embeddings", EMBEDDING, {"dimensions": 0}, "dimensions"),
        ("embeddings", EMBEDDING, {"truncate": True}, "truncate"),
    ],
)
def test_a_wrong_field_is_named(
    http: httpx.Client, route: str, base: dict[str, Any], changed: dict[str, Any], param: str
) -> None:
    body = json.dumps({**base, **changed})
    response = http.post(f"/v1/{route}", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param.rpartition(".")[2] in error["message"]


@pytest.mark.parametrize(
    ("route", "body", "status", "name"),
    [
        ("embed", {"inputs": "a", "prompt": "x"}, 422, "prompt"),
        ("embed", {"inputs": "a", "truncate": "yes"}, 422, "truncate"),
        ("embed", {"inputs": "a", "truncate": True, "truncation_direction": "left"}, 400, "truncation_direction"),
        ("embed", {"inputs": "a", "prompt_name": "nothing"}, 422, "prompt_name"),
        ("embed", {"inputs": "bad " * 200}, 413, "inputs"),
        ("embed", {"inputs": [1, 2], "prompt_name": "query"}, 422, "prompt_name"),
        ("embed_all", {"inputs": [1, 2]}, 422, "inputs"),
        ("embed_sparse", {"inputs": [""]}, 422, "inputs"),
        ("predict", {"inputs": ["a", "b", "c"]}, 422, "inputs"),
        ("predict", {"inputs": []}, 422, "inputs"),
        ("predict", {"inputs": [["a", 1]]}, 422, "inputs"),
        ("predict", {"inputs": "bad " * 200}, 413, "inputs"),
        ("rerank", {"texts": ["a"]}, 400, "query"),
        ("rerank", {"query": "a", "texts": []}, 400, "texts"),
        ("rerank", {"query": "a", "texts": ["b " * 100]}, 413, "texts"),
        ("rerank", {"query": "a", "texts": ["b"], "model": "bert-sst2"}, 422, "model"),
        ("similarity", {"inputs": {"sentences": ["a"]}}, 400, "source_sentence"),
        ("similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"], "x": 1}}, 422, "x"),
        ("tokenize", {"inputs": "a", "special": True}, 422, "special"),
        ("decode", {"ids": []}, 422, "ids"),
        ("decode", {"ids": [-1]}, 422, "ids"),
        ("decode", {"ids": [2**40]}, 422, "ids"),
    ],
)
def test_errors_of_tei_routes(http: httpx.Client, route: str, body: Any, status: int, name: str) -> None:
    response = http.post(f"/{route}", json=body)
    assert response.status_code == status, response.text
    found = response.json()
    assert set(found) == {"error", "error_type"}
    assert name in found["error"]
    assert found["error_type"] == "validation"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b'{"prompt": NaN}',
        b'{"prompt": Infinity}',
        b'{"temperature": 1e999}',
        b'{"prompt": "a", "prompt": "b"}',
        b"\xff\xfe{\x00}\x00",
        b'\xef\xbb\xbf{"prompt": "a"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "a\x00b"}',
        b"[" * 100_000,
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b'{"n": ' + b"9" * 5000 + b"}",
    ],
)
def test_bad_json(http: httpx.Client, body: bytes) -> None:
    response = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_unknown_models_and_routes(http: httpx.Client, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-4", prompt="a")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="expected a model that generates text, got 'bert-sst2'; use"):
        client.completions.create(model="bert-sst2", prompt="a")
    with pytest.raises(openai.BadRequestError, match="has no chat template"):
        client.chat.completions.create(model="gpt2-litbank", messages=[{"role": "user", "content": "a"}])
    assert http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert http.get("/nothing").json()["error_type"] == "validation"
    assert http.get("/%2e%2e/etc/passwd").status_code == 404
    wrong = http.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert http.delete("/health").status_code == 405


def test_content_type_must_be_json(http: httpx.Client) -> None:
    """So a page of another site cannot send a request without asking first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = http.post("/v1/completions", content=b"{}", headers={"content-type": kind})
        assert response.status_code == 415
    fine = json.dumps(COMPLETION)
    kind = "application/json; charset=utf-8"
    assert http.post("/v1/completions", content=fine, headers={"content-type": kind}).status_code == 200


def test_request_ids_are_echoed_and_checked(http: httpx.Client) -> None:
    assert http.get("/health", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for bad in ("a b", "x" * 129, '"}{', ""):
        found = http.get("/health", headers={"x-request-id": bad}).headers["x-request-id"]
        assert len(found) == 32
        assert found.isalnum()


def test_logs_have_no_texts(server: Live, http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    secret = "verysecrettext"
    bodies = [
        {**COMPLETION, "prompt": secret},
        {**COMPLETION, "temperature": secret},
        {**COMPLETION, secret: 1},
        {**COMPLETION, "model": secret},
    ]
    statuses: dict[str, int] = {}

    def lines() -> list[Any]:  # a response arrives before its request is logged, and earlier tests have requests too
        return [one for one in caplog.records if getattr(one, "fields", {}).get("request_id") in statuses]

    def add(response: httpx.Response) -> None:
        statuses[response.headers["x-request-id"]] = response.status_code

    with caplog.at_level(logging.DEBUG, "fastattn"), caplog.at_level(logging.DEBUG, "uvicorn"):
        for body in bodies:
            add(http.post("/v1/completions", json=body))
        add(http.get(f"/{secret}", headers={"authorization": f"Bearer {secret}"}))
        add(http.post("/embed", json={"inputs": f"{secret} " * 200}))
        eventually(lambda: len(lines()) == 6, "all are logged")
    assert list(statuses.values()) == [200, 400, 400, 404, 404, 413]
    assert {one.fields["request_id"]: one.fields["status"] for one in lines()} == statuses
    assert secret not in "".join(str(record.__dict__) for record in caplog.records)
    assert secret not in http.get("/metrics").text


def test_an_internal_error_says_nothing(
    server: Live, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fastattn.server import completions

    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(completions, "_prepare", fail)
    with caplog.at_level(logging.INFO, "fastattn.server"):
        response = http.post("/v1/completions", json=COMPLETION)
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "the request failed: internal error",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    fields = next(record.fields for record in caplog.records if record.getMessage() == "error")  # type: ignore[attr-defined]
    assert fields["error"] == "RuntimeError"
    assert any("fail" in place for place in fields["places"])
    assert "secret detail" not in str([record.__dict__ for record in caplog.records])
