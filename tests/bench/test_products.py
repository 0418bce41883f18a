"""The separate products of benchmarks/ compute x @ weight.T in every dtype."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Largest error relative to |x| |weight|: half a step of each rounded operand, and the sum in float32.
STEP = {"float32": 0.0, "bfloat16": 2.0**-8, "int8": 2.0**-6, "int4": 2.0**-2}


@pytest.mark.parametrize("dtype", STEP)
def test_a_product(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("work", "products"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import products  # type: ignore[import-not-found]
    import work  # type: ignore[import-not-found]

    item = work.Product(5, 64, 96, cached=False)
    y = products.Fastattn(item, 1, dtype).run()
    x, weights = products.matrices(item)
    last = weights[(work.LINEARS - 1) % item.weights].astype(np.float64)
    size = np.linalg.norm(x[0]) * np.linalg.norm(last, axis=1)
    assert np.all(np.abs(y[0] - last @ x[0]) <= (STEP[dtype] + item.k * 2.0**-23) * size)
