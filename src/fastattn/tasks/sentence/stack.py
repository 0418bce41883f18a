"""The modules of a model in order: loads them from a folder and runs them on a batch of texts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastattn.api.auto import AutoModel
from fastattn.checks import quote
from fastattn.errors import ConfigError, InputError
from fastattn.tasks.finite import check_finite
from fastattn.tasks.sentence.encoders import (
    InputModule,
    Transformer,
    read_static_embedding,
)
from fastattn.tasks.sentence.features import SENTENCE, TOKENS, Features, Float, Module, Widths
from fastattn.tasks.sentence.files import read_settings
from fastattn.tasks.sentence.folder import (
    INPUT_MODULES,
    MODEL2VEC,
    MODULES_NAME,
    ModelFolder,
    ModuleEntry,
    TransformerSettings,
    check_no_chat_template,
    default_pooling,
    read_transformer_settings,
)
from fastattn.tasks.sentence.load_text import StackOptions, load_text_model
from fastattn.tasks.sentence.loading import (
    TransformerOptions,
    is_on,
    read_config_kwargs,
    read_model_kwargs,
    read_processor_kwargs,
)
from fastattn.tasks.sentence.model2vec import read_model2vec
from fastattn.tasks.sentence.modules import read_dense, read_layer_norm, read_normalize
from fastattn.tasks.sentence.pooling import POOL_OPS, Pooling, read_pooling
from fastattn.tasks.sentence.text_model import Encoded

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger("fastattn")


class Stack:
    """The modules of a model: the first one reads texts, each later one reads features of earlier ones."""

    def __init__(self, first: InputModule, later: Sequence[Module], where: str | Path) -> None:
        self.first = first
        self.later = list(later)
        widths = Widths()
        first.start(widths)
        try:
            for module in self.later:
                module.check(widths)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        level, width = widths.known.get(SENTENCE, ("sentences", 0))
        if level != "sentences":
            raise ConfigError(f"{where}: expected one sentence_embedding per text, got one per token")
        self.known, self.width = widths.known, width  # 0: no sentence embedding

    def __copy__(self) -> Self:
        """Return the same modules with their own settings; the weights never change and are shared."""
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__ | {"first": copy.copy(self.first), "later": list(self.later)})
        return found

    def __deepcopy__(self, _: object) -> Self:
        return self.__copy__()

    def __len__(self) -> int:
        return 1 + len(self.later)

    def __getitem__(self, index: int) -> InputModule | Module:
        modules: list[InputModule | Module] = [self.first, *self.later]
        return modules[index]

    def prompt_len(self, prefix: str) -> int:
        """Return the number of prompt tokens that a Pooling module excludes, without a special token at the end."""
        if not prefix or all(module.include_prompt for module in self.later if isinstance(module, Pooling)):
            return 0
        ids, _ = self.first.encode([(prefix, None)], self.first.truncation, None)[0]
        closing = bool(len(ids)) and int(ids[-1]) in self.first.tokenizer.all_special_ids
        return len(ids) - int(closing)

    def replace(self, old: Module, new: Module) -> None:
        """Replace one module with another."""
        self.later = [new if module is old else module for module in self.later]

    def run(
        self,
        encoded: Encoded,
        where: Sequence[str],
        *,
        prompt_len: int,
        output: str | None,
        key_counts: Sequence[int] | None = None,
    ) -> Features:
        """Compute the features of a batch.

        output: the feature that is needed, "sentence_embedding" or "token_embeddings"; None: all. key_counts: see
        `Features`; only with token_embeddings. Raises InputError, NonFiniteError.
        """
        features = Features(where, prompt_len, key_counts)
        modules = list(self.later)
        op = self._pooling_op(prompt_len) if output != TOKENS else None
        if output == TOKENS:
            modules = [module for module in modules if not isinstance(module, Pooling)]
        self._check_tokens(modules, encoded, where)
        if op is None or output is None:
            self.first.run(encoded, features)
        # Even if the token vectors are known, because pooling them with numpy may give other bits.
        if op is not None and isinstance(self.first, Transformer):
            self.first.run_pooled(encoded, features, op)
            del modules[0]
        _check_finite(features)
        changed = False
        for module in modules:
            if module.reads in features:
                module(features)
                changed = True
        if changed:
            _check_finite(features)
        return features

    @staticmethod
    def _check_tokens(modules: Sequence[Module], encoded: Encoded, where: Sequence[str]) -> None:
        for module in modules:
            if isinstance(module, Pooling):
                for (ids, _), name in zip(encoded, where, strict=True):
                    module.check_tokens(len(ids), name)

    def _pooling_op(self, prompt_len: int) -> str | None:
        """Return the Program op that does the pooling, if pooling comes first and no later module reads tokens."""
        pooling = self.later[0] if self.later else None
        if not isinstance(pooling, Pooling) or len(pooling.modes) != 1 or (prompt_len and not pooling.include_prompt):
            return None
        sentence = {SENTENCE}
        for module in self.later[1:]:
            if module.reads not in sentence:
                return None
            sentence.add(getattr(module, "module_output_name", SENTENCE))
        return POOL_OPS.get(pooling.modes[0])


def _check_finite(features: Features) -> None:
    found: list[Sequence[Float]] = [*features.sentences.values(), *features.tokens.values()]  # type: ignore[list-item]
    for rows in found:
        if isinstance(rows, np.ndarray) and np.isfinite(rows).all():
            continue
        for row, where in zip(rows, features.where, strict=True):
            check_finite(row, where, "numbers")


def load_stack(folder: ModelFolder, options: StackOptions) -> Stack:
    """Load the modules of a folder. Raises ConfigError, ModelFormatError, InputError, DTypeError."""
    read_config_kwargs("config_kwargs", options.config_kwargs)
    if folder.entries is None:
        return _plain_stack(folder.path, options)
    first, *rest = folder.entries
    path = folder.path / MODULES_NAME
    if first.kind not in INPUT_MODULES:
        raise ConfigError(f"{path}: expected one of {', '.join(INPUT_MODULES)} as the first module, got {first.kind}")
    for entry in rest:
        if entry.kind in INPUT_MODULES:
            raise ConfigError(f"{path}: expected {entry.kind} only as the first module, got it after {first.kind}")
    if first.kind == "StaticEmbedding":
        _check_static_options(options)
        start: InputModule = read_static_embedding(first.folder)
    else:
        start = _load_transformer(first.folder, read_transformer_settings(first.folder), options)
    return _stack_of(start, lambda: [read_module(entry, options) for entry in rest], path)


def _plain_stack(path: Path, options: StackOptions) -> Stack:
    config = read_settings(path / "config.json").values
    if config.get("model_type") == MODEL2VEC:
        _check_static_options(options)
        embedding, later = read_model2vec(path)
        return _stack_of(embedding, lambda: later, path)
    check_no_chat_template(path)
    mode = default_pooling(config)
    start = _load_transformer(path, TransformerSettings(), options)
    return _stack_of(start, lambda: [Pooling(start.get_embedding_dimension(), mode)], path)


def _stack_of(start: InputModule, read_later: Callable[[], Sequence[Module]], where: Path) -> Stack:
    """Create a Stack; if that fails, close its first module."""
    try:
        return Stack(start, read_later(), where)
    except BaseException:
        start.close()
        raise


def read_module(entry: ModuleEntry, options: StackOptions) -> Module:
    """Read a module after the first one. Raises ConfigError, ModelFormatError."""
    if entry.kind == "Pooling":
        return read_pooling(read_settings(entry.folder / "config.json", needed_by="module Pooling"))
    if entry.kind == "Dense":
        return read_dense(entry.folder, trust_remote_code=options.trust_remote_code)
    return read_layer_norm(entry.folder) if entry.kind == "LayerNorm" else read_normalize(entry.folder)


def _load_transformer(folder: Path, settings: TransformerSettings, options: StackOptions) -> Transformer:
    return load_text_model(folder, settings, options, AutoModel.from_pretrained, Transformer)


def _check_static_options(options: StackOptions) -> None:
    """Check the options of a StaticEmbedding: float32 on the CPU, without its own limits."""
    given = read_model_kwargs("model_kwargs", options.model_kwargs, TransformerOptions())
    given = read_processor_kwargs("processor_kwargs", options.processor_kwargs, given)
    for name, value in given.tokenizer.items():
        raise InputError(f"processor_kwargs: {name}: expected None for a StaticEmbedding, got {quote(value)}")
    for dtype in (options.run.get("dtype"), given.dtype):
        if dtype is not None and str(dtype).rpartition(".")[2] not in ("float32", "auto"):
            raise InputError(f"dtype: expected float32 for a StaticEmbedding, got {quote(str(dtype))}")
    device = options.run.get("device")
    if not is_on(device, "cpu", "numpy"):
        raise InputError(f"device: expected cpu for a StaticEmbedding, got {quote(device)}")
