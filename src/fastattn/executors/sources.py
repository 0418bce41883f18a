"""Reads the sources of weights, for all executors: in C++ for the CPU, as arrays for the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.safetensors import TensorInfo
from fastattn.checkpoint.source import ArraySource, Float32, WeightSource, matrix_shape, read_slices
from fastattn.errors import InputError
from fastattn.graph.ir import Weight

# Name, dtype, rows and columns as stored, and the data: csrc/bindings/weight_parts.h.
CorePart: TypeAlias = tuple[str, str, int, int, Any]


class CoreParts:
    """Sources as the C++ core takes them. Each file is opened once, and closed at the end of the `with` block."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._descriptors: dict[Path, int] = {}

    def __enter__(self) -> CoreParts:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def of_weight(self, weight: Weight, sources: Mapping[str, WeightSource]) -> list[CorePart]:
        """Return the parts of a weight for C++. Raises InputError if they do not add up to its shape."""
        return [self.of(source) for source, _ in _stacked(weight, sources)]

    def of(self, source: WeightSource) -> CorePart:
        """Return a source for C++."""
        return (source.name, source.dtype, *matrix_shape(source.shape), self._data(source))

    def _data(self, source: WeightSource) -> Any:
        if isinstance(source, TensorInfo):
            return self._descriptor(source), source.offset
        return source.array if isinstance(source, ArraySource) else (source.rows, source.rows_per_call)

    def _descriptor(self, info: TensorInfo) -> int:
        if info.path not in self._descriptors:
            self._descriptors[info.path] = self._stack.enter_context(info.opened())
        return self._descriptors[info.path]


def read_weight(
    weight: Weight,
    sources: Mapping[str, WeightSource],
    dtype: type[np.generic] = np.float32,
    convert: Callable[[Float32], NDArray[Any]] | None = None,
) -> NDArray[Any]:
    """Read all parts of a weight as [out_features, in_features]; a vector has one column.

    convert: converts each slice of rows to `dtype`, so that no more than a slice is in memory as floats. Raises
    InputError if the parts do not add up to the weight's shape, and the errors of `read_tensor`.
    """
    parts = _stacked(weight, sources)
    result = np.empty(matrix_shape(weight.shape), dtype)
    for source, rows in parts:
        stored = result[rows].T if weight.transposed else result[rows]
        for begin, found in read_slices(source):
            stored[begin : begin + len(found)] = found if convert is None else convert(found)
    return result


def _stacked(weight: Weight, sources: Mapping[str, WeightSource]) -> list[tuple[WeightSource, slice]]:
    """Return the sources of a weight's parts, and the rows (out_features) of each."""
    rows, columns = matrix_shape(weight.shape)
    found, end = [], 0
    for part in weight.parts:
        source = sources[part]
        shape = matrix_shape(source.shape)
        n, width = shape[::-1] if weight.transposed else shape
        begin, end = end, end + n
        if width != columns or end > rows:
            raise InputError(f"{part}: expected a part of a weight {list(weight.shape)}, got {list(source.shape)}")
        found.append((source, slice(begin, end)))
    if end != rows:
        raise InputError(f"{weight.parts[0]}: expected {rows} rows in all parts of a weight, got {end}")
    return found
