"""Calls during a step of another thread, of a signal handler or of a forked child: none of them waits forever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reference import checkpoints
from tests.reference.cuda_emulation import ROOT, build
from tests.reference.hang import HANG_SECONDS

# `busy()` returns once the first step of the model has begun; long_step() takes much longer than that.
SETUP = """
import os, signal, sys, threading, time
import fastattn.executors.cuda
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.errors import ConfigError, InputError
from tests.reference.cuda_emulation import emulated_module

fastattn.executors.cuda.extension = emulated_module
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], device="cuda")
executor = model.executor

def busy():
    while executor._engine.workspace_bytes == 0:
        time.sleep(0.001)

def long_step():
    model([[1] * 200] * 8)

"""

NEW_EXECUTOR = """
def make():
    busy()
    executor.with_program(executor.program)
    print(executor._executor.graphs, "made")

thread = threading.Thread(target=make)
thread.start()
long_step()
thread.join()
"""

FORKED_CHILD = """
thread = threading.Thread(target=long_step)
thread.start()
busy()
child = os.fork()
if child == 0:
    for call in (
        lambda: model([1, 2]),
        lambda: executor.with_program(executor.program),
        lambda: executor._executor.graphs,
        lambda: executor.failed_graphs,
    ):
        try:
            call()
        except ConfigError as error:
            print("got one forked from it" in str(error), flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1])
thread.join()
"""

SIGNAL_HANDLER = """
def handler(*unused):
    model([1])

signal.signal(signal.SIGALRM, handler)
threading.Thread(target=lambda: (busy(), signal.raise_signal(signal.SIGALRM)), daemon=True).start()
try:
    long_step()
except InputError as error:
    print(error)
print(model([1]).logits.shape)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build()  # here, where the time does not count
    return checkpoints.write_gpt2(tmp_path / "gpt2", vocab_size=131, n_positions=200, n_embd=24, n_head=3, n_layer=2)


def run(code: str, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SETUP + code, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_executor_is_made_during_a_step(folder: Path) -> None:
    """It waits for the step without the GIL, because the step's check for signals needs it."""
    assert run(NEW_EXECUTOR, folder) == ["0 made"]


def test_a_child_forked_during_a_step(folder: Path) -> None:
    """The child gets an error at once, because the lock of the step stays locked in it."""
    assert run(FORKED_CHILD, folder) == ["True"] * 4 + ["0"]


def test_a_signal_handler_that_calls_the_model(folder: Path) -> None:
    first, second = run(SIGNAL_HANDLER, folder)
    assert "expected no call within a call of the same thread" in first
    assert second == "(1, 131)"
