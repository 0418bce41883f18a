"""Random changes to valid requests: every answer is 200 or a typed 4xx, and the server goes on."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import httpx
import pytest

from tests.server.live import Live

VALID: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "model": "chat", "prompt": ["hello", "the"], "max_tokens": 2, "temperature": 0.7, "top_p": 0.9, "n": 1,
        "best_of": 2, "seed": 3, "stop": ["zz"], "logit_bias": {"5": -1.5}, "logprobs": 2, "echo": True,
        "presence_penalty": 0.5, "frequency_penalty": 0.5, "stream": False, "user": "me", "top_k": 4, "min_p": 0.1,
        "repetition_penalty": 1.1, "min_tokens": 1, "suffix": "",
    },
    "/v1/chat/completions": {
        "model": "chat", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "max_tokens": 2,
        "logprobs": True, "top_logprobs": 1, "stream": True, "stream_options": {"include_usage": True},
        "response_format": {"type": "text"}, "tools": [], "modalities": ["text"], "metadata": {"a": "b"},
    },
    "/v1/embeddings": {"model": "bert-sst2", "input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 4},
    "/embed": {"inputs": ["a", "b"], "truncate": True, "normalize": False, "prompt_name": "query", "dimensions": 3},
    "/embed_all": {"inputs": "a", "truncate": False, "truncation_direction": "Right"},
    "/embed_sparse": {"inputs": ["good film"]},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": {"truncate": True}},
    "/predict": {"inputs": [["a"], ["a", "b"]], "raw_scores": True},
    "/rerank": {"query": "a", "texts": ["b", "c"], "return_text": True, "raw_scores": False},
    "/tokenize": {"inputs": ["a"], "add_special_tokens": True, "model": "bert-sst2"},
    "/decode": {"ids": [[1, 2], [3]], "skip_special_tokens": True, "model": "bert-sst2"},
}  # fmt: skip
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**40, 0.5, -0.0, 1e308, "", "a", "\x00", "\ud800", "é" * 50,
    "a" * 5000, [], {}, [[]], [None], [True], [1.5], [""], [[1]], [-1], [10**9], {"a": {}}, {"": None},
    [["a", "b", "c"]],
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of each value inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, inner in list(items):
        found += [(value, key), *places(inner)]
    return found


def changed(body: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a body with one or two values replaced, removed, moved or added."""
    found = copy.deepcopy(body)
    for _ in range(rng.randint(1, 2)):
        options = places(found)
        if not options:
            break
        container, key = rng.choice(options)
        action = rng.random()
        if action < 0.7:
            container[key] = copy.deepcopy(rng.choice(ODD))
        elif action < 0.8:
            del container[key]
        elif isinstance(container, dict):
            container[rng.choice(["x", key.upper(), "\ud800", "a" * 3000, ""])] = copy.deepcopy(rng.choice(ODD))
        else:
            container.append(copy.deepcopy(rng.choice(ODD)))
    return found


@pytest.mark.parametrize("route", VALID)
def test_changed_requests(server: Live, http: httpx.Client, route: str) -> None:
    fine = http.post(route, json=VALID[route])
    assert fine.status_code == 200, fine.text
    rng, seen = random.Random(route), set()
    for _ in range(25):
        body = json.dumps(changed(VALID[route], rng))
        response = http.post(route, content=body, headers={"content-type": "application/json"})
        seen.add(response.status_code)
        assert response.status_code in (200, 400, 404, 413, 422), (body[:2000], response.text)
        if response.headers["content-type"] == "application/json":
            found = json.loads(response.text, parse_constant=pytest.fail)
            error = found.get("error") if isinstance(found, dict) else None
            assert (error is not None) == (response.status_code != 200), body[:2000]
        else:
            assert "error" not in response.text, (body[:2000], response.text)
    assert seen & {400, 422}
    assert server.app.n_running <= 1
