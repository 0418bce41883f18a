"""The routes of Text Embeddings Inference for vectors: /embed, /embed_all, /embed_sparse and /similarity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastattn.server.embedding import Request, embed_tokens, read_dimensions, read_prompt_name
from fastattn.server.embedding import embed as compute
from fastattn.server.encoding import Limit, Stop, encode, parts, token_counts
from fastattn.server.exchange import Exchange, rows_to_json
from fastattn.server.fields import Fields, read_prompts
from fastattn.tasks.sparse_encoder import SparseEncoder

if TYPE_CHECKING:
    from fastattn.server.app import App


async def embed(app: App, exchange: Exchange) -> None:
    """Return one vector per text."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    served, model = app.models.of_kind("embed", fields.text("model"))
    request = Request(
        read_prompts(fields, "inputs", app.options.max_inputs, empty_text=False),
        Limit(fields),
        read_prompt_name(fields, model.prompts),
        fields.flag("normalize", True),
        read_dimensions(fields, model),
    )
    fields.finish()
    found, n_tokens = await encode(app, lambda stop: compute(model, request, stop))
    app.count_tokens(exchange, served.name, n_tokens)
    await exchange.reply(await app.in_thread(lambda: rows_to_json(row.tolist() for row in found)))


async def embed_all(app: App, exchange: Exchange) -> None:
    """Return one vector per token of each text."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    served, model = app.models.of_kind("embed", fields.text("model"))
    inputs = _texts(fields, app.options.max_inputs)
    request = Request(inputs, Limit(fields), read_prompt_name(fields, model.prompts))
    fields.finish()
    found, n_tokens = await encode(app, lambda stop: embed_tokens(model, request, stop))
    app.count_tokens(exchange, served.name, n_tokens)
    await exchange.reply(await app.in_thread(lambda: rows_to_json(rows.tolist() for rows in found)))


async def embed_sparse(app: App, exchange: Exchange) -> None:
    """Return the positions and values of one sparse vector per text."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    served, model = app.models.of_kind("sparse", fields.text("model"))
    inputs, limit = _texts(fields, app.options.max_inputs), Limit(fields)
    prompt_name = read_prompt_name(fields, model.prompts)
    fields.finish()
    found, n_tokens = await encode(app, lambda stop: _sparse(model, inputs, limit, prompt_name, stop))
    app.count_tokens(exchange, served.name, n_tokens)
    await exchange.reply(await app.in_thread(lambda: rows_to_json(found)))


def _sparse(
    model: SparseEncoder, texts: list[str], limit: Limit, prompt_name: str | None, stop: Stop
) -> tuple[list[Any], int]:
    name = model.default_prompt_name if prompt_name is None else prompt_name
    prefix = "" if name is None else model.prompts[name]
    lengths = token_counts(model.tokenizer, [(prefix + text, None) for text in texts])
    n_tokens = limit.check("inputs", lengths, model.max_seq_length)
    rows: list[Any] = [None] * len(texts)
    for batch in parts(lengths, stop):
        found = model.encode([texts[i] for i in batch], prompt_name=prompt_name, show_progress_bar=False)
        for place, i in enumerate(batch):
            pairs = zip(found[place].indices.tolist(), found[place].values.tolist(), strict=True)
            rows[i] = [{"index": index, "value": value} for index, value in pairs]
    return rows, n_tokens


async def similarity(app: App, exchange: Exchange) -> None:
    """Return the similarity of a text and each of several others, with the model's similarity function."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    served, model = app.models.of_kind("embed", fields.text("model"))
    inputs = fields.table("inputs")
    if inputs is None:
        raise fields.refuse("inputs", "expected an object, got none", "missing")
    source = inputs.text("source_sentence")
    if not source:
        raise inputs.refuse("source_sentence", "expected a text, got none", "missing")
    sentences = _texts(inputs, app.options.max_inputs - 1, "sentences")
    inputs.finish()
    parameters = fields.table("parameters") or Fields({})
    limit, prompt_name = Limit(parameters), read_prompt_name(parameters, model.prompts)
    parameters.finish()
    fields.finish()
    request = Request([source, *sentences], limit, prompt_name, normalize=False)

    def work(stop: Stop) -> tuple[list[float], int]:
        found, n_tokens = compute(model, request, stop)
        scores: list[float] = model.similarity(found[:1], found[1:])[0].tolist()
        return scores, n_tokens

    scores, n_tokens = await encode(app, work)
    app.count_tokens(exchange, served.name, n_tokens)
    await exchange.reply(scores)


def _texts(fields: Fields, high: int, name: str = "inputs") -> list[str]:
    found = fields.texts(name, high)
    if not found:
        raise fields.refuse(name, "expected at least one text, got none", "missing")
    if "" in found:
        raise fields.refuse(name, "expected texts that are not empty")
    return found
