"""A local folder, or a repository of the Hugging Face hub by its id (needs the extra `hub`)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fastattn.errors import ConfigError, HubError, InputError, ModelNotFoundError

__all__ = ["ALLOW_PATTERNS", "IGNORE_PATTERNS", "TOKENIZER_PATTERNS", "HubError", "resolve"]

TOKENIZER_PATTERNS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
ALLOW_PATTERNS = (
    *TOKENIZER_PATTERNS,
    "generation_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "0_Transformer/*.json",
    "0_Transformer/*.txt",
    "0_Transformer/model.safetensors",
)
IGNORE_PATTERNS = ("onnx/*", "openvino/*", "coreml/*", "rust_model*", "original/*")

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.\-]*[A-Za-z0-9])?"
_HUB_ID = re.compile(rf"(?:{_PART}/)?{_PART}")


def resolve(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
    patterns: Sequence[str] = ALLOW_PATTERNS,
) -> Path:
    """The local folder of a model: `path_or_id` itself where it is one, else a snapshot from the hub.

    Only files that fit one of the patterns are fetched: all that fastattn reads, or TOKENIZER_PATTERNS. Raises
    HubError, or ModelNotFoundError for what is neither a folder nor looks like a hub id.
    """
    if not isinstance(path_or_id, str | Path):
        raise InputError(f"path_or_id: expected a folder or a hub id, got {type(path_or_id).__name__}")
    name = str(path_or_id)
    path = Path(os.path.expanduser(path_or_id))  # leaves an unknown ~user as it is
    if name and path.is_dir():
        return path
    if name and path.exists():
        raise ModelNotFoundError(f"{path}: expected the folder of a model, got a file")
    if isinstance(path_or_id, Path) or not _HUB_ID.fullmatch(name) or ".." in name or "--" in name or len(name) > 96:
        raise ModelNotFoundError(f"no folder {name!r} here, and it is no hub id (owner/name) either")
    return _download(name, revision, None if cache_dir is None else str(cache_dir), local_files_only, token, patterns)


def _download(
    name: str,
    revision: str | None,
    cache_dir: str | None,
    local_only: bool,
    token: str | None,
    patterns: Sequence[str],
) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise ConfigError(
            f'no folder {name!r} here, and fetching it from the hub needs: pip install "fastattn[hub]"'
        ) from None
    try:
        found = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_only,
            token=token,
            allow_patterns=list(patterns),
            ignore_patterns=list(IGNORE_PATTERNS),
        )
    except GatedRepoError:
        raise HubError(f"{name}: access must be asked for on the hub; then give token=") from None
    except RepositoryNotFoundError:
        raise HubError(
            f"no folder {name!r} here, and no such public repository on the hub (private: give token=)"
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{name}: the hub has no revision {revision!r}") from None
    except LocalEntryNotFoundError as error:
        why = "local_files_only=True" if local_only else f"the hub cannot be reached ({_first_line(error)})"
        raise HubError(f"no folder {name!r} here, nothing in the local cache, and {why}; give a local folder") from None
    except OSError as error:
        raise HubError(
            f"no folder {name!r} here, and fetching it from the hub failed ({_first_line(error)}); give a local folder"
        ) from error
    return Path(found)


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause) or type(cause).__name__).splitlines()[0][:200]
