"""An embedding model for LlamaIndex. Needs the extra `llama-index`."""

from __future__ import annotations

import asyncio
from typing import Any, cast

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import Field, PrivateAttr
except ModuleNotFoundError as error:
    raise ImportError(
        "fastattn.llama_index: expected the package llama-index-core, found none; "
        'run pip install "fastattn[llama-index]"'
    ) from error

from fastattn.tasks.lazy_model import LazyModel, load_lazily

__all__ = ["FastattnEmbedding"]


class FastattnEmbedding(BaseEmbedding):  # type: ignore[misc]  # an optional library
    """Computes vectors with `SentenceTransformer.encode_document` and `encode_query`.

    model_name: a folder or a hub id; None is the demo model that ships with fastattn. embed_batch_size: the number of
    texts that LlamaIndex passes in one call. normalize_embeddings: passed to `encode`. dtype, threads: passed to
    `SentenceTransformer`. A pickle has no weights, only the model's path and the SHA-256 of its files.
    """

    normalize_embeddings: bool = Field(default=False, description="Whether vectors have length 1.")
    dtype: str | None = Field(default=None, description="The storage type of the weights.")
    threads: int | None = Field(default=None, description="The number of threads.")
    _lazy: LazyModel = PrivateAttr()

    def __init__(self, model_name: str | None = None, **options: Any) -> None:
        given = {} if model_name is None else {"model_name": str(model_name)}
        super().__init__(**given, **options)
        self._lazy = load_lazily(model_name, dtype=self.dtype, threads=self.threads)
        if model_name is None:
            self.model_name = self._lazy.open().model.name_or_path

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class in serialized components."""
        return "FastattnEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        vector = self._lazy.open().encode_query(
            query, normalize_embeddings=self.normalize_embeddings, show_progress_bar=False
        )
        return cast("list[float]", vector.tolist())

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors = self._lazy.open().encode_document(
            texts, normalize_embeddings=self.normalize_embeddings, show_progress_bar=False
        )
        return cast("list[list[float]]", vectors.tolist())

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
