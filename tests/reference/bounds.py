"""The assertion that two computations of one Program agree. No test defines its own tolerance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastattn.graph.error_bounds import eps as eps
from fastattn.graph.error_bounds import program_bound as program_bound
from fastattn.graph.ir import Program


def assert_close(
    actual: NDArray[np.floating], expected: NDArray[np.floating], program: Program, *, longest: int, scale: float = 0.0
) -> None:
    """Assert that actual (its dtype sets the precision) is within `program_bound` of expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    if not actual.size:
        return
    found = np.abs(actual - expected).max()
    limit = program_bound(program, actual.dtype, longest=longest, scale=max(scale, float(np.abs(expected).max())))
    assert found <= limit, f"expected at most {limit:.3g} from the reference, got {found:.3g}"
