"""A local folder, or a repository of the Hugging Face hub by its id (needs the extra `hub`)."""

from __future__ import annotations

import logging
import os
import re
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastattn.checks import check_flag, check_path, check_str, quote
from fastattn.errors import ConfigError, DTypeError, HubError, InputError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

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
    "bpe.codes",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "source.spm",
    "target.spm",
    "chat_template.jinja",
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
    "[0-9]*_*/config.json",
    "0_*/*.json",
    "0_*/*.txt",
    "0_*/*.model",
    "[0-9]*_*/model.safetensors",
)
IGNORE_PATTERNS = ("onnx/*", "openvino/*", "coreml/*", "rust_model*", "original/*")

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?:{_PART}/)?{_PART}")
_MAX_ID_CHARS = 96
_MAX_REASON_CHARS = 200
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}|(?i:(?<=bearer )\S+)")
# Whose exceptions say that the hub could not be used: huggingface_hub, and what it sends its requests with.
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
    """What is asked of the hub."""

    name: str
    revision: str | None
    cache_dir: str | None
    local_only: bool
    token: str | bool | None
    patterns: Sequence[str]


def resolve(
    path_or_id: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    patterns: Sequence[str] = ALLOW_PATTERNS,
) -> Path:
    """The local folder of a model: `path_or_id` itself where it is one, else a snapshot from the hub.

    Only files that fit one of the patterns are fetched: all that fastattn reads, or TOKENIZER_PATTERNS. A snapshot in
    the cache is used where the hub cannot be reached. Raises HubError, DTypeError or InputError for an argument, or
    ModelNotFoundError for what is neither a folder nor looks like a hub id.
    """
    if not isinstance(path_or_id, str | Path):
        raise InputError(f"path_or_id: expected a folder or a hub id, got {type(path_or_id).__name__}")
    if token is not None and not isinstance(token, str | bool):  # the value is not shown
        raise DTypeError(f"token: expected str, True, False or None, got {type(token).__name__}")
    request = _Request(
        str(path_or_id),
        None if revision is None else check_str("revision", revision),
        None if cache_dir is None else str(check_path("cache_dir", cache_dir)),
        check_flag("local_files_only", local_files_only),
        token,
        patterns,
    )
    name = request.name
    path = Path(os.path.expanduser(path_or_id))  # leaves an unknown ~user as it is
    if name and os.path.isdir(path):
        return path
    if name and os.path.exists(path):
        raise ModelNotFoundError(f"{path}: expected the folder of a model, got a file")
    if isinstance(path_or_id, Path) or not _is_hub_id(name):
        raise ModelNotFoundError(f"no folder {quote(name)} here, and it is no hub id (owner/name) either")
    return _fetch(request)


def _is_hub_id(name: str) -> bool:
    if len(name) > _MAX_ID_CHARS or not _HUB_ID.fullmatch(name):
        return False
    return ".." not in name and "--" not in name and not name.endswith(".git")


def _fetch(request: _Request) -> Path:
    """A snapshot from the hub, else from the cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            f'no folder {request.name!r} here, and fetching it from the hub needs: pip install "fastattn[hub]"'
        ) from None
    try:
        return _download(snapshot_download, request)
    except Exception as error:
        if not _is_of_hub(error):
            raise
        refused, cause = _refusal(error, request), error
    if refused is not None:
        raise refused from None  # not chained: what a server echoes may hold the token
    reason = _reason(cause, request.token)
    if request.local_only:
        raise HubError(
            f"no folder {request.name!r} here, no complete copy in the local cache, and local_files_only=True; "
            "give a local folder"
        ) from None
    cached = _cached(snapshot_download, request)
    if cached is None:
        raise HubError(
            f"no folder {request.name!r} here, no complete copy in the local cache, and fetching it from the hub "
            f"failed ({reason}); try again, or give a local folder"
        ) from None
    _log.warning("%s: fetching from the hub failed (%s); the copy in the local cache is used", request.name, reason)
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
    """The snapshot in the local cache, None where there is none."""
    try:
        return _download(snapshot_download, replace(request, local_only=True))
    except Exception as error:
        if not _is_of_hub(error):
            raise
        return None


def _is_of_hub(error: Exception) -> bool:
    """Whether an exception says that fetching failed, and is not one of a signal handler or of memory.

    Beside the libraries' own exceptions: those of sockets and files, and what broken JSON in an answer, or JSON of
    another form, leads to.
    """
    library = type(error).__module__.partition(".")[0]
    if library in _LIBRARIES:
        return True
    odd_answer = type(error) in (KeyError, TypeError, AttributeError, AssertionError, IndexError)
    return (isinstance(error, OSError | ValueError) or odd_answer) and not _is_of_signal_handler(error)


def _is_of_signal_handler(error: Exception) -> bool:
    """Whether a Python signal handler raised it: `signal.alarm` and TimeoutError are a usual way to bound a call."""
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _refusal(error: Exception, request: _Request) -> HubError | None:
    """The error for what the hub refuses, where the local cache is no answer; None where it could not be asked."""
    from huggingface_hub import errors

    name = request.name
    if isinstance(error, errors.GatedRepoError):
        return HubError(f"{name}: access must be asked for on the hub; then give token=")
    if isinstance(error, errors.RepositoryNotFoundError):
        return HubError(f"no folder {name!r} here, and no such public repository on the hub (private: give token=)")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(f"{name}: the hub has no revision {quote(request.revision)}; give another one, or none")
    return None


def _reason(error: BaseException, token: str | bool | None) -> str:
    """The first line of what went wrong, short and without tokens."""
    cause = error.__cause__ or error
    text = str(cause).strip().partition("\n")[0]
    for secret in (token, _stored_token()):
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    text = _TOKEN.sub("***", text)[:_MAX_REASON_CHARS]
    shown = "".join(char if char.isprintable() else " " for char in text)
    return f"{type(cause).__name__}: {shown}" if shown else type(cause).__name__


def _stored_token() -> str | None:
    """The token of the environment or of `hf auth login`, which is sent where none is given."""
    from huggingface_hub import get_token

    return get_token()
