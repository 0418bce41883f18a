"""Runs sentence-transformers on the same folder as ours, for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tasks.bounds import assert_as_good_as


class Reference:
    """sentence-transformers in float64 and in float32, with the same constructor options."""

    def __init__(self, folder: Path, **options: Any) -> None:
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)
        module = pytest.importorskip("sentence_transformers")
        self.exact, self.rough = (
            module.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype}, **options)
            for dtype in (torch.float64, torch.float32)
        )

    def check(self, found: np.ndarray, method: str, *args: Any, **options: Any) -> None:
        """Compare an array with the result of a method."""
        exact, rough = (getattr(model, method)(*args, **options) for model in (self.exact, self.rough))
        assert_as_good_as(found, exact, rough)
