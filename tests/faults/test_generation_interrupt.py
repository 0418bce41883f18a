"""Fault 58: Ctrl-C in a prompt and between tokens comes within 100 ms, and the model stays usable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastattn

pytestmark = pytest.mark.torch
SCRIPT = """
import os, signal, sys, threading, time
import fastattn

model = fastattn.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)
before = model.generate([1, 2, 3], max_new_tokens=5).tolist()
sent = [0.0]

def interrupt():
    sent[0] = time.perf_counter()
    os.kill(os.getpid(), signal.SIGINT)

waits = []
for work in ("prompts", "tokens", "stream"):
    for delay in (0.05, 0.13, 0.21):
        threading.Timer(delay, interrupt).start()
        try:
            while True:
                if work == "prompts":
                    model.generate([[7] * 400] * 64, max_new_tokens=1, eos_token_id=-1)
                elif work == "tokens":
                    model.generate([[1, 2, 3]] * 4, max_new_tokens=400, eos_token_id=-1)
                else:
                    list(model.stream([1, 2, 3], max_new_tokens=400, eos_token_id=-1))
        except KeyboardInterrupt:
            waits.append(time.perf_counter() - sent[0])
        assert model.generate([1, 2, 3], max_new_tokens=5).tolist() == before
print(*sorted(waits))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a prompt of 400 tokens is work."""
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
    """What a process prints that runs the script on a model."""
    sources = str(Path(fastattn.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": sources}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fault_58_ctrl_c_and_go_on(folder: Path) -> None:
    waits = [float(seconds) for seconds in output_of(SCRIPT, folder).split()]
    assert len(waits) == 9
    assert waits[4] <= 0.1
    assert waits[-1] <= 0.5  # on a machine that is busy with something else


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

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
try:
    while not any("signal handler" in text for text in seen):
        model([[7] * 400] * 32)
finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
assert model.generate([1, 2, 3], max_new_tokens=400, eos_token_id=-1).tolist() == before
print(*sorted(set(seen)), sep="\\n")
"""


def test_a_signal_handler_that_calls_the_model_of_its_step(folder: Path) -> None:
    """A typed error where it cannot run, and no deadlock."""
    assert set(output_of(REENTER, folder).splitlines()) <= {
        "ran",
        "expected no call from a signal handler that interrupts a call of the same thread",
    }
