"""Every test of the CUDA executor runs on the emulated GPU, and also on a real one if available."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import fastattn.executors.cuda
from tests.reference.cuda_emulation import emulated_module

DRIVER = Path("/dev/nvidiactl")


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.cuda)])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Select what device="cuda" means in a test."""
    if request.param == "emulated":
        module = emulated_module()
        monkeypatch.setattr(fastattn.executors.cuda, "extension", lambda: module)
        return "emulated"
    if not DRIVER.exists():
        pytest.skip(f"needs an NVIDIA GPU: there is no {DRIVER}")
    if importlib.util.find_spec("fastattn._cuda") is None:
        pytest.skip("needs fastattn._cuda, which is built where nvcc is found")
    fastattn.executors.cuda.require_device()  # with a GPU, failing to reach it is a test failure
    return "gpu"
