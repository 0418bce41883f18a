"""Steps of Programs that read rows of floats, which have no KV caches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastattn.graph.ir import Step


def ragged_step(
    lengths: Sequence[int], ids: NDArray[np.int32] | None = None, features: tuple[NDArray[np.float32], ...] = ()
) -> Step:
    """Return a step of sequences of these lengths. ids: of all tokens; None: 0."""
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    positions = np.concatenate([np.zeros(0, np.int32), *(np.arange(length, dtype=np.int32) for length in lengths)])
    token_ids = np.zeros(ends[-1], np.int32) if ids is None else ids
    return Step(token_ids, ends, positions, np.zeros(0, np.int32), features=features)
