"""Fixtures that all tests share."""

from __future__ import annotations

import signal

import hypothesis
import numpy as np
import pytest

# A shell ignores interrupts for background jobs, and processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test depends on a clock: a busy machine may need any amount of time to draw or run an example.
hypothesis.settings.register_profile("no clock", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("no clock")


@pytest.fixture(params=["numpy", "cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Return each executor in turn: the float64 specification and the C++ one."""
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator with a fixed seed."""
    return np.random.default_rng(20250101)
