"""`FastattnEmbedder`: texts to vectors, as a transformer of scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from fastattn.tasks.lazy_model import LazyModel, ModelOption, load_lazily, read_texts
from fastattn.tasks.sentence_transformer import SentenceTransformer

if TYPE_CHECKING:
    from typing_extensions import Self


class FastattnEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]  # no types
    """Computes the vector of each text, as `SentenceTransformer.encode` does. It learns nothing from the data.

    model: a folder, a hub id, or a SentenceTransformer, which clones share; None is the embedded demo model. The other
    parameters are those of `SentenceTransformer` and `encode`. The model is loaded at the first use. A pickle has the
    model's path and the SHA-256 of its files, no weights; it raises ModelFormatError if the files have changed.

    Texts are a list, a column of pandas or polars, a NumPy or an Arrow array of str; a tuple of two str is a pair.
    """

    def __init__(
        self,
        model: ModelOption = None,
        *,
        batch_size: int = 32,
        prompt_name: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        dtype: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.prompt_name = prompt_name
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = truncate_dim
        self.dtype = dtype
        self.threads = threads

    @property
    def model_(self) -> SentenceTransformer:
        """The loaded model."""
        return self._open()

    def _open(self) -> SentenceTransformer:
        lazy = cast("LazyModel | None", getattr(self, "_lazy", None))
        options = (self.model, self.dtype, self.threads)
        if lazy is None or (lazy.options != options and not isinstance(self.model, SentenceTransformer)):
            self._lazy = lazy = load_lazily(self.model, dtype=self.dtype, threads=self.threads)
        elif isinstance(self.model, SentenceTransformer):
            return self.model
        return lazy.open()

    def fit(self, X: object, y: object = None) -> Self:
        """Load the model; X and y change nothing."""
        self._open()  # so wrong parameters raise here
        return self

    def transform(self, X: object) -> NDArray[np.float32]:
        """Return the vectors of n texts, float32 [n, d]. Each depends only on its own text, bit for bit.

        Raises DTypeError for a missing text, InputError.
        """
        texts = read_texts("X", X)
        found = self.model_.encode(
            texts,
            batch_size=self.batch_size,
            prompt_name=self.prompt_name,
            normalize_embeddings=self.normalize_embeddings,
            truncate_dim=self.truncate_dim,
            show_progress_bar=False,
        )
        return cast("NDArray[np.float32]", found)

    @property
    def _n_features_out(self) -> int:
        width = self.model_.get_embedding_dimension()
        return width if self.truncate_dim is None else min(width, self.truncate_dim)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = []
        return tags
