"""Finds a model: a local folder, or a repository of the Hugging Face hub by its id (needs the extra `hub`)."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from fastattn.checkpoint.file_names import (
    ADAPTER_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    GENERATION_NAME,
    INDEX_NAME,
    MODULE_FILES,
    OTHER_FORMATS,
    SENTENCE_FILES,
    SINGLE_NAME,
    TOKENIZER_FILES,
    VOCABULARY_FILES,
)
from fastattn.checks import check_flag, check_path, check_str, quote
from fastattn.errors import ConfigError, DTypeError, HubError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ADAPTER_PATTERNS", "ALLOW_PATTERNS", "IGNORE_PATTERNS", "TOKENIZER_PATTERNS", "HubError", "resolve"]

TOKENIZER_PATTERNS = (CONFIG_NAME, *TOKENIZER_FILES)
ALLOW_PATTERNS = (
    *TOKENIZER_PATTERNS,
    GENERATION_NAME,
    ADAPTER_NAME,
    ADAPTER_WEIGHTS_NAME,
    SINGLE_NAME,
    "model-*-of-*.safetensors",
    INDEX_NAME,
    *SENTENCE_FILES,
    *MODULE_FILES,
    "0_*/*.json",
    "0_*/*.txt",
    "0_*/*.model",
)
ADAPTER_PATTERNS = (ADAPTER_NAME, ADAPTER_WEIGHTS_NAME)
IGNORE_PATTERNS = ("onnx/*", "openvino/*", "coreml/*", "rust_model*", "original/*")

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?:{_PART}/)?{_PART}")
_SHARD = re.compile(r"model-\d+-of-(\d{1,9})\.safetensors")
_OF_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_MAX_ID_CHARS = 96
_MAX_REASON_CHARS = 200
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}|(?i:(?<=bearer )\S+)")
# Libraries whose exceptions mean that the hub request failed: huggingface_hub, and those it sends requests with.
_LIBRARIES = (
    "huggingface_hub",
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "h11",
    "h2",
    "requests",
    "urllib3",
    "hf_xet",
)
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True)
class _Request:
    """A request to the hub."""

    name: str
    revision: str | None
    cache_dir: str | None
    local_only: bool
    token: str | bool | None
    patterns: Sequence[str]


def resolve(
    path_or_id: str | os.PathLike[str],
    *,
    name: str = "path_or_id",
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    patterns: Sequence[str] = ALLOW_PATTERNS,
) -> Path:
    """Return the local folder of a model: `path_or_id` itself if it is a folder, else a snapshot from the hub.

    name: the name of the argument, for messages. patterns: only matching files are downloaded; the default matches all
    files that fastattn reads. If the hub cannot be reached, a snapshot in the cache is used. Raises HubError,
    ConfigError without the extra `hub`, DTypeError or InputError for an argument, or ModelNotFoundError if `path_or_id`
    is neither a folder nor a possible hub id.
    """
    given = os.fspath(path_or_id) if isinstance(path_or_id, str | os.PathLike) else None
    if not isinstance(given, str):
        raise DTypeError(f"{name}: expected a folder or a hub id, got {type(path_or_id).__name__}")
    if token is not None and not isinstance(token, str | bool):  # messages never show the value
        raise DTypeError(f"token: expected str, True, False or None, got {type(token).__name__}")
    request = _Request(
        given,
        None if revision is None else check_str("revision", revision),
        None if cache_dir is None else str(check_path("cache_dir", cache_dir)),
        check_flag("local_files_only", local_files_only),
        token,
        patterns,
    )
    path = Path(os.path.expanduser(given))  # an unknown ~user stays unchanged
    if given and os.path.isdir(path):
        return path
    if given and os.path.exists(path):
        hint = "; load GGUF files with AutoModel" if given.lower().endswith(".gguf") else ""
        raise ModelNotFoundError(f"{quote(str(path), 200)}: expected the folder of a model, got a file{hint}")
    if not isinstance(path_or_id, str) or not _is_hub_id(given):
        raise ModelNotFoundError(f"no folder {quote(given)} here, and it is not a hub id (owner/name)")
    return _fetch(request)


def _is_hub_id(name: str) -> bool:
    if len(name) > _MAX_ID_CHARS or not _HUB_ID.fullmatch(name):
        return False
    return ".." not in name and "--" not in name and not name.endswith(".git")


def _fetch(request: _Request) -> Path:
    """Return a snapshot from the hub, else from the cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            f'no folder {request.name!r} here, and fetching it from the hub needs: pip install "fastattn[hub]"'
        ) from None
    try:
        found = _download(snapshot_download, request)
        if not request.local_only or _is_complete(found, request.patterns):
            return found
        raise HubError("the copy in the local cache lacks files")
    except Exception as error:
        if not _is_of_hub(error):
            raise
        refused, cause = _refusal(error, request), error
    if refused is not None:
        raise refused from None  # not chained: a server's reply may contain the token
    reason = _reason(cause, request.token)
    if request.local_only:
        raise HubError(
            f"no folder {request.name!r} here, no complete copy in the local cache, and local_files_only=True; "
            "pass a local folder"
        ) from None
    cached = _cached(snapshot_download, request)
    if cached is None:
        raise HubError(
            f"no folder {request.name!r} here, no complete copy in the local cache, and fetching it from the hub "
            f"failed ({reason}); try again, or pass a local folder"
        ) from None
    _log.warning("%s: fetching from the hub failed (%s); using the copy in the local cache", request.name, reason)
    return cached


def _download(snapshot_download: Callable[..., str], request: _Request) -> Path:
    return Path(
        snapshot_download(
            request.name,
            revision=request.revision,
            cache_dir=request.cache_dir,
            local_files_only=request.local_only,
            token=request.token,
            allow_patterns=list(request.patterns),
            ignore_patterns=list(IGNORE_PATTERNS),
        )
    )


def _cached(snapshot_download: Callable[..., str], request: _Request) -> Path | None:
    """Return the snapshot in the local cache, or None if there is none or it lacks files."""
    try:
        found = _download(snapshot_download, replace(request, local_only=True))
    except Exception as error:
        if not _is_of_hub(error):
            raise
        return None
    return found if _is_complete(found, request.patterns) else None


def _is_complete(folder: Path, patterns: Sequence[str]) -> bool:
    """Return whether a cached snapshot has a model, if the patterns include one, or else a vocabulary.

    Other programs and interrupted downloads leave snapshots with only some of the files.
    """
    inside = next(
        (name.removesuffix(SINGLE_NAME) for name in patterns if PurePosixPath(name).name == SINGLE_NAME), None
    )
    if inside is not None and f"{inside}{CONFIG_NAME}" in patterns:
        root = folder / inside
        if _has_adapter(root) and not (root / CONFIG_NAME).exists():
            return True
        if (root / "modules.json").exists():  # sentence-transformers: a module may have the weights
            return _has_weights(root) or any(map(_has_weights, root.glob("*/")))
        return (root / CONFIG_NAME).exists() and _has_weights(root)
    if tuple(patterns) == ADAPTER_PATTERNS:
        return _has_adapter(folder)
    names = [name for name in patterns if name.rpartition("/")[2] in VOCABULARY_FILES]
    return not names or any((folder / name).exists() for name in names)


def _has_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_NAME).exists() and (folder / ADAPTER_WEIGHTS_NAME).exists()


def _has_weights(folder: Path) -> bool:
    """Return whether a folder has all its weight files, even in a format that loading refuses with advice."""
    if not folder.is_dir():
        return False
    names = os.listdir(folder)
    shards = [match for match in map(_SHARD.fullmatch, names) if match is not None]
    whole = bool(shards) and len(shards) >= int(shards[0][1])
    return (
        SINGLE_NAME in names or (INDEX_NAME in names and whole) or any(name.endswith(OTHER_FORMATS) for name in names)
    )


def _is_of_hub(error: Exception) -> bool:
    """Return whether the download caused an exception, rather than a signal handler, the memory or the disk.

    This includes the libraries' own exceptions, those of sockets and files, and those that an unexpected reply causes
    inside the libraries.
    """
    if type(error).__module__.partition(".")[0] in _LIBRARIES or type(error) is HubError:
        return True
    if _is_of_signal_handler(error) or (isinstance(error, OSError) and error.errno in _OF_DISK):
        return False
    if type(error) in (KeyError, TypeError, AttributeError, AssertionError, IndexError):
        modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
        return any(module.partition(".")[0] in _LIBRARIES for module in modules)
    return isinstance(error, OSError | ValueError)


def _is_of_signal_handler(error: Exception) -> bool:
    """Return whether a Python signal handler raised it; `signal.alarm` with TimeoutError commonly bounds a call."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _refusal(error: Exception, request: _Request) -> HubError | None:
    """Return the error if the hub refused the request, so the cache must not be used; None for other failures."""
    from huggingface_hub import errors

    name = request.name
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{name}: expected a repository that you may read, got a gated one; request access and pass token="
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(
            f"no folder {name!r} here, and no such public repository on the hub; for a private one pass token="
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(
            f"revision: expected one of {name}, but the hub has no revision {quote(request.revision)}; pass another one"
        )
    return None


def _reason(error: BaseException, token: str | bool | None) -> str:
    """Return the first line of the cause, shortened and without tokens."""
    cause = error.__cause__ or error
    text = str(cause).strip().partition("\n")[0]
    for secret in (token, _stored_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    text = _TOKEN.sub("***", text)[:_MAX_REASON_CHARS]
    shown = "".join(char if char.isprintable() else " " for char in text)
    return f"{type(cause).__name__}: {shown}" if shown else type(cause).__name__


def _stored_token() -> str | None:
    """Return the token from the environment or `hf auth login`, which is sent if none is given."""
    from huggingface_hub import get_token

    return get_token()
