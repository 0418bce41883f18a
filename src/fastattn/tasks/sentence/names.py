"""The short names of sentence-transformers: "all-MiniLM-L6-v2" means "sentence-transformers/all-MiniLM-L6-v2"."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from fastattn.checkpoint.hub import ALLOW_PATTERNS, resolve
from fastattn.checks import check_path, one_of
from fastattn.tasks.sentence.folder import is_snapshot, module_paths

ORGANIZATION = "sentence-transformers"
# Hub models without an owner in their name.
_WORDS = """
    albert-base-v1 albert-base-v2 albert-large-v1 albert-large-v2 albert-xlarge-v1 albert-xlarge-v2 albert-xxlarge-v1
    albert-xxlarge-v2 bert-base-cased-finetuned-mrpc bert-base-cased bert-base-chinese bert-base-german-cased
    bert-base-german-dbmdz-cased bert-base-german-dbmdz-uncased bert-base-multilingual-cased
    bert-base-multilingual-uncased bert-base-uncased bert-large-cased-whole-word-masking-finetuned-squad
    bert-large-cased-whole-word-masking bert-large-cased bert-large-uncased-whole-word-masking-finetuned-squad
    bert-large-uncased-whole-word-masking bert-large-uncased camembert-base ctrl distilbert-base-cased-distilled-squad
    distilbert-base-cased distilbert-base-german-cased distilbert-base-multilingual-cased
    distilbert-base-uncased-distilled-squad distilbert-base-uncased-finetuned-sst-2-english distilbert-base-uncased
    distilgpt2 distilroberta-base gpt2-large gpt2-medium gpt2-xl gpt2 openai-gpt roberta-base-openai-detector
    roberta-base roberta-large-mnli roberta-large-openai-detector roberta-large t5-11b t5-3b t5-base t5-large t5-small
    transfo-xl-wt103 xlm-clm-ende-1024 xlm-clm-enfr-1024 xlm-mlm-100-1280 xlm-mlm-17-1280 xlm-mlm-en-2048
    xlm-mlm-ende-1024 xlm-mlm-enfr-1024 xlm-mlm-enro-1024 xlm-mlm-tlm-xnli15-1024 xlm-mlm-xnli15-1024 xlm-roberta-base
    xlm-roberta-large-finetuned-conll02-dutch xlm-roberta-large-finetuned-conll02-spanish
    xlm-roberta-large-finetuned-conll03-english xlm-roberta-large-finetuned-conll03-german xlm-roberta-large
    xlnet-base-cased xlnet-large-cased
"""
_WITHOUT_OWNER = frozenset(_WORDS.split())
_SHORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_MODULE_FILES = ("*.json", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors")


def full_name(name: str | Path, organization: str = ORGANIZATION) -> str | Path:
    """Return the hub id for a short name; an existing path is unchanged."""
    if not isinstance(name, str) or not _SHORT_NAME.fullmatch(name) or os.path.exists(name):
        return name
    return name if name.lower() in _WITHOUT_OWNER else f"{organization}/{name}"


def find_folder(
    name: str | Path,
    *,
    revision: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    token: str | bool | None,
    organization: str = ORGANIZATION,
) -> Path:
    """Return the local folder of a model, including the folders of all its modules.

    organization: the owner of short names. Raises HubError, ModelNotFoundError.
    """
    name = full_name(name, organization)

    def found(revision: str | None, patterns: tuple[str, ...] = ALLOW_PATTERNS) -> Path:
        return resolve(
            name,
            name="model_name_or_path",
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            patterns=patterns,
        )

    folder = found(revision)
    modules = module_paths(folder) if not Path(name).expanduser().is_dir() else []
    if not modules:
        return folder
    # Only modules.json knows the names of the module folders. Their files must come from the same commit, even if the
    # branch moves between the two requests.
    commit = folder.name if is_snapshot(folder) else revision
    return found(
        commit, patterns=tuple(f"{glob.escape(module)}/{file}" for module in modules for file in _MODULE_FILES)
    )


def cache_of(cache_folder: str | Path | None, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder for downloaded models. An environment variable can set it, as in sentence-transformers."""
    found = one_of("cache_dir", cache_dir, "cache_folder", cache_folder) or os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    return check_path("cache_dir", found) if found else None
