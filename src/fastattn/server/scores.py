"""The routes of Text Embeddings Inference for scores: /predict and /rerank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn.checks import is_text
from fastattn.server.encoding import Limit, Stop, encode, parts, token_counts
from fastattn.server.exchange import Exchange
from fastattn.server.fields import Fields
from fastattn.tasks.cross_encoder import CrossEncoder
from fastattn.tasks.text_classification import TextClassificationPipeline

if TYPE_CHECKING:
    from fastattn.server.app import App

_Item = tuple[str, "str | None"]


async def predict(app: App, exchange: Exchange) -> None:
    """Return the labels of texts or pairs with their scores, the highest first."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    served, pipeline = app.models.of_kind("classify", fields.text("model"))
    items, single = _read_items(fields, app.options.max_inputs)
    limit, raw = Limit(fields), fields.flag("raw_scores", False)
    fields.finish()
    found, n_tokens = await encode(app, lambda stop: _classify(pipeline, items, limit, raw, stop))
    app.count_tokens(exchange, served.name, n_tokens)
    await exchange.reply(found[0] if single else found)


def _classify(
    pipeline: TextClassificationPipeline, items: list[_Item], limit: Limit, raw: bool, stop: Stop
) -> tuple[list[Any], int]:
    tokenizer = pipeline.tokenizer
    lengths = token_counts(tokenizer, items)
    most = min(tokenizer.model_max_length, pipeline.model.executor.program.max_positions)
    n_tokens = limit.check("inputs", lengths, most)
    rows: list[Any] = [None] * len(items)
    options: dict[str, Any] = {"function_to_apply": "none"} if raw else {}
    for batch in parts(lengths, stop):
        texts = [
            {"text": first} if second is None else {"text": first, "text_pair": second}
            for first, second in (items[i] for i in batch)
        ]
        found = pipeline(texts, top_k=None, truncation=limit.truncate, show_progress_bar=False, **options)
        for place, i in enumerate(batch):
            rows[i] = found[place]
    return rows, n_tokens


def _read_items(fields: Fields, high: int) -> tuple[list[_Item], bool]:
    """Read a text, a pair [a, b], or a list of [a] and [a, b]; also return whether it is a single one.

    Raises Problem.
    """
    value = fields.raw("inputs")
    if isinstance(value, str):
        value, single = [[value]], True
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value, single = [value], True
    else:
        single = False
    if not isinstance(value, list) or not 1 <= len(value) <= high:
        raise fields.refuse("inputs", f"expected a text, a pair of texts, or 1 to {high} lists of one or two texts")
    items: list[_Item] = []
    for i, item in enumerate(value):
        if not isinstance(item, list) or not 1 <= len(item) <= 2 or not all(map(is_text, item)) or not item[0]:
            raise fields.refuse("inputs", f"item {i}: expected one or two texts, the first not empty")
        items.append((item[0], item[1] if len(item) == 2 else None))
    return items, single


async def rerank(app: App, exchange: Exchange) -> None:
    """Return the texts by how well they answer a query, the best first."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    served, model = app.models.of_kind("rerank", fields.text("model"))
    query, texts = fields.text("query"), fields.texts("texts", app.options.max_inputs)
    if not query:
        raise fields.refuse("query", "expected a text, got none", "missing")
    if not texts:
        raise fields.refuse("texts", "expected at least one text, got none", "missing")
    limit, raw = Limit(fields), fields.flag("raw_scores", False)
    with_text = fields.flag("return_text", False)
    fields.finish()
    scores, n_tokens = await encode(
        app, lambda stop: _score(model, [(query, text) for text in texts], limit, raw, stop)
    )
    app.count_tokens(exchange, served.name, n_tokens)
    answer = []
    for i in np.argsort(-scores, kind="stable").tolist():
        entry = {"index": i, "score": float(scores[i])}
        answer.append({**entry, "text": texts[i]} if with_text else entry)
    await exchange.reply(answer)


def _score(model: CrossEncoder, pairs: list[tuple[str, str]], limit: Limit, raw: bool, stop: Stop) -> tuple[Any, int]:
    lengths = model.count_tokens(pairs)
    n_tokens = limit.check("texts", lengths, model.max_seq_length)
    scores = np.zeros(len(pairs), np.float32)
    for batch in parts(lengths, stop):
        scores[batch] = model.predict(
            [pairs[i] for i in batch],
            activation_fn="Identity" if raw else "Sigmoid",
            show_progress_bar=False,
        )
    return scores, n_tokens
