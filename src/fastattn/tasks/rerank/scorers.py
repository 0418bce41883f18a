"""What computes the logits of pairs: a classifier, or modules whose last one computes "scores"."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from fastattn.api.auto import AutoModelForSequenceClassification
from fastattn.api.encoders import SequenceClassifier
from fastattn.errors import ConfigError, InputError
from fastattn.tasks.finite import check_finite
from fastattn.tasks.rerank.folder import RerankFolder
from fastattn.tasks.search.vectors import Rows
from fastattn.tasks.sentence.encoders import Transformer
from fastattn.tasks.sentence.features import SENTENCE, Widths
from fastattn.tasks.sentence.folder import (
    FEATURES,
    MODULES_NAME,
    SCORES,
    ModelFolder,
    ModelSettings,
    ModuleEntry,
    TransformerSettings,
    read_transformer_settings,
)
from fastattn.tasks.sentence.load_text import StackOptions, load_text_model
from fastattn.tasks.sentence.loading import read_config_kwargs
from fastattn.tasks.sentence.stack import Stack, load_stack
from fastattn.tasks.sentence.text_model import Encoded, TextModel

if TYPE_CHECKING:
    from typing_extensions import Self


class Classifier(TextModel[SequenceClassifier]):
    """A model with a classification head, and its tokenizer."""

    pairs: ClassVar[bool] = True


class Scorer(Protocol):
    """Computes the logits of encoded pairs."""

    @property
    def text(self) -> TextModel[Any]:
        """The model and the tokenizer."""
        ...

    @property
    def num_labels(self) -> int:
        """The number of logits of a pair."""
        ...

    def logits(self, encoded: Encoded, where: Sequence[str], prompt: str) -> Rows:
        """Return float32 [n, num_labels]. where: the names of the pairs in messages. Raises NonFiniteError."""
        ...


class ClassifierScorer:
    """The logits of a classification head."""

    def __init__(self, text: Classifier) -> None:
        self.text = text

    def __copy__(self) -> Self:
        return type(self)(copy.copy(self.text))

    @property
    def num_labels(self) -> int:
        """The number of classes."""
        return self.text.model.config.num_labels

    def logits(self, encoded: Encoded, where: Sequence[str], prompt: str) -> Rows:
        """Run one step."""
        self.text.check_ids(encoded, where)
        ids, types = self.text.columns(encoded)
        found = np.asarray(self.text.model(ids, token_type_ids=types).logits, np.float32)
        for row, name in zip(found, where, strict=True):
            check_finite(row, name, "logits")
        return found


class StackScorer:
    """The feature "scores" of a model of several modules."""

    def __init__(self, stack: Stack) -> None:
        assert isinstance(stack.first, Transformer)
        self._stack, self.text = stack, stack.first
        self.num_labels = stack.known[SCORES.feature][1]

    def __copy__(self) -> Self:
        return type(self)(copy.copy(self._stack))

    def logits(self, encoded: Encoded, where: Sequence[str], prompt: str) -> Rows:
        """Run all modules."""
        length = self._stack.prompt_len(prompt)
        return self._stack.run(encoded, where, prompt_len=length, output=SENTENCE).sentences[SCORES.feature]


def load_scorer(folder: RerankFolder, options: StackOptions, num_labels: int | None) -> Scorer:
    """Load the model of a folder. num_labels: None is the number in config.json.

    As in sentence-transformers, that number is 1 if the model is not a classifier. Raises ConfigError,
    ModelFormatError, InputError, DTypeError.
    """
    read_config_kwargs("config_kwargs", options.config_kwargs)
    if folder.entries is None:
        count = num_labels if num_labels is not None or folder.is_classifier else 1
        return _classifier(folder, TransformerSettings(task=SCORES), options, count)
    first, *rest = folder.entries
    where = folder.path / MODULES_NAME
    if first.kind != "Transformer":
        raise ConfigError(f"{where}: expected a Transformer as the first module, got {first.kind}")
    settings = read_transformer_settings(first.folder, (FEATURES, SCORES))
    if settings.task is SCORES:
        check_last(rest, where)
        return _classifier(folder, settings, options, num_labels)
    stack = load_stack(ModelFolder(folder.path, folder.entries, ModelSettings({})), options)
    try:
        check_scores(Widths(stack.known), where)
        scorer = StackScorer(stack)
        if num_labels not in (None, scorer.num_labels):
            raise InputError(f"num_labels: expected None or {scorer.num_labels}, as in the folder, got {num_labels}")
    except BaseException:
        stack.first.close()
        raise
    return scorer


def check_scores(widths: Widths, where: Path) -> None:
    """Check that the modules after an encoder compute the scores of a pair. Raises ConfigError."""
    level, _ = widths.known.get(SCORES.feature, ("tokens", 0))
    if level != "sentences":
        raise ConfigError(f'{where}: expected a last module Dense with module_output_name "scores", found none')


def check_last(rest: Sequence[ModuleEntry], where: Path) -> None:
    """Check that no module follows a classifier. Raises ConfigError."""
    if rest:
        raise ConfigError(f"{where}: expected no module after one that computes scores, got {rest[0].kind}")


def _classifier(
    folder: RerankFolder, settings: TransformerSettings, options: StackOptions, num_labels: int | None
) -> ClassifierScorer:
    path = folder.path if folder.entries is None else folder.entries[0].folder
    load = AutoModelForSequenceClassification.from_pretrained
    return ClassifierScorer(load_text_model(path, settings, options, load, Classifier, num_labels=num_labels))
