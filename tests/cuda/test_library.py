"""Products by cuBLASLt, replaced by a library of our own: how it is found, and what is requested from it."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn.executors.cuda
from fastattn.api.model import load_executor
from fastattn.checkpoint import open_checkpoint
from fastattn.executors.cuda import CudaExecutor
from fastattn.models.registry import BuiltModel, build
from tests.cuda.test_models import BERT, CASES, GPT2, equal, ragged
from tests.reference.checkpoints import write_bert, write_gpt2
from tests.reference.cuda_emulation import emulated_module, fake_library

LIBRARIES = {"gpt2": (write_gpt2, "causal-lm", {**GPT2, "vocab_size": 132}), "bert": CASES["bert"]}


@pytest.fixture(params=LIBRARIES)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> BuiltModel:
    write, task, options = LIBRARIES[request.param]
    checkpoint = open_checkpoint(write(tmp_path, **options))
    return build(checkpoint.config, checkpoint.tensors, task)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> str:
    path = fake_library()
    monkeypatch.setattr(fastattn.executors.cuda, "extension", emulated_module)
    monkeypatch.setattr(fastattn.executors.cuda, "_library_paths", lambda: ["/nowhere/libcublasLt.so.13", path])
    return path


def test_float32_has_the_bits_of_the_cpu(library: str, built: BuiltModel, rng: np.random.Generator) -> None:
    """Products, and the executor's work around them: bias, activation, residual, rounding; with and without graphs.

    Matrices with an odd number of rows have no algorithm here, so they use the built-in kernel.
    """
    ours = CudaExecutor(built.program, built.tensors)
    assert ours.library == library
    theirs = load_executor(built.program, built.tensors, dtype="float32", device="cpu", threads=1)
    for lengths in ((1, 7, 0, 70), (5, 0, 3), (1, 1)):
        step = ragged(rng, lengths)
        expected = theirs.run(step)
        for _ in range(3):
            equal(ours.run(step), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32"])
def test_other_types(library: str, built: BuiltModel, rng: np.random.Generator, dtype: str) -> None:
    """As close to the built-in kernel as another summation order allows; tf32 rounds the operands like float16."""
    step = ragged(rng)
    ours = CudaExecutor(built.program, built.tensors, dtype=dtype, kv_dtype="float32").run(step)
    other = "float16" if dtype == "tf32" else dtype
    alike = CudaExecutor(built.program, built.tensors, dtype=other, kv_dtype="float32", library=False).run(step)
    exact = CudaExecutor(built.program, built.tensors, library=False).run(step)
    for name, value in exact.items():
        ours_off, alike_off = (_rms(found[name], value) for found in (ours, alike))
        assert 0 < ours_off < 2 * alike_off
        assert alike_off < 2 * ours_off


def test_the_emulated_gpu_never_loads_the_real_library(
    library: str, built: BuiltModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with a name of the real library is passed over, and so is the system's."""
    real = shutil.copy(library, tmp_path / "libcublasLt.so.13")
    monkeypatch.setattr(fastattn.executors.cuda, "_library_paths", lambda: [str(real)])
    executor = CudaExecutor(built.program, built.tensors)
    assert executor.library is None
    why = executor._engine.why_no_library.split("; ")
    assert [Path(reason.split(":")[0]).name for reason in why] == [
        "libcublasLt.so.13",
        "libcublasLt.so.13",
        "libcublasLt.so.12",
        "libcublasLt.so",
    ]
    assert all("the emulated GPU cannot use it" in reason for reason in why)


def test_products_of_the_slow_kernel_are_counted(library: str, built: BuiltModel) -> None:
    """Without the library, all products; with it, those of matrices for which it has no algorithm."""
    linears = [op for op in built.program.ops if op.kind == "linear"]
    odd = [op for op in linears if built.program.values[op.output].width % 2]
    assert CudaExecutor(built.program, built.tensors, library=False).built_in_products == len(linears)
    assert CudaExecutor(built.program, built.tensors).built_in_products == len(odd) < len(linears)


def test_info_names_the_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastattn.executors.cuda.describe().endswith(f"GiB; matrix products by {library}")
    monkeypatch.setenv("FAKE_CUBLAS_LT_FAILS", "1")
    assert "matrix products by a built-in kernel, which is slower: no cuBLASLt" in fastattn.executors.cuda.describe()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_leaves_the_library_alone(library: str, built: BuiltModel) -> None:
    """The library of the tests ends a process that destroys a handle of another."""
    executors = [CudaExecutor(built.program, built.tensors)]
    child = os.fork()
    if child == 0:
        executors.clear()
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    executors.clear()


def _rms(a: Any, b: Any) -> float:
    return float(np.sqrt(np.mean((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)))


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library that cannot be loaded, or that lacks the functions, is skipped."""
    monkeypatch.setattr(fastattn.executors.cuda, "extension", emulated_module)
    module: Any = emulated_module()
    monkeypatch.setattr(fastattn.executors.cuda, "_library_paths", lambda: [str(tmp_path / "no.so"), module.__file__])
    checkpoint = open_checkpoint(write_bert(tmp_path / "bert", **BERT))
    found = build(checkpoint.config, checkpoint.tensors, "encoder")
    executor = CudaExecutor(found.program, found.tensors)
    assert executor.library is None
    why = executor._engine.why_no_library
    assert "no.so: cannot open" in why
    assert "functions are missing" in why or "undefined symbol" in why


def test_a_library_that_does_not_start(
    library: str, built: BuiltModel, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUBLAS_LT_FAILS", "1")
    executor = CudaExecutor(built.program, built.tensors)
    assert executor.library is None
    assert "cublasLtCreate failed with status 1" in executor._engine.why_no_library
    step = ragged(rng)
    equal(executor.run(step), CudaExecutor(built.program, built.tensors, library=False).run(step))


def test_the_wheels_are_looked_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12"):
        path = tmp_path / "nvidia" / name
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = [Path(path).name for path in fastattn.executors.cuda._library_paths()]
    assert found == [
        "libcublasLt.so.13",
        "libcublasLt.so.12",
    ]
