"""The folder of a sentence-transformers model: modules.json, config_sentence_transformers.json, settings of modules.

https://github.com/huggingface/sentence-transformers (release 6.2) is the reference for the meaning of each file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from fastattn.checkpoint.file_names import ADAPTER_NAME
from fastattn.checks import closest, quote
from fastattn.errors import ConfigError
from fastattn.settings import Settings
from fastattn.tasks.search.similarity import MEASURES
from fastattn.tasks.sentence.files import read_optional_json, read_settings
from fastattn.tasks.sentence.loading import (
    TransformerOptions,
    from_file,
    read_config_kwargs,
    read_model_kwargs,
    read_processing_kwargs,
    read_processor_kwargs,
)
from fastattn.tasks.sentence.text_model import TextTruncation

MODULES_NAME = "modules.json"
SETTINGS_NAME = "config_sentence_transformers.json"
INPUT_MODULES = ("Transformer", "StaticEmbedding")
MODULES = (*INPUT_MODULES, "Pooling", "Dense", "Normalize", "LayerNorm")
SPARSE_MODULES = ("Transformer", "MLMTransformer", "SpladePooling")
MULTI_VECTOR_MODULES = ("Transformer", "Dense", "LayerNorm", "MultiVectorMask", "Normalize")
_HOMES = ("sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules.",
          "sentence_transformers.base.modules.", "sentence_transformers.sparse_encoder.models.",
          "sentence_transformers.sparse_encoder.modules.",
          "sentence_transformers.multi_vector_encoder.modules.")  # fmt: skip
# The settings of the transformer: sentence-transformers reads the first of these that exists and is not empty.
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_MAX_PATH_CHARS = 200
MODEL2VEC = "model2vec"  # the model_type of folders of model2vec
_MODEL_TYPE = "SentenceTransformer"
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True)
class TransformerTask:
    """What the Transformer module computes for texts: its task, the model's output, and the name of the feature."""

    name: str
    output: str
    feature: str


FEATURES = TransformerTask("feature-extraction", "last_hidden_state", "token_embeddings")
FILL_MASK = TransformerTask("fill-mask", "logits", "token_embeddings")
SCORES = TransformerTask("sequence-classification", "logits", "scores")


@dataclass(frozen=True, slots=True)
class ModuleEntry:
    """One entry of modules.json: the kind of module and its folder inside the model's folder."""

    kind: str
    folder: Path


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """config_sentence_transformers.json."""

    prompts: Mapping[str, str | None]
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None
    truncate_dim: int | None = None


@dataclass(frozen=True, slots=True)
class TransformerSettings:
    """The settings of the Transformer module.

    where: the file that they come from, "" for none. max_seq_length: None uses the limit of the tokenizer and
    model. query_expansion: how to lengthen queries, unchecked.
    """

    where: str = ""
    max_seq_length: int | None = None
    do_lower_case: bool = False
    truncation: TextTruncation = field(default_factory=TextTruncation)
    options: TransformerOptions = field(default_factory=TransformerOptions)
    task: TransformerTask = FEATURES
    query_expansion: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model folder. entries: the modules in order; None if the folder is a plain transformer."""

    path: Path
    entries: tuple[ModuleEntry, ...] | None
    settings: ModelSettings


def read_folder(directory: Path) -> ModelFolder:
    """Read the modules and settings of a folder. Raises ConfigError, ModelFormatError."""
    plain = ModelFolder(directory, None, ModelSettings({}))
    value = read_optional_json(directory / MODULES_NAME)
    if value is None:
        warn_of_unread(directory)
        config = read_settings(directory / "config.json").values
        if config.get("model_type") == MODEL2VEC:
            return plain
        pooling = default_pooling(config)
        hint = "; this copy of a hub repository may be incomplete" if is_snapshot(directory) else ""
        _log.warning("%s: there is no %s: %s pooling is used%s", directory, MODULES_NAME, pooling, hint)
        return plain
    settings = read_settings(directory / SETTINGS_NAME)
    kind = settings.text("model_type", _MODEL_TYPE)
    if kind != _MODEL_TYPE:
        # As in sentence-transformers: the modules and prompts of another kind of model do not apply.
        _log.warning(
            "%s: model_type is %s, not %s: its transformer is used with the default pooling",
            settings.where, quote(kind), _MODEL_TYPE,
        )  # fmt: skip
        return plain
    return ModelFolder(directory, read_entries(directory, value), _model_settings(settings))


def warn_of_unread(directory: Path) -> None:
    """Log the settings that are not read, because the folder has no modules.json."""
    ignored = [name for name in (SETTINGS_NAME, *TRANSFORMER_CONFIGS) if (directory / name).is_file()]
    if ignored:
        _log.warning(
            "%s: there is no %s, so %s is not read, as in sentence-transformers",
            directory, MODULES_NAME, ", ".join(ignored),
        )  # fmt: skip


def is_snapshot(folder: Path) -> bool:
    """Return whether a folder is a commit in the hub cache."""
    return folder.parent.name == "snapshots"


def module_paths(directory: Path) -> list[str]:
    """Return the folders that modules.json names inside the model's folder; [] if the file does not exist."""
    value = read_optional_json(directory / MODULES_NAME)
    known = (*MODULES, *SPARSE_MODULES, *MULTI_VECTOR_MODULES)
    entries = () if value is None else read_entries(directory, value, known)
    return sorted({str(entry.folder.relative_to(directory)) for entry in entries if entry.folder != directory})


def default_pooling(config: Mapping[str, Any]) -> str:
    """Return the pooling of a plain transformer: the last token for a causal language model, else the mean."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    causal = isinstance(first, str) and first.endswith("ForCausalLM") and config.get("is_causal", True)
    return "lasttoken" if causal else "mean"


def read_entries(directory: Path, value: object, modules: Collection[str] = MODULES) -> tuple[ModuleEntry, ...]:
    """Return the modules of modules.json, whose kinds must be among `modules`. Raises ConfigError."""
    path = directory / MODULES_NAME
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{path}: expected a list of modules, got {quote(value)}")
    entries, names = [], set()
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise ConfigError(f'{path}: expected objects with "type" and "path", got {quote(item)}')
        entry = Settings(f"{path}: module {i}", item)
        entry.ignore("idx")
        name = entry.text("name", str(i))
        if name in names:  # sentence-transformers would replace the first one
            raise entry.error("name", "a name that no earlier module has")
        names.add(name)
        kind = _kind(entry, modules)
        folder = entry.text("path", None)
        if folder is None or not _is_inside(folder):
            raise entry.error("path", "the name of a folder inside the model folder")
        if "\\" in folder:  # written by a program on Windows: other systems have no such folder
            raise entry.error("path", 'a path with "/" and without a backslash')
        if entry.texts("kwargs"):
            raise entry.error("kwargs", "no keywords, because no supported module takes any")
        entry.finish()
        entries.append(ModuleEntry(kind, directory / folder))
    return tuple(entries)


def _kind(entry: Settings, modules: Collection[str]) -> str:
    """Return the class of a module: the last part of its type."""
    kind = entry.text("type", None)
    if kind is None:
        raise entry.error("type", "the class of a module")
    name = kind.rpartition(".")[2]
    if not kind.startswith("sentence_transformers."):
        raise ConfigError(
            f"{entry.where}: type {quote(kind)}: the module is code that comes with the model, and such code never runs"
        )
    if not kind.startswith(_HOMES) or name not in modules:
        raise ConfigError(
            f"{entry.where}: type {quote(kind)}: module {quote(name)} is not supported; supported: "
            f"{', '.join(modules)}{closest(name, modules)}"
        )
    return name


def _is_inside(folder: str) -> bool:
    """Return whether a path is relative and stays inside the folder, both as a POSIX path and as a Windows path."""
    path = PureWindowsPath(folder)
    return len(folder) <= _MAX_PATH_CHARS and not path.anchor and ".." not in path.parts and "\0" not in folder


def _model_settings(settings: Settings) -> ModelSettings:
    prompts = read_prompts(settings)
    similarity = settings.text("similarity_fn_name", None)
    if similarity is not None and similarity not in MEASURES:
        _log.warning("%s: similarity_fn_name %s is not supported: cosine is used", settings.where, quote(similarity))
        similarity = None
    settings.ignore("__version__")
    found = ModelSettings(
        prompts=prompts,
        default_prompt_name=settings.text("default_prompt_name", None),
        similarity_fn_name=similarity,
        truncate_dim=settings.count("truncate_dim", None, low=1),
    )
    settings.finish()
    return found


def read_prompts(settings: Settings) -> Mapping[str, str | None]:
    """Return the prompts by name; null is no text."""
    prompts = settings.table("prompts")
    if not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise settings.error("prompts", "an object of strings")
    return prompts


def read_transformer_settings(folder: Path, tasks: tuple[TransformerTask, ...] = (FEATURES,)) -> TransformerSettings:
    """Read sentence_bert_config.json, or the first of its other names that is not empty.

    tasks: those that are supported; the first one is the default. Raises ConfigError.
    """
    for name in TRANSFORMER_CONFIGS:
        settings = read_settings(folder / name)
        if settings.values:
            return _transformer_settings(settings, tasks)
    return TransformerSettings(task=tasks[0])


def _transformer_settings(settings: Settings, tasks: tuple[TransformerTask, ...]) -> TransformerSettings:
    where, options = settings.where, TransformerOptions()
    key = _given_key(settings, "model_args", "model_kwargs")
    options = from_file(f"{where}: {key}", read_model_kwargs, _without_trust(settings.table(key)), options)
    key = _given_key(settings, "tokenizer_args", "processor_kwargs")
    options = from_file(f"{where}: {key}", read_processor_kwargs, _without_trust(settings.table(key)), options)
    key = _given_key(settings, "config_args", "config_kwargs")
    from_file(f"{where}: {key}", read_config_kwargs, _without_trust(settings.table(key)))
    truncation = TextTruncation(
        query_length=settings.count("query_length", None, low=1),
        document_length=settings.count("document_length", None, low=1),
    )
    key = "processing_kwargs"
    truncation = from_file(f"{where}: {key}", read_processing_kwargs, settings.table(key), truncation)
    named = settings.choice("transformer_task", [task.name for task in tasks], tasks[0].name)
    task = next(task for task in tasks if task.name == named)
    _check_modalities(settings, task)
    if settings.raw("tokenizer_name_or_path") is not None:
        raise settings.error("tokenizer_name_or_path", "null, the only value that is supported")
    settings.flag("unpad_inputs", None)
    settings.ignore("unpad_inputs", "cache_dir")
    found = TransformerSettings(
        where=where,
        max_seq_length=settings.count("max_seq_length", None, low=1),
        do_lower_case=settings.flag("do_lower_case", False),
        truncation=truncation,
        options=options,
        task=task,
        query_expansion=settings.table("query_expansion") or None,
    )
    settings.finish()
    return found


def _given_key(settings: Settings, old: str, new: str) -> str:
    """Return the older name of a setting if the file has it: as in sentence-transformers, it replaces the new one."""
    if old not in settings.values:
        return new
    if settings.raw(new):
        _log.warning("%s: %s is not read, because %s is set, as in sentence-transformers", settings.where, new, old)
    return old


def _without_trust(values: Mapping[str, Any]) -> dict[str, Any]:
    """Remove trust_remote_code: files cannot set it."""
    return {key: value for key, value in values.items() if key != "trust_remote_code"}


def _check_modalities(settings: Settings, task: TransformerTask) -> None:
    """Check modality_config and module_output_name: for texts, they must name the output of the task."""
    config = settings.table("modality_config")
    if not config:
        return
    if "message" in config:
        raise settings.error("modality_config", "no messages, because chat templates are not supported")
    method = {"method": "forward", "method_output_name": task.output}
    if config.get("text") != method:
        raise settings.error("modality_config", f'"text": {quote(method, 200)}')
    output = settings.text("module_output_name", None)
    if output != task.feature:
        raise settings.error("module_output_name", task.feature)


def check_no_adapter(folder: Path) -> None:
    """Reject a folder with an adapter, which sentence-transformers adds to the weights. Raises ConfigError."""
    path = folder / ADAPTER_NAME
    if os.path.lexists(path):
        raise ConfigError(
            f"{path}: adapters are not supported; merge this one into the weights with peft: model.merge_and_unload()"
        )


def check_no_chat_template(folder: Path) -> None:
    """Reject a plain folder with a chat template, which sentence-transformers applies to each text."""
    config = read_settings(folder / "tokenizer_config.json")
    if "chat_template" in config or any(
        (folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")
    ):
        raise ConfigError(
            f"{folder}: chat templates are not supported, and sentence-transformers applies the one of this tokenizer; "
            f"add a {MODULES_NAME}, or remove the template"
        )
