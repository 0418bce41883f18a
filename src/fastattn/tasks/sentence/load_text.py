"""Loads a model and its tokenizer with the settings and keyword dictionaries of sentence-transformers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastattn.api.load_args import HubArgs, RunArgs
from fastattn.checks import check_keywords, quote
from fastattn.errors import ConfigError, InputError
from fastattn.tasks.sentence.files import read_settings
from fastattn.tasks.sentence.folder import TransformerSettings, check_no_adapter
from fastattn.tasks.sentence.loading import TransformerOptions, read_model_kwargs, read_processor_kwargs
from fastattn.tasks.sentence.text_model import ModelType, TextModel
from fastattn.tokenizer import Tokenizer, has_tokenizer, load_tokenizer


class SentenceLoadArgs(RunArgs, HubArgs, total=False):
    """How to load the transformer, as in `AutoModel.from_pretrained`, and where to look up a hub id."""


_TextModel = TypeVar("_TextModel", bound=TextModel[Any])
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True, kw_only=True)
class StackOptions:
    """How to load the modules. run: options of `AutoModel.from_pretrained`."""

    run: RunArgs
    trust_remote_code: bool = False
    model_kwargs: object = None
    processor_kwargs: object = None
    config_kwargs: object = None


def refuse_parts(
    kind: type, unknown: Mapping[str, object], modules: object, backend: object, known: type = SentenceLoadArgs
) -> None:
    """Reject unknown keywords and ways to build a model that a class does not support. known: its keywords."""
    names = inspect.signature(kind).parameters
    check_keywords(unknown, (*known.__annotations__, *names), kind.__name__)
    if modules is not None:
        raise InputError(
            "modules: expected None, because a model is loaded from a folder; save the modules to a folder first"
        )
    if backend != "torch":
        raise InputError(f'backend: expected "torch", which changes nothing here, got {quote(backend)}')


def load_text_model(
    folder: Path,
    settings: TransformerSettings,
    options: StackOptions,
    load: Callable[..., ModelType],
    kind: type[_TextModel],
    **more: Any,
) -> _TextModel:
    """Load the model and the tokenizer of a folder.

    load: the `from_pretrained` of the model; more: more arguments for it. kind: the class that combines the model and
    the tokenizer. Raises ConfigError, ModelFormatError, InputError, DTypeError.
    """
    check_no_adapter(folder)
    if settings.query_expansion and not kind.expands:
        raise ConfigError(
            f"{settings.where}: query_expansion: expected null, got {quote(settings.query_expansion)}; load the folder "
            "with MultiVectorEncoder"
        )
    config = read_settings(folder / "config.json").values
    if options.trust_remote_code and config.get("auto_map"):
        raise ConfigError(
            f"{folder / 'config.json'}: auto_map: code that comes with a model never runs; if "
            "fastattn supports the architecture, use trust_remote_code=False"
        )
    given = read_model_kwargs("model_kwargs", options.model_kwargs, settings.options)
    given = read_processor_kwargs("processor_kwargs", options.processor_kwargs, given)
    overrides = dict(given.tokenizer)
    if settings.max_seq_length is not None:
        overrides.setdefault("model_max_length", settings.max_seq_length)
    if not has_tokenizer(folder):
        raise ConfigError(f"{folder}: expected a tokenizer in the model folder, found none; add its tokenizer.json")
    tokenizer = load_tokenizer(folder, overrides)
    n_special = tokenizer.num_special_tokens_to_add(pair=kind.pairs)
    _check_room(tokenizer, settings, options, folder, n_special)
    if "attention_mask" not in tokenizer.model_input_names:
        _log.warning(
            "%s: model_input_names has no attention_mask: sentence-transformers reads the padding of a batch as text; "
            "here a vector depends only on its own text",
            folder,
        )
    run = options.run.copy()
    if run.get("dtype") is None:
        run["dtype"] = given.dtype
    model = load(folder, **run, **more)
    try:
        found = kind(model, tokenizer, do_lower_case=settings.do_lower_case, truncation=settings.truncation)
        found.max_seq_length = found.max_seq_length  # the context if the tokenizer allows more
    except BaseException:
        model.close()
        raise
    return found


def _check_room(
    tokenizer: Tokenizer, settings: TransformerSettings, options: StackOptions, folder: Path, n_special: int
) -> None:
    """Reject limits that leave no room for the special tokens; the message names the key and file of each limit."""
    cut = settings.truncation
    if not cut.enabled:
        return
    limits = {
        f"{settings.where}: query_length": cut.query_length,
        f"{settings.where}: document_length": cut.document_length,
        f"{settings.where}: processing_kwargs: max_length": cut.max_length,
    }
    error: type[ConfigError] | type[InputError] = ConfigError
    by_caller = read_processor_kwargs("processor_kwargs", options.processor_kwargs, TransformerOptions()).tokenizer
    if "model_max_length" in by_caller:
        where, error = "processor_kwargs: model_max_length", InputError
    elif "model_max_length" in settings.options.tokenizer:
        where = f"{settings.where}: processor_kwargs: model_max_length"
    elif settings.max_seq_length is not None:
        where = f"{settings.where}: max_seq_length"
    else:
        where = f"{folder / 'tokenizer_config.json'}: model_max_length"
    limits[where] = tokenizer.model_max_length
    for where, limit in limits.items():
        if limit is not None and limit < n_special:
            raise error(f"{where}: expected at least {n_special}, the number of special tokens, got {limit}")
