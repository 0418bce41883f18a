"""Estimators for scikit-learn: texts to vectors, and a text classifier. Needs the extra `sklearn`."""

try:
    import sklearn as _sklearn  # noqa: F401  # the package, not this folder
except ImportError as error:
    raise ImportError(
        'fastattn.sklearn: expected the package scikit-learn, found none; run pip install "fastattn[sklearn]"'
    ) from error

from fastattn.sklearn.classifier import TextClassifier
from fastattn.sklearn.embedder import FastattnEmbedder

__all__ = ["FastattnEmbedder", "TextClassifier"]
