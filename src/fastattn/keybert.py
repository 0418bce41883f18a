"""An embedding backend for KeyBERT. Needs the extra `keybert`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

try:
    from keybert.backend import BaseEmbedder
except ModuleNotFoundError as error:
    raise ImportError(
        'fastattn.keybert: expected the package keybert, found none; run pip install "fastattn[keybert]"'
    ) from error

from fastattn.tasks.lazy_model import ModelOption, load_lazily

__all__ = ["FastattnBackend"]


class FastattnBackend(BaseEmbedder):  # type: ignore[misc]
    """Computes the vectors of documents and words with `SentenceTransformer.encode`.

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
        super().__init__()
        self.batch_size = batch_size
        self.normalize_embeddings = normalize_embeddings
        self._lazy = load_lazily(model, dtype=dtype, threads=threads)

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
