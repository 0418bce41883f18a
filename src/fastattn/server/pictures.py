"""`POST /attention`: a picture of which tokens each token of a text attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastattn.api.model import Model
from fastattn.server.encoding import encode, token_counts
from fastattn.server.exchange import Exchange
from fastattn.server.problems import Problem
from fastattn.tokenizer import Tokenizer
from fastattn.viz.attention_view import attention as draw_attention

if TYPE_CHECKING:
    from fastattn.server.app import App

MAX_TOKENS = 256
_KINDS = {"html": "text/html; charset=utf-8", "svg": "image/svg+xml"}
# A picture that is opened as a page has an origin of its own. The policy inside it forbids it to load anything.
_POLICY = "sandbox allow-scripts; frame-ancestors 'none'"


async def attention(app: App, exchange: Exchange) -> None:
    """Return the picture of a text or of a pair of texts, as HTML or SVG."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    name = fields.text("model")
    served = next(iter(app.models)) if name is None else app.models.find(name)
    text, pair = fields.text("text"), fields.text("text_pair")
    if not text:
        raise fields.refuse("text", "expected a text, got none", "missing")
    layers, heads = fields.raw("layers"), fields.raw("heads")
    form = str(fields.choice("format", "html", tuple(_KINDS)))
    fields.finish()
    tokenizer = served.tokenizer
    if tokenizer is None:
        raise Problem(400, f"model: {served.name!r:.80} has no tokenizer", "model", "unsupported_by_model")
    part = next(iter(served.parts.values()))
    model = part if isinstance(part, Model) else part.model

    def work(_: object) -> tuple[bytes, int]:
        n_tokens = _count(tokenizer, text, pair)
        picture = draw_attention(model, text, pair, layers=layers, heads=heads)
        return (picture.html if form == "html" else picture.svg).encode("utf-8"), n_tokens

    body, n_tokens = await encode(app, work)
    app.count_tokens(exchange, served.name, n_tokens)
    await exchange.reply(body, headers={"content-security-policy": _POLICY}, kind=_KINDS[form])


def _count(tokenizer: Tokenizer, text: str, pair: Any) -> int:
    (n_tokens,) = token_counts(tokenizer, [(text, pair)])
    if n_tokens > MAX_TOKENS:
        message = f"text: expected at most {MAX_TOKENS} tokens in a picture, got {n_tokens}"
        raise Problem(400, message, "text", "context_length_exceeded")
    return n_tokens
