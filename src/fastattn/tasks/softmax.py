"""softmax in float64, for the scores of pipelines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the softmax over the last axis. A row with NaN or +infinity, or of -infinity only, gives NaN."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=-1, keepdims=True, initial=-np.inf)
    finite = np.isfinite(top)
    weights = np.exp(np.where(finite, wide - np.where(finite, top, 0), np.nan))
    result: NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True)
    return result
