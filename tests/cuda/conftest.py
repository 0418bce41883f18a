"""Every test of the CUDA executor runs over the emulated GPU, and on a real one where there is one."""

from __future__ import annotations

import pytest

import fastattn.cuda
from fastattn.errors import FastattnError
from tests.reference.cuda_emulation import emulated_module


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.cuda)])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What device="cuda" means in a test."""
    if request.param == "emulated":
        module = emulated_module()
        monkeypatch.setattr(fastattn.cuda, "extension", lambda: module)
        return "emulated"
    try:
        fastattn.cuda.require_device()
    except FastattnError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")
    return "gpu"
