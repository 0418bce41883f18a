"""Loads a folder or hub id as a traced model and its executor."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from fastattn.api.load_options import HubOptions, LoadOptions
from fastattn.api.reload import Origin, stamp_files
from fastattn.checkpoint import Checkpoint, WeightSource
from fastattn.checkpoint.file_names import ADAPTER_NAME, ADAPTER_WEIGHTS_NAME, CONFIG_NAME, SINGLE_NAME
from fastattn.checkpoint.hub import ADAPTER_PATTERNS, ALLOW_PATTERNS
from fastattn.checkpoint.locate import find_model
from fastattn.checkpoint.lora import read_settings
from fastattn.checkpoint.quantized import PackedWeight, QuantizedCheckpoint
from fastattn.checkpoint.safetensors import WEIGHT_DTYPES
from fastattn.checks import quote
from fastattn.errors import ConfigError
from fastattn.files import identity_of
from fastattn.generation.generation_config import read_defaults
from fastattn.generation.page_plan import check_limit
from fastattn.graph.executor import Executor
from fastattn.graph.ir import Program
from fastattn.jsonfile import JsonValue
from fastattn.models.adapters import adapter_of, open_with_adapter
from fastattn.models.registry import BuiltModel, build, warn_of_unused
from fastattn.models.tasks import GENERATING, Task

if TYPE_CHECKING:
    from fastattn.executors.cpu import Sharing

_log = logging.getLogger("fastattn")


def load_executor(
    program: Program,
    sources: Mapping[str, WeightSource],
    *,
    dtype: str,
    device: str,
    threads: int | None,
    kv_dtype: str | None = None,
    head_dtype: str | None = None,
    packed: Mapping[str, PackedWeight] | None = None,
    sharing: Sharing | None = None,
) -> Executor:
    """Return the device's executor with its weights loaded.

    sources: the source of every part of the Program's weights. packed: the weights of a quantized directory, used
    instead of `sources`. sharing: which weights processes share; only for the CPU.
    """
    if device == "numpy":
        from fastattn.executors.numpy_executor import NumpyExecutor

        return NumpyExecutor(program, sources, dtype=dtype, head_dtype=head_dtype)
    if device == "cuda":
        from fastattn.executors.cuda import CudaExecutor

        return CudaExecutor(program, sources, dtype=dtype, kv_dtype=kv_dtype, head_dtype=head_dtype)
    from fastattn.executors.cpu import CpuExecutor

    return CpuExecutor(
        program,
        sources,
        dtype=dtype,
        kv_dtype=kv_dtype,
        head_dtype=head_dtype,
        packed=packed,
        threads=threads,
        sharing=sharing,
    )


def find_folder(
    path_or_id: Any, hub: HubOptions, patterns: Sequence[str] = ALLOW_PATTERNS, *, name: str = "path_or_id"
) -> Path:
    """Return the local folder of a model, including its subfolder, or its GGUF file.

    patterns: the files to download from the hub; name: the caller's name for path_or_id. Raises ModelNotFoundError,
    HubError, InputError, DTypeError.
    """
    return find_model(
        path_or_id,
        name=name,
        subfolder=hub.subfolder,
        gguf_file=hub.gguf_file,
        revision=hub.revision,
        cache_dir=hub.cache_dir,
        local_files_only=hub.local_files_only,
        token=hub.token,
        patterns=patterns,
    )


def find_adapter(folder: Path, options: LoadOptions, hub: HubOptions) -> tuple[Path, LoadOptions]:
    """Locate the adapter that the options name, and the base model of a folder that has only an adapter.

    Returns the folder of the model, and the options with the folder of the adapter. Raises what `find_folder` raises,
    ConfigError, InputError.
    """
    base_hub = replace(hub, revision=None, subfolder="", gguf_file=None)
    if options.adapter is not None:
        found = find_folder(options.adapter, base_hub, ADAPTER_PATTERNS, name="adapter")
        return folder, replace(options, adapter=os.path.abspath(found))
    if adapter_of(folder) is None or (folder / CONFIG_NAME).exists():
        return folder, options
    base = read_settings(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ConfigError(
            f"{folder / ADAPTER_NAME}: base_model_name_or_path: expected the model that the adapter was trained for, "
            f"got {quote(base)}; load that model with adapter={str(folder)!r}"
        )
    model = find_folder(base, base_hub, name="base_model_name_or_path")
    return model, replace(options, adapter=os.path.abspath(folder))


def check_device(options: LoadOptions) -> None:
    """Raise ConfigError if the options name a GPU that cannot be used."""
    if options.device == "cuda":
        from fastattn.executors.cuda import require_device

        require_device()


def load_model(directory: Path, task: Task, options: LoadOptions, name: str) -> tuple[BuiltModel, Executor, Origin]:
    """Check and load a checkpoint. All checks that do not need the weights run before the weights are read.

    name: the folder or hub id, as the caller gave it.
    """
    check_device(options)
    opened = open_with_adapter(
        directory,
        adapter=options.adapter,
        verify=cast("Literal['sha256'] | Mapping[str, str] | None", options.verify),
        check_finite=options.check_finite,
    )
    with opened as checkpoint:
        return _load_opened(checkpoint, directory, task, options, name)


def _load_opened(
    checkpoint: Checkpoint, directory: Path, task: Task, options: LoadOptions, name: str
) -> tuple[BuiltModel, Executor, Origin]:
    quantized = checkpoint.quantized
    if quantized is not None:
        _check_quantized(directory, quantized, options)
    weights = checkpoint.weight_files or [directory / SINGLE_NAME]
    directory = Path(os.path.abspath(directory))
    stamps = stamp_files(directory, weights)
    if adapter := options.adapter or adapter_of(directory):
        paths = [Path(os.path.abspath(adapter)) / file for file in (ADAPTER_NAME, ADAPTER_WEIGHTS_NAME)]
        stamps |= {str(path): identity_of(path) for path in paths}
    origin = Origin(directory, name, replace(options, verify=None), stamps)
    config = override(checkpoint.config, options.overrides)
    built = build(config, checkpoint.tensors, task)
    warn_of_unused(config, built, directory)
    if task in GENERATING:
        origin.generation = read_defaults(directory, config)
    _say_requantized(checkpoint, options)
    executor = load_executor(
        built.program,
        built.tensors,
        dtype=(options.dtype if quantized is None else quantized.dtype) or "float32",
        kv_dtype=options.kv_dtype,
        head_dtype=options.head_dtype,
        packed=None if quantized is None else quantized.weights,
        device=options.device,
        threads=options.threads,
        sharing=_sharing(checkpoint, origin, task) if options.share_weights else None,
    )
    try:
        checkpoint.check_unchanged()
        if task in GENERATING:
            check_limit(executor, options.kv_cache_bytes)
    except BaseException:
        executor.close()
        raise
    return built, executor, origin


def _sharing(checkpoint: Checkpoint, origin: Origin, task: Task) -> Sharing:
    """Return what determines the packed weights: the files as they are now, and the options that change numbers."""
    from fastattn.executors.cpu import Sharing

    options = origin.options
    key = {
        "task": task,
        "directory": str(origin.directory),
        "files": {name: None if stamp is None else astuple(stamp) for name, stamp in origin.stamps.items()},
        "dtype": options.dtype,
        "head_dtype": options.head_dtype,
        "overrides": dict(options.overrides),
        "adapter": options.adapter,
    }
    return Sharing(key, checkpoint.check_unchanged)


def _say_requantized(checkpoint: Checkpoint, options: LoadOptions) -> None:
    """Log that weights of a GGUF file are rounded a second time."""
    blocks = [kind for kind in checkpoint.gguf_bytes if kind not in WEIGHT_DTYPES]
    if blocks and options.dtype not in (None, "float32"):
        _log.info(
            "%s: the weights in %s are rounded again, to %s; `fastattn quality` measures what that changes",
            checkpoint.path,
            ", ".join(sorted(blocks)),
            options.dtype,
        )


def override(config: Mapping[str, JsonValue], overrides: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return config.json with some keys replaced. New class names invalidate the old class numbers."""
    dropped = {"label2id"} if "id2label" in overrides else set()
    return {**{key: value for key, value in config.items() if key not in dropped}, **overrides}


def _check_quantized(directory: Path, quantized: QuantizedCheckpoint, options: LoadOptions) -> None:
    device = options.device
    if device != "cpu":
        raise ConfigError(
            f"{directory}: expected device cpu for quantized weights, got {device}; load the float checkpoint"
        )
    asked_and_stored = (
        ("dtype", options.dtype, quantized.dtype),
        ("head_dtype", options.head_dtype, quantized.head_dtype),
    )
    for name, asked, stored in asked_and_stored:
        if asked is not None and asked != stored:
            expected = "None" if stored is None else f"None or {stored!r}"
            raise ConfigError(
                f"{directory}: {name}: expected {expected}, as this checkpoint is quantized, got {asked!r}; load the "
                "float checkpoint"
            )
