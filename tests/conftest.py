"""Fixtures that all tests share."""

from __future__ import annotations

import signal

import numpy as np
import pytest

# In the background of a shell interrupts are ignored, and processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["numpy", "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Every executor: the float64 specification and the C++ one."""
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20250101)
