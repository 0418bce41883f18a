"""Computes embeddings: of texts, or of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.server.encoding import Limit, Stop, parts
from fastattn.server.fields import Fields
from fastattn.server.problems import Problem
from fastattn.tasks.sentence.text_model import TextTruncation
from fastattn.tasks.sentence_transformer import SentenceTransformer
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE

_MAX_NUMBERS = 4_000_000  # of an answer with a vector for each token


@dataclass(frozen=True, slots=True)
class Request:
    """What is embedded and how. name: of the inputs in messages."""

    inputs: Sequence[str] | Sequence[list[int]]
    limit: Limit
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: int | None = None
    name: str = "inputs"


def read_dimensions(fields: Fields, model: SentenceTransformer) -> int | None:
    """Read the number of dimensions to keep. Raises Problem for more than the model has."""
    found: int | None = fields.count("dimensions", None, 1, model.get_embedding_dimension())
    return found


def read_prompt_name(fields: Fields, prompts: dict[str, str]) -> str | None:
    """Read the name of a prompt of the model. Raises Problem."""
    name: str | None = fields.text("prompt_name")
    if name is not None and name not in prompts:
        raise fields.refuse("prompt_name", f"expected one of {', '.join(map(repr, sorted(prompts)))}")
    return name


def _are_texts(inputs: Sequence[str] | Sequence[list[int]]) -> TypeGuard[Sequence[str]]:
    return isinstance(inputs[0], str)


def embed(model: SentenceTransformer, request: Request, stop: Stop) -> tuple[NDArray[np.float32], int]:
    """Return vectors [n, d], and the number of tokens. Raises Problem, NonFiniteError, Stopped."""
    options: dict[str, Any] = {"normalize_embeddings": request.normalize, "truncate_dim": request.dimensions}
    rows: list[Any] = [None] * len(request.inputs)
    texts = request.inputs
    if not _are_texts(texts):
        if request.prompt_name is not None:
            raise Problem(400, "prompt_name: expected none with token ids, got one", "prompt_name", "invalid_value")
        lengths = list(map(len, request.inputs))
        n_tokens = Limit(Fields({})).check(request.name, lengths, model.max_seq_length)
        for batch in parts(lengths, stop):
            found = _encode_ids(model, request, batch, options)
            for place, i in enumerate(batch):
                rows[i] = found[place]
        return np.stack(rows), n_tokens
    lengths = text_lengths(model, texts, request.prompt_name)
    n_tokens = request.limit.check(request.name, lengths, model.max_seq_length)
    for batch in parts(lengths, stop):
        vectors = model.encode(
            [texts[i] for i in batch], prompt_name=request.prompt_name, show_progress_bar=False, **options
        )
        for place, i in enumerate(batch):
            rows[i] = vectors[place]
    return np.stack(rows), n_tokens


def _encode_ids(
    model: SentenceTransformer, request: Request, batch: Sequence[int], options: dict[str, Any]
) -> NDArray[np.float32]:
    try:
        return model.encode_ids([list(map(int, request.inputs[i])) for i in batch], **options)
    except ContextLengthError:
        raise
    except (InputError, DTypeError) as error:
        message = str(error).partition(": ")[2]
        raise Problem(400, f"{request.name}: {message}", request.name, "invalid_value") from None


def embed_tokens(model: SentenceTransformer, request: Request, stop: Stop) -> tuple[list[NDArray[np.float32]], int]:
    """Return the vectors [n_tokens, d] of the tokens of each text. Raises Problem, NonFiniteError, Stopped."""
    texts = request.inputs
    assert _are_texts(texts)  # the route takes no token ids
    lengths = text_lengths(model, texts, request.prompt_name)
    n_tokens = request.limit.check(request.name, lengths, model.max_seq_length)
    width = model.get_embedding_dimension()
    if n_tokens * width > _MAX_NUMBERS:
        most = _MAX_NUMBERS // width
        raise Problem(413, f"inputs: expected at most {most} tokens in one request, got {n_tokens}", "inputs")
    rows: list[Any] = [None] * len(texts)
    for batch in parts(lengths, stop):
        found = model.encode(
            [texts[i] for i in batch],
            prompt_name=request.prompt_name,
            output_value="token_embeddings",
            show_progress_bar=False,
        )
        for place, i in enumerate(batch):
            rows[i] = found[place]
    return rows, n_tokens


def text_lengths(model: SentenceTransformer, texts: Sequence[str], prompt_name: str | None) -> list[int]:
    """Return the number of tokens of each text, with its prompt, before it is cut."""
    name = model.default_prompt_name if prompt_name is None else prompt_name
    prefix = "" if name is None else model.prompts[name]
    pairs = [(prefix + text, None) for text in texts]
    return [len(ids) for ids, _ in model._first_module().encode(pairs, TextTruncation(DO_NOT_TRUNCATE), None)]
