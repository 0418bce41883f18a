"""The folder of a cross-encoder: a classifier of transformers, or modules of sentence-transformers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastattn.checks import quote
from fastattn.errors import ConfigError
from fastattn.settings import Settings
from fastattn.tasks.rerank.activations import NAMES, Activation
from fastattn.tasks.sentence.files import read_optional_json, read_settings
from fastattn.tasks.sentence.folder import (
    MODULES_NAME,
    SETTINGS_NAME,
    ModuleEntry,
    check_no_chat_template,
    read_entries,
    read_prompts,
    warn_of_unread,
)

MODEL_TYPE = "CrossEncoder"
_OLD_ACTIVATION = "sbert_ce_default_activation_function"
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True)
class RerankFolder:
    """The folder of a cross-encoder.

    entries: the modules in order; None if the folder is a plain classifier. activation: None for the default.
    fp32_modules: modules that sentence-transformers computes in float32.
    """

    path: Path
    entries: tuple[ModuleEntry, ...] | None
    prompts: Mapping[str, str | None]
    default_prompt_name: str | None
    activation: Activation | None
    fp32_modules: tuple[str, ...]
    is_classifier: bool


def is_cross_encoder(directory: Path) -> bool:
    """Return whether the folder was saved by the CrossEncoder of sentence-transformers."""
    kind = read_settings(directory / SETTINGS_NAME).values.get("model_type")
    return kind == MODEL_TYPE and read_optional_json(directory / MODULES_NAME) is not None


def read_rerank_folder(directory: Path, *, trust_remote_code: bool) -> RerankFolder:
    """Read the modules and settings of a folder. Raises ConfigError, ModelFormatError."""
    modules = read_optional_json(directory / MODULES_NAME)
    settings = read_settings(directory / SETTINGS_NAME)
    config = read_settings(directory / "config.json")
    names = config.texts("architectures")
    is_classifier = any(name.endswith("ForSequenceClassification") for name in names)
    if modules is None or settings.text("model_type", "SentenceTransformer") != MODEL_TYPE:
        if modules is None:
            warn_of_unread(directory)
        else:  # as in sentence-transformers: the modules and prompts of another kind of model do not apply
            kind = quote(settings.values.get("model_type", "SentenceTransformer"))
            _log.warning("%s: model_type is %s, not %s: only its classifier is used", directory, kind, MODEL_TYPE)
        check_no_chat_template(directory)
        if names and names[0].endswith("ForCausalLM"):
            raise ConfigError(
                f"{directory}: {quote(names[0])}: rerankers that are language models (module LogitScore) are not "
                "supported; use one with a classification head"
            )
        activation = _of_config(config, trust_remote_code=trust_remote_code)
        return RerankFolder(directory, None, {}, None, activation, (), is_classifier)
    activation = _activation(settings, settings.text("activation_fn", None), trust_remote_code=trust_remote_code)
    settings.ignore("__version__")
    found = RerankFolder(
        path=directory,
        entries=read_entries(directory, modules),
        prompts=read_prompts(settings),
        default_prompt_name=settings.text("default_prompt_name", None),
        activation=activation or _of_config(config, trust_remote_code=trust_remote_code),
        fp32_modules=settings.texts("keep_in_fp32_modules"),
        is_classifier=is_classifier,
    )
    settings.finish()
    return found


def _of_config(config: Settings, *, trust_remote_code: bool) -> Activation | None:
    """Return the activation function of config.json: the current key, or the one of older releases."""
    table = config.table("sentence_transformers")
    own = Settings(f"{config.where}: sentence_transformers", table)
    if "activation_fn" in table:
        return _activation(own, own.text("activation_fn", None), trust_remote_code=trust_remote_code)
    return _activation(config, config.text(_OLD_ACTIVATION, None), trust_remote_code=trust_remote_code)


def _activation(settings: Settings, path: str | None, *, trust_remote_code: bool) -> Activation | None:
    """Return the function for the path of a class; None for the default, also for a class that is not part of torch."""
    if path is None:
        return None
    name = path.rpartition(".")[2]
    if path.startswith("torch.nn.") and name in NAMES:
        return Activation(name)
    if path.startswith("torch.") or trust_remote_code:
        raise ConfigError(
            f"{settings.where}: expected the activation function to be a class of torch.nn among {', '.join(NAMES)}, "
            f"got {quote(path)}"
        )
    # As in sentence-transformers without trust_remote_code.
    _log.warning("%s: activation function %s is not part of torch; the default is used", settings.where, quote(path))
    return None
