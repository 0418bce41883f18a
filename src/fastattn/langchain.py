"""Embeddings for LangChain. Needs the extra `langchain`."""

from __future__ import annotations

from typing import cast

try:
    from langchain_core.embeddings import Embeddings
except ModuleNotFoundError as error:
    raise ImportError(
        'fastattn.langchain: expected the package langchain-core, found none; run pip install "fastattn[langchain]"'
    ) from error

from fastattn.tasks.lazy_model import EncodeAdapter

__all__ = ["FastattnEmbeddings"]


class FastattnEmbeddings(EncodeAdapter, Embeddings):  # type: ignore[misc]  # an optional library
    """Computes vectors with `SentenceTransformer.encode_document` and `encode_query`."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vector of each text. Raises DTypeError, InputError."""
        vectors = self._lazy.open().encode_document(
            texts, batch_size=self.batch_size, normalize_embeddings=self.normalize_embeddings, show_progress_bar=False
        )
        return cast("list[list[float]]", vectors.tolist())

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query. Raises DTypeError, InputError."""
        vector = self._lazy.open().encode_query(
            text, normalize_embeddings=self.normalize_embeddings, show_progress_bar=False
        )
        return cast("list[float]", vector.tolist())
