"""`quantize`: rounds and packs a checkpoint's weights once, into a directory that loads in a fraction of the time."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastattn.api.load_args import HubArgs
from fastattn.api.load_options import MAX_THREADS
from fastattn.checkpoint import Checkpoint, WeightSource
from fastattn.checkpoint.companions import copy_companions
from fastattn.checkpoint.gguf.checkpoint import is_gguf
from fastattn.checkpoint.locate import find_model
from fastattn.checkpoint.new_folder import NewFolder, new_folder
from fastattn.checkpoint.quantized_writer import NewWeight, write_quantized
from fastattn.checks import check_choice, check_count, check_keywords, check_path
from fastattn.errors import ConfigError, InputError, ModelFormatError
from fastattn.executors import cpu
from fastattn.formats import DTYPES, PACKED_DTYPES
from fastattn.graph.ir import Weight
from fastattn.graph.quantize import tied_embeddings, weight_formats
from fastattn.models.adapters import open_with_adapter
from fastattn.models.registry import BuiltModel, build
from fastattn.models.tasks import TASKS
from fastattn.tokenizer import has_tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger("fastattn")


def quantize(
    path_or_id: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    dtype: str,
    head_dtype: str | None = None,
    threads: int | None = None,
    **hub: Unpack[HubArgs],
) -> Path:
    """Write the model of `path_or_id` in "bfloat16", "int8" or "int4" to a new or empty directory, with its tokenizer.

    head_dtype: a different dtype for the matrix that computes the logits and for the token embeddings tied to it.
    threads: number of CPU threads; None: all that this process may use. A model loaded from the directory returns the
    same bits as `from_pretrained(path_or_id, dtype=dtype, head_dtype=head_dtype)`. Returns the directory.
    Besides the weights, only regular files with known names are copied (`fastattn.checkpoint.companions.COPIED`); a
    warning lists the others. For a GGUF file, the files of its tokenizer are written. The directory appears only when
    everything is written. If two processes write the same directory, one succeeds and the other gets a ConfigError.
    revision, cache_dir, local_files_only and token: for hub ids.
    Raises ModelNotFoundError, HubError, ConfigError, ModelFormatError, InputError, DTypeError, OSError.
    """
    check_keywords(hub, ("dtype", "head_dtype", "threads", *HubArgs.__annotations__), "quantize")
    if isinstance(dtype, str) and dtype == "float32":
        expected = ", ".join(map(repr, PACKED_DTYPES))
        raise InputError(f"dtype: expected one of {expected}, got 'float32', which is not quantized")
    dtype = check_choice("dtype", dtype, PACKED_DTYPES)
    head_dtype = None if head_dtype is None else check_choice("head_dtype", head_dtype, DTYPES["cpu"])
    threads = None if threads is None else check_count("threads", threads, low=1, high=MAX_THREADS)
    target = check_path("directory", directory)
    source = find_model(path_or_id, **hub)
    with open_with_adapter(source) as checkpoint, new_folder(target) as folder:
        if checkpoint.quantized is not None:
            dtype = checkpoint.quantized.dtype
            raise ConfigError(f"{source}: expected a float checkpoint, got one quantized to {dtype}; pass the original")
        _write(checkpoint, folder, dtype, head_dtype, threads)
        if is_gguf(source):
            _write_tokenizer(source, folder)
        else:
            copy_companions(source, folder, checkpoint.files)
        checkpoint.check_unchanged()
    return target


def _write_tokenizer(path: Path, folder: NewFolder) -> None:
    """Write the tokenizer of a GGUF file; a warning says why if there is none that can be read."""
    if not has_tokenizer(path):
        return
    from fastattn.tokenizer.gguf import tokenizer_files

    try:
        contents = tokenizer_files(path)
    except (ConfigError, ModelFormatError) as error:
        _log.warning("%s: the new folder gets no tokenizer: %s", path, error)
        return
    for name, text in contents.items():
        with folder.create(name) as file:
            file.write(text.encode())


def _write(checkpoint: Checkpoint, folder: NewFolder, dtype: str, head_dtype: str | None, threads: int | None) -> None:
    """Quantize the weights of a checkpoint and write them with its config.json."""
    config = dict(checkpoint.config)
    weights: dict[str, Weight] = {}
    formats: dict[str, str] = {}
    tensors: dict[str, WeightSource] = {}
    for built in _every_task(checkpoint.config, checkpoint.tensors):
        new = {name: weight for name, weight in built.program.weights.items() if name not in weights}
        found = weight_formats(built.program, dtype, head_dtype)
        if tied_embeddings(built.program) and config.get("tie_word_embeddings") is False:
            config["tie_word_embeddings"] = True  # the checkpoint stores them twice, this directory once
        weights |= new
        formats |= {name: found[name] for name in new}
        tensors |= built.tensors
    planned = _plan(weights, formats)
    write_quantized(
        folder,
        config,
        dtype=dtype,
        head_dtype=head_dtype,
        shapes={info.name: info.shape for info in tensors.values()},
        weights=planned,
        pieces=_pieces(planned, weights, tensors, threads),
    )


def _every_task(config: Mapping[str, object], tensors: Mapping[str, WeightSource]) -> Iterator[BuiltModel]:
    """Yield the models that the checkpoint can be loaded as.

    Models with a head come first: their tied embeddings are packed as a matrix, which can also be read as a table.
    """
    n_built, error = 0, None
    for task in TASKS:
        try:
            built = build(config, tensors, task)
        except ConfigError as refused:
            error = refused
            continue
        n_built += 1
        yield built
    if not n_built and error is not None:
        raise error


def _plan(weights: Mapping[str, Weight], formats: Mapping[str, str]) -> list[NewWeight]:
    return [
        NewWeight(name, weight.use, formats[name], weight.shape, cpu.packed_sizes(weight, formats[name]))
        for name, weight in weights.items()
    ]


def _pieces(
    planned: list[NewWeight], weights: Mapping[str, Weight], tensors: Mapping[str, WeightSource], threads: int | None
) -> Iterator[list[NDArray[np.uint8]]]:
    """Yield one weight at a time, so only one is in memory."""
    for item in planned:
        yield cpu.pack_weight(item.name, weights[item.name], item.form, tensors, threads)
