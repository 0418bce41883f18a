"""`TextClassifier`: an encoder and a logistic regression, as a classifier of scikit-learn."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from fastattn import ops
from fastattn.api.classifier_head import Pooling as HeadPooling
from fastattn.api.classifier_head import adds_layer
from fastattn.api.save_classifier import save_classifier
from fastattn.checks import check_choice
from fastattn.errors import ConfigError, InputError
from fastattn.sklearn.pooling import with_pooling
from fastattn.sklearn.sentence_folder import save_sentence_classifier
from fastattn.tasks.lazy_model import LazyModel, ModelOption, load_lazily, read_texts
from fastattn.tasks.sentence.encoders import Transformer
from fastattn.tasks.sentence.modules import Normalize
from fastattn.tasks.sentence.pooling import Pooling
from fastattn.tasks.sentence_transformer import SentenceTransformer
from fastattn.tasks.softmax import softmax

if TYPE_CHECKING:
    from typing_extensions import Self

_POOLINGS = ("auto", "cls", "mean", "sentence")


class TextClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # no types
    """Classifies texts with a logistic regression on the vectors of an encoder.

    `save_pretrained` writes a normal checkpoint. model: a folder, a hub id, or a SentenceTransformer, which clones
    share; None is the embedded demo model. pooling: the vector of a text.

    - "cls": the hidden state of the first token.
    - "mean": the mean over all tokens. In BERT, DistilBERT, RoBERTa, XLM-RoBERTa, CamemBERT and ELECTRA, each vector is
      also centered and divided by its standard deviation; `save_pretrained` adds one layer, which computes the same.
    - "auto": "cls" or "mean", as in the model's Pooling module. A Normalize module after it does not apply.
    - "sentence": the vector that `SentenceTransformer.encode` returns. `save_pretrained` cannot write it.

    C, class_weight, max_iter, tol: passed to `sklearn.linear_model.LogisticRegression`. Except with "sentence", the
    vectors are scaled so that their mean square length is 1 on the training texts. batch_size: texts per step; it
    changes no result. dtype, threads: passed to `SentenceTransformer`.

    Attributes: `classes_`; `coef_` [n_classes, width] and `intercept_` [n_classes] ([1, width] and [1] for two
    classes), float32, for the vectors before this scaling; `n_iter_`; `pooling_`, the pooling used; `model_`, the
    loaded model.
    """

    def __init__(
        self,
        model: ModelOption = None,
        *,
        pooling: Literal["auto", "cls", "mean", "sentence"] = "auto",
        C: float = 1.0,
        class_weight: Any = None,
        max_iter: int = 1000,
        tol: float = 1e-4,
        batch_size: int = 32,
        dtype: str | None = None,
        threads: int | None = None,
    ) -> None:
        self.model = model
        self.pooling = pooling
        self.C = C
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.tol = tol
        self.batch_size = batch_size
        self.dtype = dtype
        self.threads = threads

    def fit(self, X: object, y: Any, sample_weight: Any = None) -> Self:
        """Fit the logistic regression on n texts, their classes y [n] and, if given, their weights sample_weight [n].

        X: a list, a column of pandas or polars, a NumPy or an Arrow array of str; a tuple of two str is a pair. Raises
        DTypeError for a missing text, InputError, ConfigError, ValueError.
        """
        check_choice("pooling", self.pooling, _POOLINGS)
        lazy = load_lazily(self.model, dtype=self.dtype, threads=self.threads)
        model, pooling = _with_pooling(lazy.open(), self.pooling)
        texts = read_texts("X", X)
        vectors = _vectors(model, pooling, texts, self.batch_size).astype(np.float64)
        scale = 1.0
        if pooling != "sentence":
            if not _is_normalized(model, pooling):
                vectors -= vectors.mean(axis=1, keepdims=True)
            scale = float(np.sqrt((vectors * vectors).sum(axis=1).mean())) if len(vectors) else 1.0
        regression = LogisticRegression(
            C=self.C, class_weight=self.class_weight, max_iter=self.max_iter, tol=self.tol
        ).fit(vectors / (scale or 1.0), y, sample_weight=sample_weight)
        self._lazy, self.pooling_ = LazyModel(model, lazy.options), pooling
        coefficients = regression.coef_ / (scale or 1.0)
        if pooling != "sentence":
            coefficients = coefficients - coefficients.mean(axis=1, keepdims=True)  # instead of centering the vectors
        self.coef_ = coefficients.astype(np.float32)
        self.intercept_ = regression.intercept_.astype(np.float32)
        self.classes_, self.n_iter_ = regression.classes_, regression.n_iter_
        return self

    @property
    def model_(self) -> SentenceTransformer:
        """The model that computes the vectors."""
        check_is_fitted(self)
        return self._lazy.open()

    def decision_function(self, X: object) -> NDArray[np.float32]:
        """Return the logits of n texts, float32 [n, n_classes]; [n] for two classes.

        Each depends only on its own text, bit for bit. Raises DTypeError for a missing text, InputError.
        """
        vectors = _vectors(self.model_, self.pooling_, read_texts("X", X), self.batch_size)
        found = ops.linear(vectors, self.coef_, self.intercept_)
        return found[:, 0] if len(self.coef_) == 1 else found

    def predict_proba(self, X: object) -> NDArray[np.float64]:
        """Return the probability of each class, float64 [n, n_classes], in the order of `classes_`.

        Raises DTypeError for a missing text, InputError.
        """
        logits = self.decision_function(X).astype(np.float64)
        return softmax(np.stack([-logits / 2, logits / 2], axis=1) if logits.ndim == 1 else logits)

    def predict(self, X: object) -> NDArray[Any]:
        """Return the most probable class of each text, [n]. Raises DTypeError for a missing text, InputError."""
        best = self.predict_proba(X).argmax(axis=1)
        return cast("NDArray[Any]", self.classes_[best])

    def save_pretrained(self, directory: str | os.PathLike[str]) -> Path:
        """Write a checkpoint for `AutoModelForSequenceClassification` of transformers and fastattn; return its folder.

        It has the model's weights and tokenizer, a classification head, and the classes as labels. Its logits are those
        of `decision_function`, up to float32 rounding; for two classes, they are -1/2 and 1/2 of it. They need
        the range of float32 or bfloat16; float16 overflows. The folder must be new or empty. Raises ConfigError if
        no head of the model's family reads these vectors, or the model puts a prompt before each text; OSError.
        """
        model = self.model_
        if self.pooling_ == "sentence":
            raise ConfigError(
                'pooling: expected "auto", "cls" or "mean", because no classification head reads vectors of '
                'SentenceTransformer.encode, got "sentence"; fit with another pooling, or '
                "call save_sentence_transformer"
            )
        prompt = model.prompts.get(model.default_prompt_name or "", "")
        if prompt:
            raise ConfigError(
                f"model: expected one without a default prompt, which no checkpoint can add to a text, got {prompt!r}; "
                "set default_prompt_name = None in a SentenceTransformer, pass it as the model, and fit again"
            )
        weight, bias, labels = self._rows()
        pooling = cast(HeadPooling, self.pooling_)
        return save_classifier(
            model.model, model.tokenizer, directory, weight=weight, bias=bias, labels=labels, pooling=pooling
        )

    def save_sentence_transformer(self, directory: str | os.PathLike[str]) -> Path:
        """Write a folder for `SentenceTransformer`, whose vectors are the logits; return the folder.

        This works for every pooling, also with sentence-transformers. The logits are [n, n_classes], those of
        `save_pretrained`; config.json has the labels. The folder must be new or empty. Raises ConfigError for a model
        without a transformer, or with truncate_dim; OSError.
        """
        model = self.model_
        weight, bias, labels = self._rows()
        normalized = self.pooling_ != "sentence" and _is_normalized(model, self.pooling_)
        return save_sentence_classifier(model, directory, weight=weight, bias=bias, labels=labels, centered=normalized)

    def _rows(self) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
        """Return weights [n_classes, width], biases [n_classes] and labels of a softmax over all classes."""
        weight, bias = self.coef_.astype(np.float64), self.intercept_.astype(np.float64)
        if len(weight) == 1:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return weight, bias, [str(name) for name in self.classes_]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags


def _with_pooling(model: SentenceTransformer, asked: str) -> tuple[SentenceTransformer, str]:
    """Return a model that shares the weights and ends with the pooling, and its name. Raises InputError."""
    if asked == "sentence":
        return copy.copy(model), asked
    modules = list(model)
    pooling = next((module for module in modules if isinstance(module, Pooling)), None)
    if asked == "auto" and isinstance(modules[0], Transformer):
        others = [module for module in modules[1:] if not isinstance(module, (Pooling, Normalize))]
        found = "+".join(pooling.modes) if pooling is not None else "none"
        if others or found not in ("cls", "mean"):
            names = ", ".join(type(module).__name__ for module in modules)
            raise InputError(
                f'pooling: expected "cls", "mean" or "sentence" for a model with the modules {names} and the pooling '
                f'{found}, got "auto"'
            )
        asked = found
    return with_pooling(model, asked), asked


def _is_normalized(model: SentenceTransformer, pooling: str) -> bool:
    return adds_layer(model.model.config.model_type, cast(HeadPooling, pooling))


def _vectors(
    model: SentenceTransformer, pooling: str, texts: list[str | tuple[str, str]], batch_size: int
) -> NDArray[np.float32]:
    """Return the vectors [n, width] that the logistic regression reads."""
    found = cast(
        "NDArray[np.float32]",
        model.encode(texts, batch_size=batch_size, show_progress_bar=False),
    )
    if pooling == "sentence" or not _is_normalized(model, pooling):
        return found
    wide = found.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    deviation = np.sqrt((wide * wide).mean(axis=1, keepdims=True))
    return cast("NDArray[np.float32]", (wide / np.maximum(deviation, np.finfo(np.float32).tiny)).astype(np.float32))
