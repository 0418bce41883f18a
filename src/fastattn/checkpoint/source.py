"""Where the numbers of a weight come from. Every executor takes a mapping from tensor names to these sources.

    TensorInfo        a slice of a file; `open_checkpoint` returns one for each tensor
    ArraySource       a numpy array
    ComputedSource    a function that computes rows on demand: merged LoRA adapters, blocks of GGUF, converted files

A source has a name, a shape and a dtype ("F32", "F16", "BF16" or "F64"), like a tensor of a checkpoint. If the
family's checkpoints store a matrix as [in_features, out_features], its source has that shape too. Each tensor is read,
packed and released before the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.safetensors import NOT_THERE, WEIGHT_DTYPES, TensorInfo
from fastattn.checks import check_count, is_masked_array, quote
from fastattn.errors import ConfigError, DTypeError, FastattnError, InputError
from fastattn.files import malformed, read_at

Float32 = NDArray[np.float32]

_READ_BYTES = 16 << 20
_SLICE_FLOATS = 1 << 20  # 4 MiB: few calls, and little memory for the rows
_PANEL_ROWS = 64  # of a packed matrix
_NUMPY_DTYPES: Mapping[str, str] = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}
_DTYPES: Mapping[str, str] = {"float32": "F32", "float16": "F16", "float64": "F64", "bfloat16": "BF16", "uint8": "U8"}


@dataclass(frozen=True, slots=True)
class ArraySource:
    """A numpy array: float32, float16, float64, bfloat16 of ml_dtypes, or uint8 for the bytes of a packed weight.

    It must be C-contiguous, because it is read without a copy. Do not write to it during a load. Raises DTypeError,
    InputError.
    """

    name: str
    array: NDArray[Any]

    def __post_init__(self) -> None:
        if not isinstance(self.array, np.ndarray) or is_masked_array(self.array):
            raise DTypeError(f"{_tensor(self.name)}: expected a numpy array, got {type(self.array).__name__}")
        if self.array.dtype.name not in _DTYPES or not self.array.dtype.isnative:
            known = ", ".join(name for name in _DTYPES if name != "uint8")
            raise DTypeError(f"{_tensor(self.name)}: expected an array of {known}, got {self.array.dtype}")
        if not (self.array.flags.c_contiguous and self.array.flags.aligned):
            raise InputError(f"{_tensor(self.name)}: expected a C-contiguous array; use numpy.ascontiguousarray")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> str:
        """The name of the dtype in safetensors."""
        return _DTYPES[self.array.dtype.name]


@dataclass(frozen=True, slots=True)
class ComputedSource:
    """A vector or matrix whose rows a function computes when they are packed.

    compute(begin, end) returns rows [begin, end) as a C-contiguous float32 array with as many dimensions as `shape`.
    The thread that loads the model calls it with ascending slices. slice_rows: the maximum number of rows per
    call; None: about 4 MiB of floats. If the function cannot compute slices, pass shape[0]; it is then called once.
    place: where the numbers come from, for messages.

    An exception in the function becomes an InputError; FastattnError, OSError and MemoryError propagate. Wrong
    arrays raise InputError or DTypeError.
    """

    name: str
    shape: tuple[int, ...]
    compute: Callable[[int, int], Float32]
    slice_rows: int | None = None
    place: str = "a function"

    def __post_init__(self) -> None:
        if not callable(self.compute):
            raise DTypeError(
                f"{_tensor(self.name)}: expected a function compute(begin, end), got {quote(self.compute)}"
            )
        if not 1 <= len(self.shape) <= 2:
            raise InputError(f"{_tensor(self.name)}: expected a shape of one or two sizes, got {quote(self.shape)}")
        for size in self.shape:
            check_count("shape", size)
        if self.slice_rows is not None:
            check_count("slice_rows", self.slice_rows, low=1)

    @property
    def dtype(self) -> str:
        """The name of the dtype in safetensors."""
        return "F32"

    @property
    def rows_per_call(self) -> int:
        """The maximum number of rows that one call returns."""
        if self.slice_rows is not None:
            return self.slice_rows
        rows = _SLICE_FLOATS // max(1, matrix_shape(self.shape)[1])
        return max(1, rows - rows % _PANEL_ROWS if rows > _PANEL_ROWS else rows)

    def rows(self, begin: int, end: int) -> Float32:
        """Compute rows [begin, end) and check them."""
        where = f"{_tensor(self.name)}: rows {begin} to {end}"
        try:
            found = self.compute(begin, end)
        except (FastattnError, OSError, MemoryError):
            raise
        except Exception as error:
            raise InputError(f"{where}: its function raised {type(error).__name__}: {quote(str(error))}") from error
        expected = (end - begin, *self.shape[1:])
        if not isinstance(found, np.ndarray) or found.dtype != np.float32 or is_masked_array(found):
            got = f"an array of {found.dtype}" if isinstance(found, np.ndarray) else type(found).__name__
            raise DTypeError(f"{where}: expected a numpy array of float32 from its function, got {got}")
        if found.shape != expected:
            raise InputError(f"{where}: expected shape {list(expected)} from its function, got {list(found.shape)}")
        if not (found.flags.c_contiguous and found.flags.aligned):
            raise InputError(
                f"{where}: expected a C-contiguous array from its function; return numpy.ascontiguousarray(...)"
            )
        return found


WeightSource: TypeAlias = TensorInfo | ArraySource | ComputedSource


def array_sources(arrays: Mapping[str, NDArray[Any]]) -> dict[str, WeightSource]:
    """Return the sources of a model whose tensors are in memory, by name. Raises DTypeError, InputError."""
    return {name: ArraySource(name, array) for name, array in arrays.items()}


def place_of(source: WeightSource) -> str:
    """Describe where a source is, for messages."""
    if isinstance(source, TensorInfo):
        return str(source.path)
    return "an array" if isinstance(source, ArraySource) else source.place


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a shape as rows and columns; a vector has one column."""
    return (shape or (1,))[0], math.prod(shape[1:])


def require_weight_dtype(source: WeightSource) -> None:
    """Refuse a tensor whose dtype is known but not used for weights (integers, 8-bit floats, ...)."""
    if source.dtype in WEIGHT_DTYPES:
        return
    message = f"dtype: expected one of {', '.join(WEIGHT_DTYPES)}, got {source.dtype}"
    if not isinstance(source, TensorInfo):
        raise DTypeError(f"{_tensor(source.name)}: {message}")
    raise malformed(source.path, "dtype_unsupported", message, tensor=source.name, offset=source.offset)


def read_tensor(source: WeightSource) -> Float32:
    """Read a tensor as float32 in its own shape; float64 is rounded to nearest.

    Raises ModelFormatError, ConfigError for a float64 number outside the range of float32, OSError, and the errors of a
    ComputedSource.
    """
    require_weight_dtype(source)
    result = np.empty(source.shape, np.float32)
    matrix = result.reshape(matrix_shape(source.shape))
    for begin, end in _slices(source):
        _read_rows(source, begin, end, matrix[begin:end])
    return result


def read_rows(source: WeightSource, begin: int, end: int) -> Float32:
    """Read rows [begin, end) of a tensor as float32, for functions that merge or convert tensors.

    Raises what `read_tensor` raises, and InputError for rows that do not exist.
    """
    require_weight_dtype(source)
    rows, columns = matrix_shape(source.shape)
    if not 0 <= begin <= end <= rows:
        raise InputError(f"{_tensor(source.name)}: expected rows from 0 to {rows}, got {begin} to {end}")
    result = np.empty((end - begin, *source.shape[1:]), np.float32)
    if result.size:
        _read_rows(source, begin, end, result.reshape(end - begin, columns))
    return result


def read_slices(source: WeightSource) -> Iterator[tuple[int, Float32]]:
    """Yield the first row and the rows of each slice of a tensor, as float32 [rows, columns].

    The rows are valid until the next slice. Do not write to them. Raises what `read_tensor` raises.
    """
    require_weight_dtype(source)
    columns = matrix_shape(source.shape)[1]
    for begin, end in _slices(source):
        rows = np.empty((end - begin, columns), np.float32)
        _read_rows(source, begin, end, rows)
        yield begin, rows


def same_data(a: WeightSource, b: WeightSource) -> bool:
    """Return whether two tensors have the same dtype, shape and bytes. Functions are compared by identity only."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if isinstance(a, ArraySource) and isinstance(b, ArraySource):
        return a.array is b.array or _same_bytes(a.array, b.array)
    if isinstance(a, ComputedSource) and isinstance(b, ComputedSource):
        return a.compute is b.compute
    if not (isinstance(a, TensorInfo) and isinstance(b, TensorInfo)) or NOT_THERE in (a.offset, b.offset):
        return False
    pairs = zip(_chunks(a, _READ_BYTES), _chunks(b, _READ_BYTES), strict=True)
    return (a.path, a.offset) == (b.path, b.offset) or all(left == right for left, right in pairs)


def _same_bytes(a: NDArray[Any], b: NDArray[Any]) -> bool:
    left, right = a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)
    return all(
        np.array_equal(left[at : at + _READ_BYTES], right[at : at + _READ_BYTES])
        for at in range(0, left.size, _READ_BYTES)
    )


def _slices(source: WeightSource) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the rows to read at once."""
    rows, columns = matrix_shape(source.shape)
    if columns == 0:
        return
    if isinstance(source, ComputedSource):
        most = source.rows_per_call
    else:
        most = max(1, _READ_BYTES // (columns * np.dtype(_NUMPY_DTYPES[source.dtype]).itemsize))
    for begin in range(0, rows, most):
        yield begin, min(begin + most, rows)


def _read_rows(source: WeightSource, begin: int, end: int, result: Float32) -> None:
    """Read rows [begin, end) into `result` [end - begin, columns]."""
    if isinstance(source, ComputedSource):
        result[...] = source.rows(begin, end).reshape(result.shape)
        return
    dtype = np.dtype(_NUMPY_DTYPES[source.dtype])
    if isinstance(source, ArraySource):
        values = source.array.reshape(-1, result.shape[1])[begin:end].view(dtype)
    else:
        row_bytes = result.shape[1] * dtype.itemsize
        values = np.frombuffer(_read_bytes(source, begin * row_bytes, result.size * dtype.itemsize), dtype)
        values = values.reshape(result.shape)
    _to_float32(values, result)
    if source.dtype == "F64":
        _require_range(source, values, result)


def _chunks(info: TensorInfo, size: int) -> Iterator[bytes]:
    for at in range(0, info.nbytes, size):
        yield _read_bytes(info, at, min(size, info.nbytes - at))


def _read_bytes(info: TensorInfo, at: int, size: int) -> bytes:
    """Read bytes of a tensor, from byte `at` on."""
    with info.opened() as descriptor:
        found = read_at(descriptor, size, info.offset + at)
        if len(found) < size:
            message = "expected the whole tensor, got a file that became shorter while it was read"
            raise malformed(info.path, "data_truncated", message, tensor=info.name, offset=info.offset + at)
    return found


def _to_float32(values: NDArray[Any], result: Float32) -> None:
    """Convert to float32; uint16 is read as bfloat16."""
    if values.dtype == np.uint16:
        np.left_shift(values, np.uint32(16), out=result.view(np.uint32), dtype=np.uint32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks for infinity; NaN stays NaN
            result[...] = values


def _require_range(source: WeightSource, values: NDArray[np.float64], rounded: Float32) -> None:
    beyond = values[np.isinf(rounded) & np.isfinite(values)]
    if len(beyond):
        where = f"{source.path}: " if isinstance(source, TensorInfo) else ""
        raise ConfigError(
            f"{where}{_tensor(source.name)}: expected float64 numbers within the range of float32, got {beyond[0]:g}"
        )


def _tensor(name: str) -> str:
    return f"tensor {quote(name)}"
