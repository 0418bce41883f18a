"""Opens a checkpoint together with the LoRA adapter to add to its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fastattn.checkpoint import Checkpoint, WeightSource, open_checkpoint
from fastattn.checkpoint.checkpoint import refuse_nonfinite
from fastattn.checkpoint.digests import check_verify, verify_files
from fastattn.checkpoint.file_names import ADAPTER_NAME, ADAPTER_WEIGHTS_NAME
from fastattn.checkpoint.lora import add_adapter, read_adapter
from fastattn.errors import ConfigError
from fastattn.models.names import resolve_names
from fastattn.models.registry import find_family


def open_with_adapter(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    verify: Literal["sha256"] | Mapping[str, str] | None = None,
    check_finite: bool = False,
) -> Checkpoint:
    """Open the checkpoint of a known family, with a LoRA adapter added to its weights.

    adapter: the folder of the adapter; None: the adapter in the model's own folder, if it has one, as in transformers.
    verify, check_finite: as in `open_checkpoint`, for both. Raises what `open_checkpoint` raises, and ConfigError for
    an adapter that does not fit the model.
    """
    folder = adapter_of(Path(path)) if adapter is None else Path(adapter)
    if folder is None:
        return open_checkpoint(path, verify=verify, check_finite=check_finite, check_config=find_family)
    checkpoint = open_checkpoint(path, verify=verify, check_config=find_family)
    try:
        merged = _with_adapter(checkpoint, folder)
        if verify is not None:
            weights = checkpoint.files.open(folder / ADAPTER_WEIGHTS_NAME)
            verify_files(folder, [weights], check_verify(verify), checkpoint.files)
        if check_finite:
            refuse_nonfinite(merged)
    except BaseException:
        checkpoint.close()
        raise
    return merged


def adapter_of(folder: Path) -> Path | None:
    """Return the folder if it has an adapter_config.json."""
    return folder if os.path.lexists(folder / ADAPTER_NAME) else None


def _with_adapter(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    if checkpoint.quantized is not None:
        raise ConfigError(
            f"{folder}: expected a float checkpoint to add the adapter to, got one quantized to "
            f"{checkpoint.quantized.dtype}; load the float checkpoint with dtype={checkpoint.quantized.dtype!r}"
        )
    layout = find_family(checkpoint.config).layout
    tied = checkpoint.config.get("tie_word_embeddings") is not False
    names = resolve_names(checkpoint.tensors, layout, tied=tied)

    def plain(name: str) -> str:
        inner = name.removeprefix(names.outer)
        return next((inner.removeprefix(p) for p in layout.prefixes if inner.startswith(p)), inner)

    def find(name: str) -> WeightSource | None:
        return names.get(plain(name)) if names.has(plain(name)) else None

    tensors = add_adapter(
        read_adapter(folder, checkpoint.files),
        checkpoint.tensors,
        find,
        transposed=lambda name: names.transposed(plain(name)),
    )
    return replace(checkpoint, tensors=tensors)
