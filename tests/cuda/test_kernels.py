"""The kernels in the emulation, with the threads of a block in three orders, and the plan of memory: one program."""

from __future__ import annotations

import re
import subprocess

from tests.reference.cuda_emulation import build


def test_kernels_in_the_emulation() -> None:
    done = subprocess.run([build() / "fastattn_cuda_tests"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    names = {line.split()[0] for line in done.stdout.splitlines() if line.endswith(" passed")}
    # Of every file of cases.
    assert {"layer_norm", "linear_float32_as_cpu", "kv_store", "sampling_as_cpu", "plan"} <= names
    total = re.search(r"^(\d+) passed, 0 failed$", done.stdout, re.MULTILINE)
    assert total is not None
    assert int(total[1]) == 3 * len(names)
