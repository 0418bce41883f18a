"""Embeddings and scores: the numbers of the library, bit for bit, through OpenAI's client and by HTTP."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

import fastattn as fa
from tests.server.live import REVIEWS, Live

TEXTS = ["a quiet film that stays with you", "bad", "the plot is a mess " * 5, "great"]
PAIRS = [("good film", "the cat"), ("a dog", "a cat running"), ("bad", "bad bad bad")]


@pytest.fixture(scope="module")
def embedder(server: Live) -> fa.SentenceTransformer:
    found: fa.SentenceTransformer = server.app.models.of_kind("embed", None)[1]
    return found


def post(http: httpx.Client, path: str, body: Any) -> Any:
    response = http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def float32(rows: Any) -> np.ndarray:
    return np.array(rows, np.float64).astype(np.float32)


# -- OpenAI -----------------------------------------------------------------------------------------------------------


def test_embeddings_of_openais_client(client: openai.OpenAI, embedder: fa.SentenceTransformer) -> None:
    wanted = embedder.encode(TEXTS, normalize_embeddings=True)
    found = client.embeddings.create(model="bert-sst2", input=TEXTS)  # base64 by default
    assert [row.index for row in found.data] == list(range(len(TEXTS)))
    assert (float32([row.embedding for row in found.data]) == wanted).all()
    assert found.usage.prompt_tokens == sum(embedder.count_tokens(TEXTS))
    as_floats = client.embeddings.create(model="bert-sst2", input=TEXTS, encoding_format="float")
    assert (float32([row.embedding for row in as_floats.data]) == wanted).all()


def test_a_text_is_embedded_as_alone(client: openai.OpenAI, embedder: fa.SentenceTransformer) -> None:
    for text in TEXTS:
        found = client.embeddings.create(model="bert-sst2", input=text)
        assert (float32(found.data[0].embedding) == embedder.encode(text, normalize_embeddings=True)).all()


def test_embeddings_of_token_ids(client: openai.OpenAI, embedder: fa.SentenceTransformer) -> None:
    ids = [embedder.tokenizer.encode(text) for text in TEXTS]
    wanted = embedder.encode(TEXTS, normalize_embeddings=True)
    found = client.embeddings.create(model="bert-sst2", input=ids)
    assert (float32([row.embedding for row in found.data]) == wanted).all()
    assert found.usage.prompt_tokens == sum(map(len, ids))
    one = client.embeddings.create(model="bert-sst2", input=ids[0])
    assert (float32(one.data[0].embedding) == wanted[0]).all()


def test_dimensions(client: openai.OpenAI, embedder: fa.SentenceTransformer) -> None:
    found = client.embeddings.create(model="bert-sst2", input=TEXTS, dimensions=24)
    wanted = embedder.encode(TEXTS, truncate_dim=24, normalize_embeddings=True)
    assert (float32([row.embedding for row in found.data]) == wanted).all()
    with pytest.raises(openai.BadRequestError, match="dimensions: expected 1 to 128, got 129"):
        client.embeddings.create(model="bert-sst2", input="a", dimensions=129)


def test_encode_ids_checks_its_ids(embedder: fa.SentenceTransformer) -> None:
    with pytest.raises(fa.InputError, match=r"token_ids\[1\]: expected 0 to \d+, got 99999999"):
        embedder.encode_ids([[1], [99999999]])
    with pytest.raises(fa.InputError, match=r"token_ids\[0\]: expected at least one token id"):
        embedder.encode_ids([[]])
    with pytest.raises(fa.ContextLengthError, match=r"token_ids\[0\]: expected at most 128 token ids, got 129"):
        embedder.encode_ids([[1] * 129])
    assert embedder.encode_ids([]).shape == (0, 128)


def test_models(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == ["gpt2-litbank", "bert-sst2", "chat", "reranker", "sparse"]
    assert client.models.retrieve("chat").id == "chat"
    with pytest.raises(openai.NotFoundError, match="does not exist; did you mean 'chat'"):
        client.models.retrieve("chut")


# -- Text Embeddings Inference ----------------------------------------------------------------------------------------


def test_embed(http: httpx.Client, embedder: fa.SentenceTransformer) -> None:
    assert (float32(post(http, "/embed", {"inputs": TEXTS})) == embedder.encode(TEXTS, normalize_embeddings=True)).all()
    raw = post(http, "/embed", {"inputs": TEXTS[0], "normalize": False})
    assert (float32(raw) == embedder.encode(TEXTS[:1])).all()
    cut = post(http, "/embed", {"inputs": ["bad " * 500], "truncate": True, "dimensions": 7})
    assert (float32(cut) == embedder.encode(["bad " * 500], truncate_dim=7, normalize_embeddings=True)).all()


def test_many_texts_in_one_request(http: httpx.Client, embedder: fa.SentenceTransformer) -> None:
    texts = [" ".join(TEXTS[j % 4] for j in range(i % 3)) + f" film {i}" for i in range(100)]
    assert (float32(post(http, "/embed", {"inputs": texts})) == embedder.encode(texts, normalize_embeddings=True)).all()


def test_concurrent_requests_equal_those_alone(server: Live, embedder: fa.SentenceTransformer) -> None:
    texts = [" ".join(TEXTS[: 1 + i % 4]) + f" {i}" for i in range(24)]
    with server.client() as client, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda text: post(client, "/embed", {"inputs": text})[0], texts))
    assert (float32(found) == [embedder.encode(text, normalize_embeddings=True) for text in texts]).all()


def test_embed_all(http: httpx.Client, embedder: fa.SentenceTransformer) -> None:
    wanted = embedder.encode(TEXTS, output_value="token_embeddings")
    found = post(http, "/embed_all", {"inputs": TEXTS})
    assert [len(rows) for rows in found] == embedder.count_tokens(TEXTS)
    assert all((float32(rows) == own).all() for rows, own in zip(found, wanted, strict=True))


def test_embed_sparse(http: httpx.Client, folders: dict[str, Path]) -> None:
    texts = ["good film", "the cat, a dog running!", "bad " * 20]
    found = post(http, "/embed_sparse", {"inputs": texts})
    with fa.SparseEncoder(folders["sparse"]) as model:
        wanted = model.encode(texts)
    assert [{one["index"]: one["value"] for one in row} for row in found] == [row.as_dict() for row in wanted]
    assert all(found)


def test_similarity(http: httpx.Client, embedder: fa.SentenceTransformer) -> None:
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}
    vectors = embedder.encode(TEXTS)
    assert (float32(post(http, "/similarity", body)) == embedder.similarity(vectors[:1], vectors[1:])[0]).all()


def test_predict(http: httpx.Client) -> None:
    with fa.pipeline("text-classification", model=REVIEWS) as pipe:
        assert post(http, "/predict", {"inputs": TEXTS[0]}) == pipe([TEXTS[0]], top_k=None)[0]
        assert post(http, "/predict", {"inputs": ["good", "film"]}) == pipe([("good", "film")], top_k=None)[0]
        batch = [["good", "film"], ["bad"]]
        assert post(http, "/predict", {"inputs": batch}) == pipe([("good", "film"), "bad"], top_k=None)
        raw = pipe([TEXTS[0]], top_k=None, function_to_apply="none")[0]
        assert post(http, "/predict", {"inputs": TEXTS[0], "raw_scores": True}) == raw


def test_rerank(http: httpx.Client, folders: dict[str, Path]) -> None:
    query, texts = "good film", ["the cat", "great film", "bad dog", "great film"]
    with fa.CrossEncoder(folders["reranker"]) as model:
        scores = model.predict([(query, text) for text in texts], activation_fn="Sigmoid")
        logits = model.predict([(query, text) for text in texts], activation_fn="Identity")
    found = post(http, "/rerank", {"query": query, "texts": texts, "return_text": True})
    assert {one["index"]: one["score"] for one in found} == dict(enumerate(scores.tolist()))
    assert [one["score"] for one in found] == sorted(scores.tolist(), reverse=True)
    assert [one["text"] for one in found] == [texts[one["index"]] for one in found]
    raw = post(http, "/rerank", {"query": query, "texts": texts, "raw_scores": True})
    assert {one["index"]: one["score"] for one in raw} == dict(enumerate(logits.tolist()))
    assert "text" not in raw[0]
    labels = post(http, "/predict", {"model": "reranker", "inputs": [query, texts[0]]})
    assert labels == [{"label": "relevant", "score": pytest.approx(float(scores[0]), rel=1e-6)}]


def test_tokenize_and_decode(http: httpx.Client, embedder: fa.SentenceTransformer) -> None:
    text = "Great unknown film"
    [found] = post(http, "/tokenize", {"inputs": text, "model": "bert-sst2"})
    assert [one["id"] for one in found] == embedder.tokenizer.encode(text)
    assert [found[0]["special"], found[-1]["special"]] == [True, True]
    inner = [one for one in found if not one["special"]]
    assert [one["text"] for one in inner] == [text[one["start"] : one["stop"]] for one in inner]
    [plain] = post(http, "/tokenize", {"inputs": [text], "model": "bert-sst2", "add_special_tokens": False})
    assert plain == inner
    ids = embedder.tokenizer.encode(text)
    assert post(http, "/decode", {"ids": ids, "model": "bert-sst2"}) == [
        embedder.tokenizer.decode(ids, skip_special_tokens=True)
    ]
    both = post(http, "/decode", {"ids": [ids, ids[1:2]], "model": "bert-sst2", "skip_special_tokens": False})
    assert both == [embedder.tokenizer.decode(ids), embedder.tokenizer.decode(ids[1:2])]


def test_info_health_and_metrics(http: httpx.Client) -> None:
    found = http.get("/info").json()
    assert found["version"] == fa.__version__
    kinds = {model["id"]: model["kinds"] for model in found["models"]}
    assert kinds == {
        "gpt2-litbank": ["generate"],
        "bert-sst2": ["classify", "embed"],
        "chat": ["generate"],
        "reranker": ["classify", "rerank"],
        "sparse": ["sparse"],
    }
    assert (http.get("/health").status_code, http.get("/live").status_code) == (200, 200)
    assert http.head("/health").content == b""
    text = http.get("/metrics").text
    assert 'fastattn_kv_pages_in_use{model="chat"} 0.0' in text
    assert 'fastattn_requests_running{kind="encode"} 0.0' in text


def test_base64_is_little_endian_float32(http: httpx.Client) -> None:
    body = {"model": "bert-sst2", "input": "good", "encoding_format": "base64"}
    data = base64.b64decode(post(http, "/v1/embeddings", body)["data"][0]["embedding"])
    floats = post(http, "/v1/embeddings", {**body, "encoding_format": "float"})["data"][0]["embedding"]
    assert np.frombuffer(data, "<f4").tolist() == floats
