"""The tensors of a GGUF file as sources of weights, in the names and layouts of Hugging Face checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.gguf.blocks import bad_scale, decode_blocks
from fastattn.checkpoint.gguf.reader import GgufFile, GgufTensor
from fastattn.checkpoint.safetensors import TensorInfo
from fastattn.checkpoint.source import ComputedSource, WeightSource, read_rows
from fastattn.files import SourceFile, malformed

if TYPE_CHECKING:
    from fastattn.checkpoint.gguf.architecture import Place

Float32 = NDArray[np.float32]
_COMPARED_BYTES = 1 << 20
_MAX_SETTINGS = 1 << 16


@dataclass(frozen=True, slots=True)
class _Rows:
    """Decodes rows of a tensor. A vector counts as one row."""

    file: SourceFile
    tensor: GgufTensor

    @property
    def columns(self) -> int:
        return self.tensor.shape[-1]

    def read(self, begin: int, end: int) -> Float32:
        """Return rows [begin, end) as [end - begin, columns]. Raises ModelFormatError, OSError."""
        tensor, kind = self.tensor, self.tensor.kind
        if kind.dtype:
            return read_rows(_plain(self.file, tensor, tensor.name), begin, end)
        row_bytes = self.columns // kind.n_values * kind.n_bytes
        at, size = tensor.offset + begin * row_bytes, (end - begin) * row_bytes
        data = self.file.read(size, at)
        if len(data) < size:
            message = "expected the whole tensor, got a file that became shorter while it was read"
            raise malformed(self.file.path, "data_truncated", message, tensor=tensor.name, offset=at)
        blocks = np.frombuffer(data, np.uint8).reshape(-1, kind.n_bytes)
        bad = bad_scale(kind, blocks)
        if bad is not None:
            message = (
                f"expected finite scales, got NaN or infinity in block {begin * self.columns // kind.n_values + bad}"
            )
            where = at + bad * kind.n_bytes
            raise malformed(self.file.path, "not_finite", message, tensor=tensor.name, offset=where)
        return decode_blocks(kind, blocks).reshape(end - begin, self.columns)


def source_of(gguf: GgufFile, tensor: GgufTensor, place: Place) -> WeightSource:
    """Return the source of a tensor under its name in Hugging Face checkpoints. Only its place in the file is read."""
    n_dims = len(tensor.shape)
    if n_dims not in (1, 2):
        message = f"shape: expected one or two sizes, got {list(tensor.shape)}"
        raise malformed(gguf.path, "shape", message, tensor=tensor.name)
    rows, where = _Rows(gguf.file, tensor), str(gguf.path)
    transposed = place.transposed and n_dims == 2
    if tensor.kind.dtype and not transposed and not place.n_heads:
        return _plain(gguf.file, tensor, place.name)
    if n_dims == 1 and not place.n_heads and not transposed:
        size = tensor.shape[0]
        return ComputedSource(place.name, (size,), lambda begin, end: rows.read(0, 1)[0, begin:end].copy(), size, where)
    if transposed:  # a row of the source is a column of the file: all of them are decoded at once
        shape = tensor.shape[::-1]
        return ComputedSource(place.name, shape, lambda begin, end: _columns(rows, begin, end), shape[0], where)
    if place.n_heads:
        return _rotary_source(gguf, tensor, place, where)
    return ComputedSource(place.name, tensor.shape, rows.read, None, where)


def _plain(file: SourceFile, tensor: GgufTensor, name: str) -> TensorInfo:
    return TensorInfo(name, tensor.kind.dtype, tensor.shape, file.path, tensor.offset, tensor.nbytes, file)


def _columns(rows: _Rows, begin: int, end: int) -> Float32:
    found = rows.read(0, rows.tensor.shape[0])
    return np.ascontiguousarray(found[:, begin:end].T)


def _rotary_source(gguf: GgufFile, tensor: GgufTensor, place: Place, where: str) -> WeightSource:
    """Return a source with the rows of every head in the order of Hugging Face.

    llama.cpp rotates neighbors, (0, 1), (2, 3), ..., and Hugging Face the halves of a head, (0, n/2), (1, n/2 + 1), ...
    """
    n = tensor.shape[0]
    if n % (2 * place.n_heads):
        message = f"shape: expected rows of {place.n_heads} heads of even size, got {n}"
        raise malformed(gguf.path, "shape", message, tensor=tensor.name)
    size, rows = n // place.n_heads, _Rows(gguf.file, tensor)
    order = np.arange(n).reshape(place.n_heads, size // 2, 2).swapaxes(1, 2).reshape(n)
    if len(tensor.shape) == 1:
        return ComputedSource(place.name, (n,), lambda begin, end: rows.read(0, 1)[0, order[begin:end]], n, where)

    def compute(begin: int, end: int) -> Float32:
        first, last = begin // size * size, -(-end // size) * size  # the rows of whole heads
        found: Float32 = rows.read(first, last)[order[begin:end] - first]
        return found

    heads = max(1, (1 << 20) // (size * tensor.shape[1]))
    return ComputedSource(place.name, tensor.shape, compute, min(n, heads * size), where)


def read_values(gguf: GgufFile, tensor: GgufTensor) -> Float32:
    """Read a whole tensor as a vector, for settings that are stored as one. Raises ModelFormatError."""
    n = math.prod(tensor.shape)
    if n > _MAX_SETTINGS:
        message = f"shape: expected at most {_MAX_SETTINGS} numbers, got {n}"
        raise malformed(gguf.path, "shape", message, tensor=tensor.name)
    found: Float32 = _Rows(gguf.file, replace(tensor, shape=(1, n))).read(0, 1)[0]
    return found


def same_bytes(gguf: GgufFile, a: GgufTensor, b: GgufTensor) -> bool:
    """Return whether two tensors have the same type, shape and bytes."""
    if (a.kind.name, a.shape) != (b.kind.name, b.shape):
        return False
    return all(
        gguf.file.read(min(_COMPARED_BYTES, a.nbytes - at), a.offset + at)
        == gguf.file.read(min(_COMPARED_BYTES, a.nbytes - at), b.offset + at)
        for at in range(0, a.nbytes, _COMPARED_BYTES)
    )
