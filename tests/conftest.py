"""Fixtures that all tests share."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest


@pytest.fixture(params=["numpy", "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Every executor: the float64 specification, and the C++ one where the extension module has been built."""
    if request.param == "cpu" and importlib.util.find_spec("fastattn._core") is None:
        pytest.skip("fastattn._core is not built")
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20250101)
