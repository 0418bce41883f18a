"""Sparse vectors: the positions and values of the numbers that are not zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import DTypeError, InputError
from fastattn.tasks.search.vectors import Rows, read_vectors

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class SparseEmbedding:
    """One sparse vector. indices: int32 [n], ascending. values: float32 [n]. width: the length of the whole vector."""

    indices: Ids
    values: Rows
    width: int

    def __len__(self) -> int:
        return len(self.indices)

    def toarray(self) -> Rows:
        """Return the whole vector, float32 [width]."""
        found = np.zeros(self.width, np.float32)
        found[self.indices] = self.values
        return found

    def as_dict(self) -> dict[int, float]:
        """Return the values by position."""
        return dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))

    def as_object(self) -> dict[str, NDArray[Any]]:
        """Return {"indices", "values"}, the form that vector databases expect."""
        return {"indices": self.indices, "values": self.values}


class SparseEmbeddings(Sequence[SparseEmbedding]):
    """Sparse vectors in compressed rows (CSR). Row i has indices[indptr[i] : indptr[i + 1]] and the values there.

    `scipy.sparse.csr_array((x.values, x.indices, x.indptr), shape=x.shape)` shares the arrays.
    """

    def __init__(self, indptr: NDArray[np.int64], indices: Ids, values: Rows, width: int) -> None:
        self.indptr, self.indices, self.values, self.width = indptr, indices, values, width

    @classmethod
    def of(cls, rows: Sequence[SparseEmbedding], width: int) -> SparseEmbeddings:
        """Combine rows of one width."""
        indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        indices = np.concatenate([np.zeros(0, np.int32), *(row.indices for row in rows)])
        values = np.concatenate([np.zeros(0, np.float32), *(row.values for row in rows)])
        return cls(indptr, indices, values, width)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and the length of a whole vector."""
        return len(self), self.width

    @property
    def nnz(self) -> int:
        """The number of stored values."""
        return len(self.values)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, index: Any) -> Any:
        """Return one row, or with a slice several of them."""
        if isinstance(index, slice):
            return SparseEmbeddings.of([self[i] for i in range(len(self))[index]], self.width)
        i = range(len(self))[index]
        part = slice(self.indptr[i], self.indptr[i + 1])
        return SparseEmbedding(self.indices[part], self.values[part], self.width)

    def __iter__(self) -> Iterator[SparseEmbedding]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<SparseEmbeddings of shape {list(self.shape)}, {self.nnz} values>"

    def toarray(self) -> Rows:
        """Return the whole vectors, float32 [n, width]."""
        found = np.zeros(self.shape, np.float32)
        found[np.repeat(np.arange(len(self)), np.diff(self.indptr)), self.indices] = self.values
        return found


def sparse_row(vector: Rows, most: int | None) -> SparseEmbedding:
    """Return the numbers of a vector [width] that are not zero; with `most`, only the largest by absolute value.

    If values are equal, the first ones stay.
    """
    indices = np.flatnonzero(vector)
    if most is not None and len(indices) > most:
        order = np.argsort(-np.abs(vector[indices]), kind="stable")[:most]
        indices = np.sort(indices[order])
    return SparseEmbedding(indices.astype(np.int32), vector[indices].astype(np.float32), len(vector))


def read_sparse(embeddings: object, name: str) -> SparseEmbeddings:
    """Return sparse vectors from those of `encode`, a list of them, a dense array, or a torch tensor.

    Raises DTypeError, InputError.
    """
    if isinstance(embeddings, SparseEmbeddings):
        return embeddings
    if isinstance(embeddings, SparseEmbedding):
        return SparseEmbeddings.of([embeddings], embeddings.width)
    if isinstance(embeddings, (list, tuple)) and embeddings and isinstance(embeddings[0], SparseEmbedding):
        widths = {row.width if isinstance(row, SparseEmbedding) else None for row in embeddings}
        if len(widths) > 1:
            raise InputError(f"{name}: expected sparse vectors of one width, got {len(widths)} kinds")
        return SparseEmbeddings.of(embeddings, embeddings[0].width)
    if getattr(embeddings, "is_sparse", False):  # a torch tensor
        return _of_torch(embeddings, name)
    rows = np.atleast_2d(read_vectors(embeddings, name))
    return SparseEmbeddings.of([sparse_row(row, None) for row in rows], rows.shape[1])


def _of_torch(tensor: Any, name: str) -> SparseEmbeddings:
    """Return the rows of a sparse COO tensor on the CPU."""
    if tensor.ndim not in (1, 2):
        raise InputError(f"{name}: expected shape [n, width] or [width], got {list(tensor.shape)}")
    whole = (tensor if tensor.ndim == 2 else tensor.unsqueeze(0)).coalesce()
    try:
        places, values = whole.indices().numpy(), whole.values().numpy()
    except (TypeError, RuntimeError) as error:
        raise DTypeError(f"{name}: expected a tensor on the CPU: {error}") from None
    counts = np.bincount(places[0], minlength=whole.shape[0])
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return SparseEmbeddings(indptr, places[1].astype(np.int32), values.astype(np.float32), int(whole.shape[1]))


def to_torch(rows: SparseEmbeddings, torch: Any) -> Any:
    """Return a coalesced sparse COO tensor [n, width]."""
    places = np.stack([np.repeat(np.arange(len(rows)), np.diff(rows.indptr)), rows.indices.astype(np.int64)])
    parts = torch.from_numpy(places), torch.from_numpy(rows.values)
    return torch.sparse_coo_tensor(*parts, size=rows.shape, check_invariants=False).coalesce()
