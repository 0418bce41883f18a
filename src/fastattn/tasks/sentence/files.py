"""The small files of a sentence-transformers folder: JSON settings and the weights of one module."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint import TensorInfo, read_header, read_tensor
from fastattn.checks import quote
from fastattn.errors import ConfigError, ModelFormatError
from fastattn.files import read_at
from fastattn.jsonfile import read_json
from fastattn.settings import Settings

WEIGHTS_NAME = "model.safetensors"
_PICKLED_NAME = "pytorch_model.bin"
_INTEGERS = {"I8": "<i1", "U8": "<u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8"}


def read_optional_json(path: Path) -> Any:
    """Return the value of a JSON file; None if the file does not exist. Raises ConfigError, ModelFormatError."""
    if not os.path.lexists(path):
        return None
    try:
        value = read_json(path)
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable file, got: {error.strerror or type(error).__name__}") from error
    if value is None:
        raise ConfigError(f"{path}: expected settings, got null")
    return value


def read_settings(path: Path, *, needed_by: str | None = None) -> Settings:
    """Return the settings of a JSON object.

    A missing file gives empty settings, or a ConfigError if `needed_by` is set.
    """
    value = read_optional_json(path)
    if value is None and needed_by is not None:
        raise ConfigError(
            f"{path}: expected the settings of {needed_by}, found no such file; download the folder again"
        )
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {quote(value)}")
    return Settings(path, value or {})


def find_weights(folder: Path, needed_by: str) -> dict[str, TensorInfo]:
    """Return the tensors in the model.safetensors of a module's folder. Raises ModelFormatError."""
    path = folder / WEIGHTS_NAME
    try:
        return read_header(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelFormatError(f"{path}: expected a readable file, got: {reason}", path=str(path)) from error
    if os.path.lexists(folder / _PICKLED_NAME):
        raise ModelFormatError(
            f"{path}: expected the weights of {needed_by}, found only {_PICKLED_NAME}, which is not read because it is "
            "a pickle; convert it once with sentence-transformers: SentenceTransformer(folder).save(new_folder)",
            path=str(path),
            code="other_format",
        )
    raise ModelFormatError(
        f"{path}: expected the weights of {needed_by}, found no such file; download the folder again",
        path=str(path),
        code="missing",
    )


def check_names(folder: Path, found: Collection[str], expected: Collection[str]) -> None:
    """Reject weights with unexpected names. Raises ModelFormatError."""
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or extra:
        path = folder / WEIGHTS_NAME
        parts = [f"{what} {quote(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names]
        raise ModelFormatError(
            f"{path}: expected the tensors {', '.join(sorted(expected))}; {', '.join(parts)}", path=str(path)
        )


def read_floats(info: TensorInfo, shape: tuple[int, ...] | None = None) -> NDArray[np.float32]:
    """Return a tensor of weights as read-only float32 of the given shape. Raises ModelFormatError."""
    if shape is not None and info.shape != shape:
        raise ModelFormatError(
            f"{info.path}: tensor {quote(info.name)}: expected shape {list(shape)}, got {list(info.shape)}",
            path=str(info.path),
            tensor=info.name,
        )
    values = read_tensor(info)
    values.setflags(write=False)
    return values


def read_integers(info: TensorInfo) -> NDArray[np.int64]:
    """Return a tensor of integers. Raises ModelFormatError."""
    if info.dtype not in _INTEGERS:
        raise ModelFormatError(
            f"{info.path}: tensor {quote(info.name)}: expected integers, got {info.dtype}",
            path=str(info.path),
            tensor=info.name,
        )
    with info.opened() as descriptor:
        data = read_at(descriptor, info.nbytes, info.offset)
    if len(data) != info.nbytes:
        raise ModelFormatError(f"{info.path}: the file became shorter while it was read", path=str(info.path))
    return np.frombuffer(data, _INTEGERS[info.dtype]).astype(np.int64).reshape(info.shape)


def is_integer(info: TensorInfo) -> bool:
    """Return whether a tensor has an integer dtype."""
    return info.dtype in _INTEGERS
