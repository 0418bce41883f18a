"""An embedding backend for KeyBERT. Needs the extra `keybert`."""

from __future__ import annotations

try:
    from keybert.backend import BaseEmbedder
except ModuleNotFoundError as error:
    raise ImportError(
        'fastattn.keybert: expected the package keybert, found none; run pip install "fastattn[keybert]"'
    ) from error

from fastattn.tasks.lazy_model import EncodeBackend

__all__ = ["FastattnBackend"]


class FastattnBackend(EncodeBackend, BaseEmbedder):  # type: ignore[misc]  # the library has no types
    """Computes the vectors of documents and words with `SentenceTransformer.encode`."""
