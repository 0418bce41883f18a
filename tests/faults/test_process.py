"""Faults 58 to 62 within one process: forks, threads, memory limits, forced targets."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fastattn import _core
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.errors import Cancelled, ConfigError, InputError
from tests.reference.checkpoints import write_gpt2
from tests.reference.hang import HANG_SECONDS

TEXT = [3, 1, 4, 1, 5, 9, 2, 6]
PRELUDE = """
import os, resource, sys
import numpy as np
import fastattn as fa
lm = fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)
"""


def run_python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a separate process with the folder as its argument; it may take a minute on a busy machine."""
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


def wide(folder: Path) -> Path:
    """Write a model so large that its steps run on all threads."""
    return write_gpt2(folder, vocab_size=300, n_positions=64, n_embd=192, n_layer=2, n_head=4)


def test_fault_59_fork_after_native_work(tmp_path: Path) -> None:
    code = (
        PRELUDE
        + """
ids = np.arange(40, dtype=np.int32)
before = lm(ids).logits
child = os.fork()
if child == 0:
    same = np.array_equal(lm(ids).logits, before)
    other = fa.ops.softmax(np.zeros((2, 3), np.float32)).shape == (2, 3)
    os._exit(0 if same and other else 3)
_, status = os.waitpid(child, 0)
assert np.array_equal(lm(ids).logits, before)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    )
    done = run_python(code, wide(tmp_path))
    assert done.returncode == 0, done.stderr


def test_fault_60_address_space_limit(tmp_path: Path) -> None:
    code = (
        PRELUDE
        + """
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
caches = []
try:
    while True:
        caches.append(lm(np.zeros((len(caches) + 1) * 40, np.int32).reshape(-1, 40)).logits)
        if len(caches) > 2000:
            sys.exit(5)
except MemoryError as error:
    caches.clear()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    lm(np.arange(10))
    print(type(error).__name__)
"""
    )
    done = run_python(code, wide(tmp_path))
    assert done.returncode == 0, done.stderr


def test_fault_62_many_threads_one_model(tmp_path: Path) -> None:
    lm = AutoModelForCausalLM.from_pretrained(wide(tmp_path), threads=2)
    texts = [np.arange(i % 7, i % 7 + 3 + i, dtype=np.int32) for i in range(32)]
    expected = [lm(text).logits for text in texts]
    wrong: list[int] = []

    def work(i: int) -> None:
        if not np.array_equal(lm(texts[i]).logits, expected[i]):
            wrong.append(i)

    threads = [threading.Thread(target=work, args=(i % 32,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("target", ["neon", "sse9"])
def test_fault_62_forced_target_that_cannot_run(target: str) -> None:
    if target in _core.available_targets():
        pytest.skip(f"{target} runs here")
    code = "from fastattn.executors import cpu\ntry: cpu.info()\nexcept Exception as e: print(type(e).__name__, e)"
    out = run_python(code, Path(), FASTATTN_FORCE_TARGET=target).stdout
    assert out.startswith(ConfigError.__name__)
    assert target in out


SUB_INTERPRETER = """
import importlib.util, sys
import _xxsubinterpreters as interpreters

{before}
code = '''
import importlib.util
spec = importlib.util.spec_from_file_location({name!r}, {path!r})
try:
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
except ImportError as error:
    print(error, flush=True)
'''
interpreters.run_string(interpreters.create(), code)
"""


@pytest.mark.parametrize("before", ["", "import fastattn.ops"])
@pytest.mark.parametrize("name", ["_core", "_cuda"])
def test_fault_62_import_in_a_sub_interpreter(name: str, before: str) -> None:
    pytest.importorskip("_xxsubinterpreters")  # its name until Python 3.12
    spec = importlib.util.find_spec(f"fastattn.{name}")
    if spec is None:
        pytest.skip("this build has no CUDA extension")
    code = SUB_INTERPRETER.format(name=f"fastattn.{name}", path=spec.origin, before=before)
    done = run_python(code, Path())
    expected = f"{name}: expected the main interpreter, got a sub-interpreter; use a process instead\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


DAEMON = """
import sys, threading
import numpy as np
import fastattn as fa

{setup}
threading.Thread(target=work, daemon=True).start()
"""
DAEMON_WORKS = {
    "first op": "def work(): fa.ops.softmax(np.ones((8, 8), np.float32))",
    "ops": "def work():\n    while True: fa.ops.softmax(np.ones((64, 64), np.float32))",
    "first load": "def work(): fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)([[1, 2, 3]])",
    "loads": "def work():\n    while True: fa.AutoModelForCausalLM.from_pretrained(sys.argv[1])",
    "texts": (
        "lm = fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)\n"
        "def work():\n    while True: lm.generate([1, 2, 3], max_new_tokens=8)"
    ),
}


@pytest.mark.parametrize("work", DAEMON_WORKS)
def test_fault_62_the_interpreter_ends_during_a_call_of_a_daemon_thread(tmp_path: Path, work: str) -> None:
    """No abort, whatever the thread is doing. A first op used to abort two runs out of three."""
    folder = write_gpt2(tmp_path)
    for _ in range(10):
        done = run_python(DAEMON.format(setup=DAEMON_WORKS[work]), folder)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_cancel_from_another_thread(tmp_path: Path) -> None:
    """The step ends with Cancelled, the cache is unchanged, and the model still works."""
    model = write_gpt2(tmp_path, vocab_size=5000, n_positions=1024, n_embd=384, n_layer=6, n_head=6)
    lm = AutoModelForCausalLM.from_pretrained(model, threads=2)
    batch = [np.arange(1000, dtype=np.int32)] * 8
    outcome: list[str] = []
    started = threading.Event()

    def work() -> None:
        started.set()
        try:
            while True:  # a cancel between two steps does nothing
                lm(batch, logits_to_keep=1)
        except Cancelled:
            outcome.append("cancelled")

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    while thread.is_alive():
        lm.executor.cancel()  # type: ignore[attr-defined]
        thread.join(0.01)
    assert outcome == ["cancelled"]
    assert lm(TEXT).logits.shape == (len(TEXT), 5000)


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**31, 2**70])
def test_fault_62_number_of_threads(tmp_path: Path, threads: int) -> None:
    with pytest.raises(InputError, match="threads"):
        AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), threads=threads)
