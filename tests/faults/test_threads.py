"""Threads that cannot start, that end, or that have an unusual setup."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fastattn import _core, ops
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.errors import Cancelled, InputError
from tests.reference.checkpoints import write_gpt2
from tests.reference.float_mode import FLUSHING, TOWARD_ZERO, caller_mode, mode_of_caller
from tests.reference.hang import HANG_SECONDS
from tests.reference.package import PYTHON_ENVIRONMENT


def run_script(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=HANG_SECONDS, env=PYTHON_ENVIRONMENT, check=False,
    )  # fmt: skip


def test_fault_60_threads_that_cannot_start_are_an_error() -> None:
    """Every thread reserves address space for its stack: 8 MiB with glibc, 128 KiB with musl. The limit is 16 MiB more
    than the process uses already."""
    done = run_script(
        """
import resource
from pathlib import Path
from fastattn import _core
from fastattn.errors import OutOfMemory

engine = _core.Engine(500)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20),) * 2)
try:
    engine.cancel()  # starts the threads
except OutOfMemory as error:
    print(error)
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("threads: expected to start 500")


def test_no_threads_are_refused() -> None:
    with pytest.raises(InputError, match="threads"):
        _core.Engine(0).cancel()
    with pytest.raises(InputError, match="threads"):
        _core.measure_limits(0)


def test_two_threads_measure_the_machine_at_once() -> None:
    """Each thread has its own buffer; their sizes differ."""
    rates: list[float] = []

    def measure(read_bytes: int) -> None:
        rates.extend(_core.measure_limits(1, 0.0, read_bytes)["read_gbps"] for _ in range(20))

    threads = [threading.Thread(target=measure, args=(size,)) for size in (1 << 16, 1 << 22, 1 << 24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rates) == 60
    assert min(rates) > 0


def test_fault_62_the_interpreter_ends_during_a_call_of_a_daemon_thread() -> None:
    done = run_script(
        """
import threading, time
import numpy as np
from fastattn import _core, ops

a = np.ones((1500, 1500), np.float32)
started = threading.Event()

def work():
    while True:
        ops.matmul(a, a)
        started.set()

threading.Thread(target=work, daemon=True).start()
started.wait()
print("end")
"""
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.torch
def test_fault_23_flush_to_zero_of_the_calling_thread_changes_nothing() -> None:
    torch = pytest.importorskip("torch")
    x = np.full((4000, 64), 1e-40, np.float32)
    identity = np.eye(64, dtype=np.float32)
    try:
        assert torch.set_flush_denormal(True)
        result = ops.linear(x, identity)
        zero = torch.full((4,), 1e-40) * 1.0
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(result, x)
    assert not zero.any()  # the caller's own setting is unchanged


@pytest.mark.parametrize("mode", [FLUSHING, TOWARD_ZERO], ids=["flushing", "toward zero"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_the_float_mode_of_the_calling_thread_changes_no_model(dtype: str, mode: int, tmp_path: Path) -> None:
    write_gpt2(tmp_path, vocab_size=131, n_positions=100, n_embd=96, n_layer=2, n_head=3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, threads=1)
    ids = np.arange(70, dtype=np.int32)
    expected = model(ids).logits
    with caller_mode(mode):
        before = mode_of_caller()
        found = model(ids).logits
        after = mode_of_caller()
    assert before == after
    assert before & mode == mode
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8", "int4"])
def test_a_cancel_while_weights_are_read_is_not_a_weight(form: str, transposed: bool, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    rows, columns = 4096, 1024
    np.ones((rows, columns), np.float32).tofile(file)
    engine, done = _core.Engine(2), threading.Event()

    def cancel() -> None:
        while not done.is_set():
            engine.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        with open(file, "rb") as opened, pytest.raises(Cancelled):  # noqa: PT012
            for i in range(200):
                stored = (columns, rows) if transposed else (rows, columns)
                part = ("w", "F32", *stored, (opened.fileno(), 0))
                engine.load(f"w{i}", "matrix", form, [part], transposed=transposed)
    finally:
        done.set()
        thread.join()


def test_a_weight_is_not_replaced(tmp_path: Path) -> None:
    """Existing executors have the address of the first one."""
    file = tmp_path / "weights"
    np.arange(12, dtype=np.float32).tofile(file)
    engine = _core.Engine(1)
    with open(file, "rb") as opened:
        engine.load("w", "vector", "float32", [("w", "F32", 4, 1, (opened.fileno(), 0))])
        with pytest.raises(InputError, match="w: expected a new name"):
            engine.load("w", "vector", "float32", [("w", "F32", 12, 1, (opened.fileno(), 0))])
    assert engine.weight_bytes == 4 * 4
