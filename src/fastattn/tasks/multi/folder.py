"""The folder of a multi-vector model: modules of sentence-transformers, or a folder of PyLate.

https://github.com/huggingface/sentence-transformers (release 6.2, MultiVectorEncoder) is the reference for both.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastattn.checks import quote
from fastattn.errors import ConfigError
from fastattn.settings import Settings
from fastattn.tasks.multi.expansion import QueryExpansion, read_expansion
from fastattn.tasks.multi.mask import MultiVectorMask, read_mask
from fastattn.tasks.sentence.features import TOKENS, Module
from fastattn.tasks.sentence.files import read_optional_json, read_settings
from fastattn.tasks.sentence.folder import (
    MODULES_NAME,
    MULTI_VECTOR_MODULES,
    SETTINGS_NAME,
    ModuleEntry,
    TransformerSettings,
    read_entries,
    read_prompts,
    read_transformer_settings,
)
from fastattn.tasks.sentence.load_text import StackOptions
from fastattn.tasks.sentence.modules import Dense, Normalize, read_dense
from fastattn.tasks.sentence.stack import read_module

MODEL_TYPE, PYLATE_TYPE = "MultiVectorEncoder", "ColBERT"
SIMILARITIES = ("maxsim", "meanmaxsim")
_PYLATE_CLASSES = {"pylate.models.Dense.Dense": "sentence_transformers.base.modules.dense.Dense"}
_DEFAULT_LENGTH = 32


@dataclass(frozen=True, slots=True)
class MultiVectorFolder:
    """The folder of a multi-vector model. path: the folder of the transformer.

    prefixes: the markers of queries and documents in PyLate folders; each is one token.
    """

    path: Path
    settings: TransformerSettings
    modules: tuple[Module, ...]
    mask: MultiVectorMask | None
    expansion: QueryExpansion | None
    prompts: Mapping[str, str | None]
    prefixes: tuple[str, ...] = ()
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = None


def read_multi_vector_folder(directory: Path, options: StackOptions) -> MultiVectorFolder:
    """Read the modules and settings of a folder. Raises ConfigError, ModelFormatError."""
    value = read_optional_json(directory / MODULES_NAME)
    if value is None:
        raise ConfigError(
            f"{directory / MODULES_NAME}: expected the modules of a multi-vector model, found no such file; folders "
            "of the original ColBERT code are not supported: load and save them with sentence-transformers"
        )
    settings = read_settings(directory / SETTINGS_NAME)
    kind = settings.text("model_type", "SentenceTransformer")
    if kind not in (MODEL_TYPE, PYLATE_TYPE):
        raise ConfigError(
            f"{settings.where}: model_type: expected {MODEL_TYPE} or {PYLATE_TYPE}, got {quote(kind)}; "
            "sentence-transformers would add a new, untrained module"
        )
    entries = read_entries(directory, _without_pylate(value), MULTI_VECTOR_MODULES)
    if entries[0].kind != "Transformer" or any(entry.kind == "Transformer" for entry in entries[1:]):
        raise ConfigError(f"{directory / MODULES_NAME}: expected one Transformer as the first module")
    settings.ignore("__version__")
    similarity = settings.text("similarity_fn_name", None)
    found = MultiVectorFolder(
        path=entries[0].folder,
        settings=read_transformer_settings(entries[0].folder),
        modules=tuple(_module(entry, options) for entry in entries[1:] if entry.kind != "MultiVectorMask"),
        mask=_mask(entries),
        expansion=None,
        prompts=read_prompts(settings),
        default_prompt_name=settings.text("default_prompt_name", None),
        similarity_fn_name=similarity if similarity in SIMILARITIES else None,
    )
    found = replace(found, expansion=read_expansion(found.settings.where, found.settings.query_expansion))
    if kind == PYLATE_TYPE:
        found = _of_pylate(found, settings)
    settings.finish()
    return found


def _without_pylate(value: Any) -> Any:
    """Replace PyLate's classes with those of sentence-transformers that do the same."""
    if not isinstance(value, list):
        return value
    classes: Mapping[Any, str] = _PYLATE_CLASSES
    named = [item for item in value if isinstance(item, dict) and item.get("type") in classes]
    return [{**item, "type": classes[item["type"]]} if item in named else item for item in value]


def _module(entry: ModuleEntry, options: StackOptions) -> Module:
    if entry.kind != "Dense":
        return read_module(entry, options)
    found: Dense = read_dense(entry.folder, trust_remote_code=options.trust_remote_code)
    given = read_settings(entry.folder / "config.json").values
    if "module_input_name" in given:
        return found
    target = found.module_output_name if "module_output_name" in given else TOKENS
    return replace(found, module_input_name=TOKENS, module_output_name=target)


def _mask(entries: tuple[ModuleEntry, ...]) -> MultiVectorMask | None:
    masks = [entry for entry in entries if entry.kind == "MultiVectorMask"]
    if len(masks) > 1:
        raise ConfigError(f"{masks[1].folder}: expected at most one MultiVectorMask, got {len(masks)}")
    return read_mask(read_settings(masks[0].folder / "config.json")) if masks else None


def _of_pylate(folder: MultiVectorFolder, settings: Settings) -> MultiVectorFolder:
    """Add what PyLate stores in the settings of the model: markers, lengths, query expansion and the skip list."""
    prompts = dict(folder.prompts)
    prefixes = []
    for key, name in (("query_prefix", "query"), ("document_prefix", "document")):
        if key in settings.values:
            prefix = settings.text(key, "")
            prefixes.append(prefix)
            prompts[name] = prefix + (prompts.get(name) or "").removeprefix(prefix)
    length = settings.count("query_length", None, low=1)
    attend = settings.flag("attend_to_mask_tokens", False)  # of older versions
    attend = settings.flag("attend_to_expansion_tokens", attend)
    expansion = None
    if settings.flag("do_query_expansion", True):
        expansion, length = QueryExpansion("fixed", attend, None, length or _DEFAULT_LENGTH), None
    document_length = settings.count("document_length", None, low=1)
    cut = replace(folder.settings.truncation, document_length=document_length, query_length=length)
    words = settings.texts("skiplist_words") if "skiplist_words" in settings.values else tuple(string.punctuation)
    return replace(
        folder,
        settings=replace(folder.settings, truncation=cut),
        modules=(*folder.modules, Normalize(TOKENS, TOKENS)),
        mask=MultiVectorMask(words),
        expansion=folder.expansion or expansion,
        prompts=prompts,
        prefixes=tuple(prefixes),
    )
