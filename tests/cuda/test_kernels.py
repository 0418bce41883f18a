"""The kernels in the emulation, with three orders of a block's threads, and the memory plan."""

from __future__ import annotations

import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

from tests.reference.cuda_emulation import build

ORDERS = 3


def run(*arguments: str) -> str:
    done = subprocess.run([build() / "fastattn_cuda_tests", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def test_kernels_in_the_emulation() -> None:
    """Run every case, as many in parallel as there are CPUs."""
    names = run("--list").split()
    # One case from every file.
    assert {"layer_norm", "linear_float32_as_cpu", "kv_store", "sampling_as_cpu", "plan"} <= set(names)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name, output in zip(names, pool.map(run, names), strict=True):
            assert re.findall(rf"^{name} .* passed$", output, re.MULTILINE) != []
            assert output.endswith(f"\n{ORDERS} passed, 0 failed\n")
