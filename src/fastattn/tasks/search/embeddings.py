"""Scales and shortens vectors."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fastattn.checks import check_count
from fastattn.tasks.search.vectors import Float, normalized, read_vectors


def normalize_embeddings(embeddings: object) -> Float:
    """Return vectors [n, d] or [d] of length 1; a vector of zeros is unchanged. Raises DTypeError, InputError."""
    return normalized(read_vectors(embeddings, "embeddings"))


def truncate_embeddings(embeddings: object, truncate_dim: int | None) -> NDArray[Any]:
    """Return the first truncate_dim numbers of vectors [n, d] or [d], all for None. Raises DTypeError, InputError."""
    size = None if truncate_dim is None else check_count("truncate_dim", truncate_dim, low=1)
    return read_vectors(embeddings, "embeddings")[..., :size]
