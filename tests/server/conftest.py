"""One server for most tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from fastattn.server.models import load_models
from fastattn.server.options import ModelSpec
from tests.server.live import REVIEWS, STORIES, WAIT, Live, SlowModel, slow, write_chat, write_masked, write_reranker


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of tiny random models."""
    base = tmp_path_factory.mktemp("served")
    return {
        "chat": write_chat(base / "chat"),
        "reranker": write_reranker(base / "reranker"),
        "sparse": write_masked(base / "sparse"),
    }


@pytest.fixture(scope="session")
def server(folders: dict[str, Path]) -> Iterator[Live]:
    """Return a server with a model of each kind."""
    specs = [
        ModelSpec(path=STORIES),
        ModelSpec(path=REVIEWS),
        ModelSpec(path=REVIEWS, kind="classify"),
        *(ModelSpec(path=str(folder), name=name) for name, folder in folders.items()),
    ]
    models = load_models(specs, {"threads": 2})
    running = Live(models, max_body_bytes=300_000, max_running=64)
    yield running
    running.close()
    models.close()


@pytest.fixture(scope="session")
def http(server: Live) -> Iterator[httpx.Client]:
    """Return a client of the server."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def client(server: Live) -> Iterator[openai.OpenAI]:
    """Return OpenAI's own client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=WAIT) as found:
        yield found


@pytest.fixture
def slow_model(tmp_path: Path) -> Iterator[tuple[SlowModel, object]]:
    """Return a model whose steps wait, and its entry; the steps run on at the end of the test."""
    model, served = slow(tmp_path / "slow")
    yield model, served
    model.go.set()
