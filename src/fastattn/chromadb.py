"""An embedding function for Chroma collections. Needs the extra `chromadb`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from chromadb.api.types import EmbeddingFunction
    from chromadb.utils.embedding_functions import register_embedding_function
except ModuleNotFoundError as error:
    raise ImportError(
        'fastattn.chromadb: expected the package chromadb, found none; run pip install "fastattn[chromadb]"'
    ) from error

from fastattn.errors import ConfigError
from fastattn.tasks.lazy_model import load_lazily

__all__ = ["FastattnEmbeddingFunction"]
_KEYS = ("model", "normalize_embeddings", "dtype", "threads", "sha256")


class FastattnEmbeddingFunction(EmbeddingFunction):  # type: ignore[misc]  # an optional library
    """Computes vectors with `SentenceTransformer.encode_document` and `encode_query`.

    model: a folder or a hub id; None is the demo model that ships with fastattn. normalize_embeddings: passed to
    `encode`. dtype, threads: passed to `SentenceTransformer`. A collection stores these options and the SHA-256 of the
    model's files. If you import `fastattn.chromadb`, Chroma loads the model again when it opens the collection. It
    raises ConfigError if the files have changed, because the vectors would not match those of the collection.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        normalize_embeddings: bool = False,
        dtype: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._lazy = load_lazily(model, dtype=dtype, threads=threads)
        self._config = {
            "model": self._lazy.folder_or_id(),
            "normalize_embeddings": normalize_embeddings,
            "dtype": dtype,
            "threads": threads,
        }

    def __call__(self, input: list[str]) -> list[NDArray[np.float32]]:
        """Return the vector of each text, float32 [d]. Raises DTypeError, InputError."""
        return list(self._lazy.open().encode_document(input, **self._options()))

    def embed_query(self, input: list[str]) -> list[NDArray[np.float32]]:
        """Return the vector of each query, float32 [d]. Raises DTypeError, InputError."""
        return list(self._lazy.open().encode_query(input, **self._options()))

    def _options(self) -> dict[str, Any]:
        return {"normalize_embeddings": self._config["normalize_embeddings"], "show_progress_bar": False}

    @staticmethod
    def name() -> str:
        """Return the name of the function in a collection's configuration."""
        return "fastattn"

    def default_space(self) -> str:
        """Return the distance of a collection that sets none."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """Return the options and the digest of the model's files, for a collection's configuration."""
        return {**self._config, "sha256": self._lazy.digest()}

    @staticmethod
    def build_from_config(config: Mapping[str, Any]) -> FastattnEmbeddingFunction:
        """Load the model of a collection's configuration. Raises ConfigError if its files have changed."""
        FastattnEmbeddingFunction.validate_config(config)
        options = {key: config[key] for key in _KEYS if key not in ("model", "sha256") and key in config}
        found = FastattnEmbeddingFunction(config["model"], **options)
        digest = found._lazy.digest()
        if config.get("sha256") not in (None, digest):
            raise ConfigError(
                f"{config['model']}: expected the model files with which the collection was made (SHA-256 "
                f"{config['sha256']}), got others ({digest}); use those files, or make a new collection"
            )
        return found

    def validate_config_update(self, old_config: Mapping[str, Any], new_config: Mapping[str, Any]) -> None:
        """Refuse another model, dtype or normalize_embeddings for a collection. Raises ConfigError."""
        for key in ("sha256", "dtype", "normalize_embeddings"):
            if old_config.get(key) != new_config.get(key):
                raise ConfigError(
                    f"{key}: expected {old_config.get(key)!r}, as in the collection, got {new_config.get(key)!r}; make "
                    "a new collection"
                )

    @staticmethod
    def validate_config(config: Mapping[str, Any]) -> None:
        """Check the keys of a configuration. Raises ConfigError."""
        unknown = [key for key in config if key not in _KEYS]
        if unknown or "model" not in config:
            raise ConfigError(
                f"configuration of fastattn: expected the keys {', '.join(_KEYS)}, got {', '.join(config)}"
            )


register_embedding_function(FastattnEmbeddingFunction)
