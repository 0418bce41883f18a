"""The routes of Text Embeddings Inference about texts and the server: /tokenize, /decode and /info."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastattn.errors import DTypeError, InputError
from fastattn.server.exchange import Exchange
from fastattn.server.fields import Fields, token_ids
from fastattn.server.models import Served
from fastattn.server.problems import Problem
from fastattn.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fastattn.server.app import App

_MAX_IDS = 200_000


async def info(app: App, exchange: Exchange) -> None:
    """Describe the server and its models; the first one as Text Embeddings Inference describes its only one."""
    options, models = app.options, list(app.models)
    first = _describe(models[0])
    await exchange.reply(
        {
            "model_id": first["id"],
            "model_dtype": first["dtype"],
            "max_concurrent_requests": options.max_running + options.max_waiting,
            "max_input_length": first["max_input_length"],
            "max_client_batch_size": options.max_inputs,
            "auto_truncate": False,
            "version": app.version,
            "models": [_describe(model) for model in models],
        }
    )


def _describe(served: Served) -> dict[str, Any]:
    part = next(iter(served.parts.values()))
    if "generate" in served.parts:
        longest = part.executor.program.max_positions
    elif set(served.parts) == {"classify"}:
        longest = min(part.tokenizer.model_max_length, part.model.executor.program.max_positions)
    else:
        longest = part.max_seq_length
    return {
        "id": served.name,
        "kinds": sorted(served.parts),
        "dtype": part.dtype,
        "max_input_length": int(longest) if longest < 2**31 else None,
    }


async def tokenize(app: App, exchange: Exchange) -> None:
    """Return the tokens of texts, and the characters that they stand for."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    tokenizer, prompts = _tokenizer(app, fields)
    texts = fields.texts("inputs", app.options.max_inputs)
    if not texts:
        raise fields.refuse("inputs", "expected at least one text, got none", "missing")
    special = fields.flag("add_special_tokens", True)
    prompt_name = fields.text("prompt_name")
    if prompt_name is not None and prompt_name not in prompts:
        raise fields.refuse("prompt_name", "expected the name of a prompt of the model")
    fields.finish()
    prefix = "" if prompt_name is None else prompts[prompt_name]
    await exchange.reply(await app.in_thread(lambda: [_tokens(tokenizer, prefix + text, special) for text in texts]))


def _tokens(tokenizer: Tokenizer, text: str, special: bool) -> list[dict[str, Any]]:
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, return_special_tokens_mask=True)
    rows = zip(encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
    found = []
    for token_id, (start, stop), is_special in rows:
        own = bool(is_special)
        token = tokenizer.convert_ids_to_tokens(int(token_id)) if own else text[start:stop]
        place = {"start": None, "stop": None} if own else {"start": int(start), "stop": int(stop)}
        found.append({"id": int(token_id), "text": token, "special": own, **place})
    return found


async def decode(app: App, exchange: Exchange) -> None:
    """Return the texts of token ids."""
    fields = await exchange.read(app.options.max_body_bytes, app.options.body_timeout_s)
    tokenizer, _ = _tokenizer(app, fields)
    value = fields.raw("ids")
    rows = [value] if token_ids(value) else value
    if not isinstance(rows, list) or not 1 <= len(rows) <= app.options.max_inputs or not all(map(token_ids, rows)):
        raise fields.refuse("ids", f"expected token ids, or 1 to {app.options.max_inputs} lists of them")
    if sum(map(len, rows)) > _MAX_IDS:
        raise fields.refuse("ids", f"expected at most {_MAX_IDS} ids")
    skip = fields.flag("skip_special_tokens", True)
    fields.finish()

    def work() -> list[str]:
        try:
            return [str(tokenizer.decode(row, skip_special_tokens=skip)) for row in rows]
        except (InputError, DTypeError, OverflowError) as error:
            raise fields.refuse("ids", f"the tokenizer has no such ids: {type(error).__name__}") from None

    await exchange.reply(await app.in_thread(work))


def _tokenizer(app: App, fields: Fields) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer and the prompts of the model that a request names, or of the first one."""
    name = fields.text("model")
    served = next(iter(app.models)) if name is None else app.models.find(name)
    tokenizer = served.tokenizer
    if tokenizer is None:
        raise Problem(400, f"model: {served.name!r:.80} has no tokenizer", "model", "unsupported_by_model")
    prompts: dict[str, str] = getattr(next(iter(served.parts.values())), "prompts", {})
    return tokenizer, prompts
