"""Tensors of an HDF5 file, read with h5py. Only data inside the file itself is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.source import ComputedSource
from fastattn.errors import ConfigError, ModelNotFoundError
from fastattn.files import malformed

if TYPE_CHECKING:
    from typing_extensions import Self

Float32 = NDArray[np.float32]


class Hdf5File:
    """An open HDF5 file. Use it in a `with` block, which must last until all sources are loaded.

    Raises ConfigError if h5py is not installed, ModelNotFoundError if there is no file, and ModelFormatError for a
    file that is not HDF5.
    """

    def __init__(self, path: Path) -> None:
        try:
            import h5py
        except ImportError:
            raise ConfigError(f'{path}: expected the package h5py, found none; pip install "fastattn[elmo]"') from None
        self.path, self._h5py = path, h5py
        if not path.is_file():
            raise ModelNotFoundError(f"{path}: expected an HDF5 file, found none")
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise malformed(path, "hdf5", f"expected an HDF5 file, got one that h5py cannot open: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def source(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        stored: str,
        stored_shape: tuple[int, ...],
        convert: Callable[[Float32], Float32],
    ) -> ComputedSource:
        """Return the tensor `name` of this shape, which `convert` computes from the dataset `stored`.

        Raises ModelFormatError if the file has no such dataset of this shape.
        """
        dataset = self._dataset(stored, stored_shape)

        def compute(begin: int, end: int) -> Float32:
            try:
                values = dataset[()].astype(np.float32)
            except (OSError, RuntimeError) as error:
                raise malformed(self.path, "hdf5", f"expected readable data, got: {error}", tensor=stored) from None
            return np.ascontiguousarray(convert(values)[begin:end])

        return ComputedSource(name, shape, compute, slice_rows=shape[0], place=str(self.path))

    def _dataset(self, name: str, shape: tuple[int, ...]) -> Any:
        found: Any = self._file
        try:
            for part in name.split("/"):
                link = found.get(part, getlink=True) if isinstance(found, self._h5py.Group) else None
                found = found.get(part) if isinstance(link, self._h5py.HardLink) else None
                if found is None:
                    break
        except (OSError, RuntimeError, KeyError) as error:
            raise malformed(self.path, "hdf5", f"expected a readable file, got: {error}", tensor=name) from None
        expected = f"a dataset of floats {list(shape)}"
        if not isinstance(found, self._h5py.Dataset):
            raise malformed(self.path, "tensor_missing", f"expected {expected}, found none", tensor=name)
        if found.is_virtual or found.external:
            raise malformed(self.path, "hdf5", f"expected {expected} in the file, got one elsewhere", tensor=name)
        if found.dtype.kind != "f" or found.shape != shape:
            got = f"{found.dtype} {list(found.shape or ())}"
            raise malformed(self.path, "shape", f"expected {expected}, got {got}", tensor=name)
        return found
