"""`POST /attention`: the picture of the library, its limits, and what a browser may do with it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

import fastattn as fa
from fastattn.server.pictures import MAX_TOKENS
from tests.server.live import Live

TEXT = "the <script>old</script> house & the sea"


def post(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/attention", json=body)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gpt2-litbank", "generate"), ("bert-sst2", "embed"), ("reranker", "rerank"), ("sparse", "sparse")],
)
def test_the_picture_of_the_library(server: Live, http: httpx.Client, name: str, kind: Any) -> None:
    part = server.app.models.of_kind(kind, name)[1]
    model = part if kind == "generate" else part.model
    response = post(http, model=name, text=TEXT)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.text == fa.viz.attention(model, TEXT).html
    svg = post(http, model=name, text=TEXT, format="svg", layers=1, heads=[0, 1])
    assert svg.headers["content-type"] == "image/svg+xml"
    assert svg.text == fa.viz.attention(model, TEXT, layers=1, heads=[0, 1]).svg
    for one in (response, svg):
        assert one.headers["content-security-policy"].startswith("sandbox allow-scripts;")


def test_a_pair(server: Live, http: httpx.Client) -> None:
    model = server.app.models.of_kind("rerank", None)[1].model
    assert post(http, model="reranker", text="a", text_pair="b").text == fa.viz.attention(model, "a", "b").html


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({}, 400, "text: expected a text, got none"),
        ({"text": "a", "layers": 99}, 422, "layers: expected 0 to 3, got 99"),
        ({"text": "a", "heads": [0, 0]}, 422, "heads: expected"),
        ({"text": "a", "heads": {"a": 1}}, 422, "heads: expected int, got dict"),
        ({"text": "a", "format": "png"}, 422, "format: expected one of"),
        ({"text": "a", "model": "other"}, 404, "model: the model 'other' does not exist"),
        ({"text": "a", "color": 1}, 422, "color: unknown field"),
        ({"text": "one two " * MAX_TOKENS}, 413, f"text: expected at most {MAX_TOKENS} tokens"),
        ({"text": "one " * 200, "model": "bert-sst2"}, 413, "text: expected at most 128 tokens"),
    ],
)  # fmt: skip
def test_what_it_refuses(http: httpx.Client, body: dict[str, Any], status: int, word: str) -> None:
    response = post(http, **body)
    assert response.status_code == status, response.text
    assert response.json()["error"].startswith(word)
