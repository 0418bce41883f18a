"""An embedding backend for BERTopic. Needs the extra `bertopic`."""

from __future__ import annotations

try:
    from bertopic.backend import BaseEmbedder
except ModuleNotFoundError as error:
    raise ImportError(
        'fastattn.bertopic: expected the package bertopic, found none; run pip install "fastattn[bertopic]"'
    ) from error

from fastattn.tasks.lazy_model import EncodeBackend

__all__ = ["FastattnBackend"]


class FastattnBackend(EncodeBackend, BaseEmbedder):  # type: ignore[misc]  # the library has no types
    """Computes the vectors of documents and words with `SentenceTransformer.encode`."""
