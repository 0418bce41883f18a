"""The model of an adapter to another library. Pickles omit it, and it is loaded again at the next use."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import InputError
from fastattn.tasks.demo import demo_model
from fastattn.tasks.sentence.encoders import Transformer
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

    def folder_or_id(self) -> str:
        """Return the name that loads the model again: the absolute path of a folder, or a hub id."""
        named = self.options[0]
        if isinstance(named, str) and not Path(named).exists():
            return named
        return str(self.open().model.path if named is None else Path(cast("str", named)).absolute())

    def digest(self) -> str | None:
        """Return the SHA-256 over the names and SHA-256 of the model's files; None for a StaticEmbedding.

        Raises ModelFormatError if a file changed after it was loaded.
        """
        model = self.open()
        if not isinstance(model[0], Transformer):
            return None
        _, (recipe,) = model.model.__reduce__()
        return hashlib.sha256(json.dumps(recipe.digests).encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        packed = self._pickle if self._model is None else pickle.dumps(self._model)
        kept = tuple(None if isinstance(option, SentenceTransformer) else option for option in self.options)
        return {"options": kept, "_model": None, "_pickle": packed}


class EncodeAdapter:
    """The options of adapters that pass texts to `SentenceTransformer.encode` and its two variants.

    model: a folder, a hub id, or a SentenceTransformer; None is the demo model that ships with fastattn. batch_size,
    normalize_embeddings: passed to `encode`. dtype, threads: passed to `SentenceTransformer`. A pickle has no weights,
    only the model's path and the SHA-256 of its files. Raises what loading a SentenceTransformer raises.
    """

    def __init__(
        self,
        model: ModelOption = None,
        *,
        batch_size: int = 32,
        normalize_embeddings: bool = False,
        dtype: str | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.normalize_embeddings = normalize_embeddings
        self._lazy = load_lazily(model, dtype=dtype, threads=threads)


class EncodeBackend(EncodeAdapter):
    """An adapter with the method `embed`, for libraries that have no separate queries."""

    def embed(self, documents: object, verbose: bool = False) -> NDArray[np.float32]:
        """Return the vectors of n texts, float32 [n, d]. Raises DTypeError, InputError.

        documents: a list, column or array of str. verbose: show a progress bar.
        """
        return self._lazy.open().encode(
            documents,
            batch_size=self.batch_size,
            normalize_embeddings=self.normalize_embeddings,
            show_progress_bar=verbose,
        )


def load_lazily(model: ModelOption, *, dtype: str | None, threads: int | None) -> LazyModel:
    """Load a folder, a hub id or (None) the demo model; a SentenceTransformer is used as it is."""
    options = (model, dtype, threads)
    if isinstance(model, SentenceTransformer):
        for name, value in (("dtype", dtype), ("threads", threads)):
            if value is not None:
                raise InputError(f"{name}: expected None with a loaded model, got {value!r}; pass it when you load it")
        return LazyModel(model, options)
    folder = demo_model("text-classification") if model is None else model
    found = SentenceTransformer(
        Path(folder) if isinstance(folder, os.PathLike) else folder, dtype=dtype, threads=threads
    )
    return LazyModel(found, options)


def read_texts(name: str, texts: object) -> list[str | tuple[str, str]]:
    """Return a sequence of texts and pairs as a list. Raises DTypeError, InputError."""
    return [first if second is None else (first, second) for first, second in read_pairs(name, texts)]
