"""Memory while a checkpoint is loaded: little more than the weights, Python and the rest of the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastattn
from tests.reference.checkpoints import write_gpt2

SHAPE = {"vocab_size": 20_000, "n_positions": 64, "n_embd": 768, "n_layer": 6, "n_head": 12}
FLOAT_BYTES = 4 * (20_064 * 768 + 6 * 12 * 768 * 768)
FACTORS = {"float32": 1.15, "bfloat16": 1.2, "int8": 1.2, "int4": 1.2}  # of the packed weights
ALLOWANCE = 120_000_000
DTYPES = tuple(FACTORS)

PEAK = """
import json, re, sys
from fastattn.api.auto import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=sys.argv[2], threads=2)
# not ru_maxrss, which a process takes over from the one that started it
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
print(json.dumps([peak, model.executor.weight_bytes]))
"""


def peak(folder: Path, dtype: str) -> tuple[int, int]:
    """Return the peak resident bytes of a process that loads a model, and the bytes of its weights."""
    command = [sys.executable, "-c", PEAK, str(folder), dtype]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: tuple[int, int] = tuple(json.loads(done.stdout))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("gpt2"), **SHAPE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_from_floats(folder: Path, dtype: str) -> None:
    found, weights = peak(folder, dtype)
    assert found <= FACTORS[dtype] * weights + ALLOWANCE
    if dtype == "int4":  # so that a load that stores all floats fails the test
        assert FLOAT_BYTES + weights > FACTORS[dtype] * weights + ALLOWANCE


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_from_a_quantized_directory(folder: Path, dtype: str, tmp_path: Path) -> None:
    found, weights = peak(fastattn.quantize(folder, tmp_path / "out", dtype=dtype), dtype)
    assert found <= FACTORS[dtype] * weights + ALLOWANCE
