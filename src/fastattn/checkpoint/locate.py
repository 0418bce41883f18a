"""Finds a model: a folder, a GGUF file, or a repository of the hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from fastattn.checkpoint.file_names import INDEX_NAME, SINGLE_NAME
from fastattn.checkpoint.gguf.checkpoint import SUFFIX, is_gguf
from fastattn.checkpoint.hub import ALLOW_PATTERNS, resolve
from fastattn.checks import quote
from fastattn.errors import InputError, ModelNotFoundError

_MAX_SHOWN = 5


def find_model(
    path_or_id: str | os.PathLike[str],
    *,
    name: str = "path_or_id",
    subfolder: str = "",
    gguf_file: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    patterns: Sequence[str] = ALLOW_PATTERNS,
) -> Path:
    """Return the local folder of a model, including its subfolder, or its GGUF file.

    A folder without safetensors and with one GGUF file stands for that file. gguf_file: the GGUF file in the folder or
    hub repository; of a repository, only this file is downloaded. The other arguments are those of `resolve`. Raises
    InputError for several GGUF files, and what `resolve` raises.
    """
    if isinstance(path_or_id, str | os.PathLike) and isinstance(given := os.fspath(path_or_id), str):
        path = Path(os.path.expanduser(given))
        if is_gguf(path):
            if gguf_file or subfolder:
                option = "gguf_file" if gguf_file else "subfolder"
                raise InputError(
                    f"{option}: expected None with the path of a GGUF file, got {quote(gguf_file or subfolder)}"
                )
            return path
    inside = f"{subfolder}/" if subfolder else ""
    folder = resolve(
        path_or_id,
        name=name,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        patterns=[inside + pattern for pattern in ([glob.escape(gguf_file)] if gguf_file else patterns)],
    )
    if subfolder and not (folder / subfolder).is_dir():
        raise ModelNotFoundError(f"{folder / subfolder}: expected the subfolder of a model, found none")
    folder = folder / subfolder if subfolder else folder
    if gguf_file is None:
        return _only_gguf(folder) or folder
    if not is_gguf(folder / gguf_file):
        raise ModelNotFoundError(f"{folder / gguf_file}: expected a GGUF file, found none")
    return folder / gguf_file


def _only_gguf(folder: Path) -> Path | None:
    """Return the GGUF file of a folder without safetensors; None if there is none. Raises InputError for several."""
    if (folder / SINGLE_NAME).exists() or (folder / INDEX_NAME).exists():
        return None
    found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(SUFFIX) and is_gguf(path))
    if len(found) > 1:
        names = ", ".join(quote(path.name, 60) for path in found[:_MAX_SHOWN])
        more = f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else ""
        raise InputError(f"{folder}: gguf_file: expected one of {names}{more}, got None")
    return found[0] if found else None
