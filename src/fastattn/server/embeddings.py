"""`POST /v1/embeddings`."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np

from fastattn.checks import Neutral, check_str
from fastattn.server.embedding import Request, embed, read_dimensions
from fastattn.server.encoding import Limit, encode
from fastattn.server.exchange import Exchange, rows_to_json, to_json
from fastattn.server.fields import Fields, read_prompts

if TYPE_CHECKING:
    from fastattn.server.app import App


async def embeddings(app: App, exchange: Exchange) -> None:
    """Embed texts or token ids; vectors have length 1."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    served, model = app.models.of_kind("embed", fields.text("model"))
    inputs = read_prompts(fields, "input", app.options.max_inputs, empty_text=False)
    as_base64 = fields.choice("encoding_format", "float", ("float", "base64")) == "base64"
    dimensions = read_dimensions(fields, model)
    fields.finish({"user": Neutral(check=check_str)})
    request = Request(inputs, Limit(Fields({})), dimensions=dimensions, name="input")
    vectors, n_tokens = await encode(app, lambda stop: embed(model, request, stop))

    def entry(index: int) -> dict[str, object]:
        row = vectors[index]
        shown = base64.b64encode(row.astype(np.dtype("<f4")).tobytes()).decode("ascii") if as_base64 else row.tolist()
        return {"object": "embedding", "index": index, "embedding": shown}

    def answer() -> bytes:
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        rest = to_json({"object": "list", "model": served.name, "usage": usage})
        return rest[:-1] + b',"data":' + rows_to_json(map(entry, range(len(vectors)))) + b"}"

    app.count_tokens(exchange, served.name, n_tokens)
    await exchange.reply(await app.in_thread(answer))
