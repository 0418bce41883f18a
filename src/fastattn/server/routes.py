"""The table of routes: a handler for each path and method."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from fastattn.server import chat, completions, embeddings, pictures, scores, texts, vectors
from fastattn.server.exchange import Exchange
from fastattn.server.page import page

if TYPE_CHECKING:
    from fastattn.server.app import App

Handler: TypeAlias = "Callable[[App, Exchange], Awaitable[None]]"


async def health(app: App, exchange: Exchange) -> None:
    """Say whether new requests are accepted."""
    await exchange.reply(b"", 503 if app.draining else 200, kind="text/plain")


async def live(app: App, exchange: Exchange) -> None:
    """Say that the process runs."""
    await exchange.reply(b"", kind="text/plain")


async def front(app: App, exchange: Exchange) -> None:
    """Send the page that tries the models."""
    body, headers = page()
    await exchange.reply(body, headers=headers, kind="text/html; charset=utf-8")


async def metrics(app: App, exchange: Exchange) -> None:
    """Send the metrics."""
    await exchange.reply(app.metrics.page(), kind="text/plain; version=0.0.4; charset=utf-8")


async def list_models(app: App, exchange: Exchange) -> None:
    """List the models."""
    await exchange.reply({"object": "list", "data": [_entry(model.name, model.created) for model in app.models]})


async def one_model(app: App, exchange: Exchange) -> None:
    """Describe a model."""
    model = app.models.find(exchange.scope["path"].removeprefix("/v1/models/"))
    await exchange.reply(_entry(model.name, model.created))


def _entry(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "fastattn"}


ROUTES: Mapping[str, Mapping[str, Handler]] = {
    "/": {"GET": front},
    "/health": {"GET": health},
    "/live": {"GET": live},
    "/metrics": {"GET": metrics},
    "/info": {"GET": texts.info},
    "/v1/models": {"GET": list_models},
    "/v1/models/{model}": {"GET": one_model},
    "/v1/completions": {"POST": completions.complete},
    "/v1/chat/completions": {"POST": chat.chat},
    "/v1/embeddings": {"POST": embeddings.embeddings},
    "/embed": {"POST": vectors.embed},
    "/embed_all": {"POST": vectors.embed_all},
    "/embed_sparse": {"POST": vectors.embed_sparse},
    "/similarity": {"POST": vectors.similarity},
    "/predict": {"POST": scores.predict},
    "/rerank": {"POST": scores.rerank},
    "/attention": {"POST": pictures.attention},
    "/tokenize": {"POST": texts.tokenize},
    "/decode": {"POST": texts.decode},
}
