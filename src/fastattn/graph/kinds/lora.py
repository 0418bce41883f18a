"""lora: adds the products of the adapters of the step's sequences to the output of a linear (Hu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.graph.ir import Op
from fastattn.graph.kinds.rows import ROWS_OF
from fastattn.graph.op_kind import Floats, OpKind, Run


@dataclass(frozen=True, slots=True, eq=False)
class LoraPart:
    """The matrices for one linear: float32 down [rank, in_features], up [out_features, rank], which has the scale.

    target: the number of the linear, as in the attrs of its op.
    """

    target: int
    down: NDArray[np.float32]
    up: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LoraAdapter:
    """What an adapter adds to a model. parts: in ascending order of targets. packed: by module, as C++ reads it."""

    name: str
    parts: tuple[LoraPart, ...]
    packed: dict[str, Any] = field(default_factory=dict)

    def find(self, target: int) -> LoraPart | None:
        """Return the matrices for a linear; None if the adapter does not change it."""
        return next((part for part in self.parts if part.target == target), None)


def lora_formula(run: Run, op: Op, y: Floats, x: Floats) -> Floats:
    """Add (x @ down.T) @ up.T to the rows of each sequence that has an adapter for this linear."""
    result: Floats = y.copy()
    for sequence, cache in enumerate(run.caches):
        part = None if cache.adapter is None else cache.adapter.find(int(op.attrs["target"]))
        if part is not None:
            rows = _rows_of(run, str(op.attrs["rows"]), sequence)
            result[rows] += (x[rows] @ part.down.T) @ part.up.T
    return result


def _rows_of(run: Run, selection: str, sequence: int) -> NDArray[np.intp]:
    """Return the rows of a selection that belong to a sequence."""
    begin, end = run.spans[sequence]
    if selection == "tokens":
        return np.arange(begin, end)
    if selection == "wanted":
        return np.flatnonzero((run.step.wanted >= begin) & (run.step.wanted < end))
    return np.array([sequence])


LORA = OpKind(
    name="lora",
    inputs=("y", "x"),
    attrs={"target": int, "rows": tuple(ROWS_OF)},
    formula=lora_formula,
    reads="positions",
)
