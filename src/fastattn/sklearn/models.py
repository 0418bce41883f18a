"""The model of an estimator: loaded from its parameters, left out of pickles, and loaded again at the next use."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any, TypeAlias

from fastattn.errors import InputError
from fastattn.tasks.demo import demo_model
from fastattn.tasks.sentence.encoders import Transformer
from fastattn.tasks.sentence.pooling import Pooling
from fastattn.tasks.sentence.stack import Stack
from fastattn.tasks.sentence_transformer import SentenceTransformer
from fastattn.tokenizer.inputs import read_pairs

ModelOption: TypeAlias = "str | os.PathLike[str] | SentenceTransformer | None"


class LazyModel:
    """A SentenceTransformer. Its pickle has the path, the options and the SHA-256 of its files, but no weights.

    options: what it was loaded with.
    """

    def __init__(self, model: SentenceTransformer, options: tuple[object, ...]) -> None:
        self.options = options
        self._model: SentenceTransformer | None = model
        self._pickle = b""

    def open(self) -> SentenceTransformer:
        """Return the model; load it if it comes from a pickle. Raises ModelFormatError if its files have changed."""
        if self._model is None:
            self._model = pickle.loads(self._pickle)
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        packed = self._pickle if self._model is None else pickle.dumps(self._model)
        kept = tuple(None if isinstance(option, SentenceTransformer) else option for option in self.options)
        return {"options": kept, "_model": None, "_pickle": packed}


def load(model: ModelOption, *, dtype: str | None, threads: int | None) -> LazyModel:
    """Load a folder, a hub id or (None) the demo model; a SentenceTransformer is used as it is."""
    options = (model, dtype, threads)
    if isinstance(model, SentenceTransformer):
        for name, value in (("dtype", dtype), ("threads", threads)):
            if value is not None:
                raise InputError(
                    f"{name}: expected None with a model that is already loaded, got {value!r}; pass it when you load it"
                )
        return LazyModel(model, options)
    folder = demo_model("text-classification") if model is None else model
    found = SentenceTransformer(Path(folder) if isinstance(folder, os.PathLike) else folder, dtype=dtype, threads=threads)
    return LazyModel(found, options)


def read_texts(name: str, texts: object) -> list[str | tuple[str, str]]:
    """Return a sequence of texts and pairs as a list. Raises DTypeError, InputError."""
    return [first if second is None else (first, second) for first, second in read_pairs(name, texts)]


def with_pooling(model: SentenceTransformer, mode: str) -> SentenceTransformer:
    """Return a model with the same weights and settings whose vectors are only pooled: no module after Pooling."""
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
