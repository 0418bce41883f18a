"""Embeddings for LangChain. Needs the extra `langchain`."""

from __future__ import annotations

from typing import cast

try:
    from langchain_core.embeddings import Embeddings
except ModuleNotFoundError as error:
    raise ImportError(
        'fastattn.langchain: expected the package langchain-core, found none; run pip install "fastattn[langchain]"'
    ) from error

from fastattn.tasks.lazy_model import ModelOption, load_lazily

__all__ = ["FastattnEmbeddings"]


class FastattnEmbeddings(Embeddings):  # type: ignore[misc]  # an optional library
    """Computes vectors with `SentenceTransformer.encode_document` and `encode_query`.

    model: a folder, a hub id, or a SentenceTransformer; None is the embedded demo model. batch_size,
    normalize_embeddings: of `encode`. dtype, threads: of `SentenceTransformer`. A pickle has no weights, only the
    model's path and the SHA-256 of its files.
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
        self.batch_size = batch_size
        self.normalize_embeddings = normalize_embeddings
        self._lazy = load_lazily(model, dtype=dtype, threads=threads)

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
