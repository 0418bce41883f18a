"""Models whose vectors are only pooled."""

from __future__ import annotations

import copy

from fastattn.errors import InputError
from fastattn.tasks.sentence.encoders import Transformer
from fastattn.tasks.sentence.pooling import Pooling
from fastattn.tasks.sentence.stack import Stack
from fastattn.tasks.sentence_transformer import SentenceTransformer


def with_pooling(model: SentenceTransformer, mode: str) -> SentenceTransformer:
    """Return a model with the same weights and settings whose vectors are only pooled: no module after Pooling.

    Raises InputError for a model without a transformer.
    """
    first = model[0]
    if not isinstance(first, Transformer):
        raise InputError(f'pooling: expected "sentence" for a model without a transformer, got "{mode}"')
    pooling = next((module for module in model if isinstance(module, Pooling)), None)
    include_prompt = pooling is None or pooling.include_prompt
    found = copy.copy(model)
    found.truncate_dim = None
    found._stack = Stack(
        found._stack.first, [Pooling(first.get_embedding_dimension(), mode, include_prompt)], first.auto_model.path
    )
    return found
