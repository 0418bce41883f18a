"""SPLADE: one weight per word of the vocabulary, from the logits of a masked language model.

Formal et al. 2021 (https://arxiv.org/abs/2107.05720, sum) and 2021 (https://arxiv.org/abs/2109.10086, max).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastattn.api.auto import AutoModelForMaskedLM
from fastattn.api.heads import MaskedLM
from fastattn.checks import quote
from fastattn.errors import ConfigError
from fastattn.settings import Settings
from fastattn.tasks.search.vectors import Rows
from fastattn.tasks.sentence.features import Float
from fastattn.tasks.sentence.files import read_optional_json, read_settings
from fastattn.tasks.sentence.folder import (
    FEATURES,
    FILL_MASK,
    MODULES_NAME,
    SETTINGS_NAME,
    SPARSE_MODULES,
    ModuleEntry,
    TransformerSettings,
    check_no_chat_template,
    read_entries,
    read_prompts,
    read_transformer_settings,
    warn_of_unread,
)
from fastattn.tasks.sentence.load_text import StackOptions, load_text_model
from fastattn.tasks.sentence.loading import read_config_kwargs
from fastattn.tasks.sentence.read_only import read_only
from fastattn.tasks.sentence.text_model import TextModel

MODEL_TYPE = "SparseEncoder"
STRATEGIES, ACTIVATIONS = ("max", "sum"), ("relu", "log1p_relu")


class MaskedText(TextModel[MaskedLM]):
    """A masked language model and its tokenizer."""


@read_only()
@dataclass(frozen=True, slots=True)
class SpladePooling:
    """Computes one weight per token of the vocabulary.

    activation_function: "relu" turns a logit into w = log(1 + max(logit, 0)), "log1p_relu" into log(1 + w).
    pooling_strategy: "max" or "sum" over the tokens of a text.
    """

    pooling_strategy: str = "max"
    activation_function: str = "relu"

    def pool(self, logits: Float, width: int) -> Rows:
        """Return float32 [width] from the logits [width] of each token of a text; zeros without tokens."""
        if self.pooling_strategy == "max":  # the activation is monotonic, so it can come after the maximum
            peak = np.zeros(width)
            for row in logits:
                np.maximum(peak, row, out=peak)
            return self._activate(peak).astype(np.float32)
        total = np.zeros(width)
        for row in logits:
            total += self._activate(np.maximum(row, 0.0, dtype=np.float64))
        return total.astype(np.float32)

    def _activate(self, positive: Float) -> Float:
        found: Float = np.log1p(positive)
        return np.log1p(found) if self.activation_function == "log1p_relu" else found


@dataclass(frozen=True, slots=True)
class SparseFolder:
    """The folder of a sparse encoder. path: the folder of the transformer."""

    path: Path
    settings: TransformerSettings
    pooling: SpladePooling
    prompts: Mapping[str, str | None]
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    max_active_dims: int | None = None


def read_sparse_folder(directory: Path) -> SparseFolder:
    """Read the modules and settings of a folder. Raises ConfigError, ModelFormatError."""
    modules = read_optional_json(directory / MODULES_NAME)
    if modules is None:
        return _plain_folder(directory)
    settings = read_settings(directory / SETTINGS_NAME)
    kind = settings.text("model_type", "SentenceTransformer")
    if kind != MODEL_TYPE:
        raise ConfigError(
            f"{settings.where}: model_type: expected {MODEL_TYPE}, got {quote(kind)}; sentence-transformers would add "
            "a new, untrained module"
        )
    entries = read_entries(directory, modules, SPARSE_MODULES)
    where = directory / MODULES_NAME
    if len(entries) != 2 or entries[0].kind == "SpladePooling" or entries[1].kind != "SpladePooling":
        found = ", ".join(entry.kind for entry in entries)
        raise ConfigError(f"{where}: expected a Transformer and a SpladePooling, got {found}")
    settings.ignore("__version__")
    found_folder = SparseFolder(
        path=entries[0].folder,
        settings=_transformer(entries[0]),
        pooling=_pooling(read_settings(entries[1].folder / "config.json", needed_by="module SpladePooling")),
        prompts=read_prompts(settings),
        default_prompt_name=settings.text("default_prompt_name", None),
        similarity_fn_name=settings.text("similarity_fn_name", None),
        max_active_dims=settings.count("max_active_dims", None, low=1),
    )
    settings.finish()
    return found_folder


def _plain_folder(directory: Path) -> SparseFolder:
    """Return a masked language model with the default pooling."""
    warn_of_unread(directory)
    config = read_settings(directory / "config.json")
    if not any(name.endswith("ForMaskedLM") for name in config.texts("architectures")):
        raise ConfigError(
            f"{config.where}: architectures: expected a masked language model (...ForMaskedLM), got "
            f"{list(config.texts('architectures'))}; sentence-transformers would add a new, untrained module"
        )
    check_no_chat_template(directory)
    return SparseFolder(directory, TransformerSettings(task=FILL_MASK), SpladePooling(), {})


def _transformer(entry: ModuleEntry) -> TransformerSettings:
    if entry.kind == "MLMTransformer":
        return read_transformer_settings(entry.folder, (FILL_MASK,))
    settings = read_transformer_settings(entry.folder, (FEATURES, FILL_MASK))
    if settings.task != FILL_MASK:
        where = settings.where or entry.folder
        raise ConfigError(
            f"{where}: transformer_task: expected {FILL_MASK.name} before SpladePooling, got {FEATURES.name}"
        )
    return settings


def _pooling(settings: Settings) -> SpladePooling:
    found = SpladePooling(
        settings.choice("pooling_strategy", STRATEGIES, "max"),
        settings.choice("activation_function", ACTIVATIONS, "relu"),
    )
    settings.ignore("embedding_dimension", "word_embedding_dimension", "chunk_size")
    settings.finish()
    return found


def load_masked_text(folder: SparseFolder, options: StackOptions) -> MaskedText:
    """Load the model and the tokenizer. Raises ConfigError, ModelFormatError, InputError, DTypeError."""
    read_config_kwargs("config_kwargs", options.config_kwargs)
    return load_text_model(folder.path, folder.settings, options, AutoModelForMaskedLM.from_pretrained, MaskedText)
