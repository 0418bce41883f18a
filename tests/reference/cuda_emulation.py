"""The CUDA executor on an emulated GPU: the same C++ and the same kernels, compiled by the C++ compiler.

`fastattn._cuda` and this module have the same source except for `csrc/cuda/cuda_api.cpp`. So this runs all of the
host's logic and the arithmetic of every kernel, but not the behavior of a real GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from tests.reference.lock import locked

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "cuda-emulation"
TARGETS = ("_cuda_emulated", "fake_cublas_lt", "fastattn_cuda_tests")


def _tool(name: str) -> str:
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        pytest.skip(f"compiles the CUDA executor for the CPU, which needs {name}")
    return found


@functools.cache
def build() -> Path:
    """Build TARGETS and return their folder; a second build compiles only what changed."""
    pytest.importorskip("pybind11", reason="compiles the CUDA executor for the CPU, which needs pybind11")
    import pybind11

    cmake, _ = _tool("cmake"), _tool("ninja")
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": _tool("ninja"),
        "FASTATTN_CUDA": "OFF",
        "FASTATTN_CUDA_EMULATION": "ON",
        "FASTATTN_ONLY_TARGETS": "scalar",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    defines = [f"-D{name}={value}" for name, value in options.items()]
    with locked(FOLDER):
        for command in (
            [cmake, "-S", str(ROOT), "-B", str(FOLDER), "-G", "Ninja", *defines],
            [cmake, "--build", str(FOLDER), "--target", *TARGETS],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return FOLDER


@functools.cache
def emulated_module() -> ModuleType:
    """Return a replacement for fastattn._cuda."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    spec = importlib.util.spec_from_file_location("_cuda_emulated", build() / f"_cuda_emulated{suffix}")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_library() -> str:
    """Return a file with the functions of cuBLASLt that the executor uses, for the emulated GPU."""
    return str(build() / "libfake_cublas_lt.so")
