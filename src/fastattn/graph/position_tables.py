"""Tables for attention scores that depend on the content and on the relative position (DeBERTa).

A relative position is the key's position minus the query's. Neighbors that share a score share a column. The table of
columns is float32, with one row: the column of each relative position, from -`reach` to `reach`. The tables of position
keys and position queries have one row per head and column.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError
from fastattn.graph.tensor import Weights

Ints = NDArray[np.intp]

PANEL = 64  # the number of columns in a panel (kPanelWidth), and of positions in a window (kBlockLen)
_ROWS = 16  # rows that attention computes together (kAttentionRows)


def column_reach(positions: int) -> int:
    """Return the largest distance that has a column, for sequences of up to `positions`.

    Attention reads whole blocks of keys, and whole groups of queries.
    """
    return -(-positions // PANEL) * PANEL + _ROWS - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionTables:
    """Where attention finds its tables; at least one of keys and queries.

    columns: the table of columns, for sequences of up to `positions`. keys, queries: matrices of n_columns rows per
    head, to multiply queries and keys with.
    """

    columns: Weights
    keys: Weights | None
    queries: Weights | None
    n_columns: int
    positions: int

    def weights(self, n_head: int, head_dim: int) -> tuple[str, ...]:
        """Register the tables and return their keys in the order of the op's weights."""
        matrices = (place for place in (self.keys, self.queries) if place is not None)
        return (
            self.columns.table(1, 2 * column_reach(self.positions) + 1, exact=True),
            *(place.matrix(n_head * self.n_columns, head_dim) for place in matrices),
        )


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of attention's scores by relative position.

    index: what a score depends on, for the relative positions 1 - positions to positions - 1. Unused columns at the
    beginning make a panel end at relative position 0. If every relative position has its own column, the 127 relative
    positions of a block of keys and a window of queries are then in two panels.
    """

    index: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.index) % 2 == 0:
            raise ConfigError(f"columns: expected as many relative positions before 0 as after, got {len(self.index)}")

    @property
    def positions(self) -> int:
        return len(self.index) // 2 + 1

    @cached_property
    def _column(self) -> Ints:
        """The column of each relative position of `index`."""
        column = np.cumsum(np.diff(self.index, prepend=self.index[0]) != 0)
        first: Ints = column + (PANEL - 1 - column[self.positions - 1]) % PANEL
        return first

    @property
    def n_columns(self) -> int:
        """The number of columns, a multiple of PANEL."""
        return int(-(-(self._column[-1] + 1) // PANEL) * PANEL)

    @property
    def indices(self) -> Ints:
        """The index of each column, -1 for those that are not used."""
        found = np.full(self.n_columns, -1, np.intp)
        found[self._column] = self.index
        return found

    @property
    def shape(self) -> tuple[int, int]:
        return 1, 2 * column_reach(self.positions) + 1

    def rows(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return the table. Relative positions that no sequence has share the column of the nearest one."""
        reach, last = column_reach(self.positions), self.positions - 1
        relative = np.clip(np.arange(-reach, reach + 1), -last, last)
        return self._column[relative + last].astype(np.float32)[None][begin:end]
