"""Fault 58: Ctrl-C in a prompt and between tokens stops the work immediately, and the model remains usable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.reference.hang import HANG_SECONDS
from tests.reference.package import PYTHON_ENVIRONMENT

pytestmark = pytest.mark.torch
# Counts the steps that finish after the signal was sent: one may be about to finish, and no other follows.
SCRIPT = """
import os, signal, sys, threading
import fastattn
from fastattn.generation.scheduler import Scheduler

model = fastattn.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)
before = model.generate([1, 2, 3], max_new_tokens=5).tolist()
sent, after = threading.Event(), []
plain_step = Scheduler.step

def step(self):
    draws = plain_step(self)
    if sent.is_set():
        after.append(len(draws))
    return draws

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    sent.set()

for work in ("prompts", "tokens", "stream"):
    for delay in (0.05, 0.13, 0.21):
        sent.clear()
        after.clear()
        Scheduler.step = step
        timer = threading.Timer(delay, interrupt)
        try:
            timer.start()
            while True:
                if work == "prompts":
                    model.generate([[7] * 400] * 64, max_new_tokens=1, eos_token_id=-1)
                elif work == "tokens":
                    model.generate([[1, 2, 3]] * 4, max_new_tokens=400, eos_token_id=-1)
                else:
                    list(model.stream([1, 2, 3], max_new_tokens=400, eos_token_id=-1))
        except KeyboardInterrupt:
            timer.join()
            Scheduler.step = plain_step
            print(work, len(after))
        assert model.generate([1, 2, 3], max_new_tokens=5).tolist() == before
"""
# One long step. The signal arrives in the middle of it, so its tokens must not reach the cache. A step that ended
# before the signal is tried again.
ONE_STEP = """
import os, signal, sys, threading, time
import numpy as np
import fastattn
from fastattn.graph.ir import Step

model = fastattn.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)
n, copies = 400, 64
rows = np.arange(n * copies, dtype=np.int32)
for attempt in range(100):
    caches = tuple(model.new_cache() for _ in range(copies))
    ends = np.arange(copies + 1, dtype=np.int32) * n
    step = Step(np.full(n * copies, 7, np.int32), ends, rows % n, rows[:1], caches=caches)
    running = threading.Event()

    def interrupt():
        running.wait()
        time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        running.set()
        model.executor.run(step)
        thread.join()
    except KeyboardInterrupt:
        pass
    thread.join()
    lengths = {cache.length for cache in caches}
    for cache in caches:
        cache.close()
    if lengths == {0}:
        break
print(lengths)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model so large that a prompt of 400 tokens takes time."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from tests.tasks.tokenizers import write_gpt2

    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=266, n_positions=512, n_embd=256, n_layer=6, n_head=4, bos_token_id=265, eos_token_id=265
    )
    folder = tmp_path_factory.mktemp("gpt2")
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return write_gpt2(folder)


def output_of(script: str, folder: Path) -> str:
    """Return the output of a process that runs the script on a model."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True, text=True, timeout=HANG_SECONDS, env=PYTHON_ENVIRONMENT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fault_58_ctrl_c_and_go_on(folder: Path) -> None:
    lines = [line.split() for line in output_of(SCRIPT, folder).splitlines()]
    assert [work for work, _ in lines] == [work for work in ("prompts", "tokens", "stream") for _ in range(3)]
    assert all(int(steps) <= 1 for _, steps in lines)


def test_fault_58_ctrl_c_inside_a_step(folder: Path) -> None:
    assert output_of(ONE_STEP, folder).strip() == "{0}"


REENTER = """
import signal, sys
import fastattn

model = fastattn.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)
before = model.generate([1, 2, 3], max_new_tokens=400, eos_token_id=-1).tolist()
seen = []

def handler(*_):
    for call in (lambda: model.generate([1, 2, 3], max_new_tokens=5), lambda: model([[1, 2, 3]])):
        try:
            call()
            seen.append("ran")
        except fastattn.errors.InputError as error:
            seen.append(str(error))
    signal.setitimer(signal.ITIMER_REAL, 0.02)  # the next one, so that no handler interrupts another

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.02)
try:
    while not any("signal handler" in text for text in seen):
        model([[7] * 400] * 32)
finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
assert model.generate([1, 2, 3], max_new_tokens=400, eos_token_id=-1).tolist() == before
print(*sorted(set(seen)), sep="\\n")
"""


def test_a_signal_handler_that_calls_the_model_of_its_step(folder: Path) -> None:
    """A typed error if it cannot run, and no deadlock."""
    assert set(output_of(REENTER, folder).splitlines()) <= {
        "ran",
        "expected no call within a call of the same thread; do not call fastattn in a signal handler or in a function "
        "that computes weights",
    }
