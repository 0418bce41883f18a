"""Fault 59: a fork while another thread is in the middle of native work, including the first work of its process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reference.checkpoints import write_gpt2
from tests.reference.hang import HANG_SECONDS

# The parent has loaded everything and run nothing. Each child starts work in a thread and forks at a random moment
# during it; the grandchild then does the same work. A grandchild that does not end waits for a thread that it does not
# have.
SCRIPT = """
import os, random, signal, sys, threading, time
import numpy as np
import fastattn as fa

{setup}

def grandchild_ends(delay):
    started = threading.Event()

    def first():
        started.set()
        work()

    threading.Thread(target=first).start()
    started.wait()
    time.sleep(delay)
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)  # ends it if it hangs
        work()
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0

def ends(delay):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if grandchild_ends(delay) else 1)
    return os.waitpid(pid, 0)[1] == 0

delays = random.Random(1)
for i in range({tries}):
    delay = delays.random() * {longest}
    if not ends(delay):
        sys.exit(f"try {{i}}: the grandchild forked after {{delay * 1e6:.0f}} us did not end")
print("all ended")
"""
OPS = """
from fastattn import ops
x = np.ones((64, 64), np.float32)

def work():
    ops.matmul(x, x)
"""
MODEL = """
lm = fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)

def work():
    lm(np.arange(40, dtype=np.int32), output_hidden_states=True)
    lm.generate([1, 2, 3], max_new_tokens=4)
"""


def run_script(setup: str, folder: Path, *, tries: int, longest: float) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(setup=setup, tries=tries, longest=longest), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "all ended\n"), done.stderr


def test_fault_59_fork_in_the_first_op(tmp_path: Path) -> None:
    run_script(OPS, tmp_path, tries=120, longest=4e-4)


@pytest.mark.parametrize("longest", [2e-3, 2e-2])
def test_fault_59_fork_in_the_first_step_of_a_model(tmp_path: Path, longest: float) -> None:
    folder = write_gpt2(tmp_path, vocab_size=300, n_positions=64, n_embd=192, n_layer=2, n_head=4)
    run_script(MODEL, folder, tries=80, longest=longest)


DRAWING = """
import os, signal, sys, threading, time
import fastattn as fa

lm = fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)
options = {"max_new_tokens": 30, "do_sample": True, "seed": 3, "eos_token_id": -1}
prompts = [[i, i + 1] for i in range(20)]

def texts():
    return [ids.tolist() for ids in lm.generate(prompts, **options)]

expected = texts()
done = threading.Event()

def draw_on():
    while not done.is_set():
        texts()

thread = threading.Thread(target=draw_on)
thread.start()
codes = []
for _ in range(15):
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)
        os._exit(0 if texts() == expected else 1)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    time.sleep(0.003)
done.set()
thread.join()
print(codes)
"""


def test_fault_59_fork_in_the_middle_of_a_text(tmp_path: Path) -> None:
    """The child draws the same tokens, whatever the parent's threads were writing."""
    folder = write_gpt2(tmp_path, vocab_size=300, n_positions=64, n_embd=192, n_layer=2, n_head=4)
    done = subprocess.run(
        [sys.executable, "-c", DRAWING, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"{[0] * 15}\n"), done.stderr


IN_HANDLER = """
import os, signal, sys
import numpy as np
import fastattn as fa
from fastattn.errors import Cancelled

threads, nested, what = int(sys.argv[2]), sys.argv[3] == "nested", sys.argv[4]
lm = fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=threads)
text = np.arange(100, dtype=np.int32)
expected = lm(text, logits_to_keep=1).logits
parent, children, found = os.getpid(), [], []
x = np.ones((512, 512), np.float32)

def works():
    return np.array_equal(lm(text, logits_to_keep=1).logits, expected) and fa.ops.matmul(x, x)[0, 0] == 512

def fork(*_):
    if not inside:  # between two calls
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        return
    children.append(os.fork())
    if children[-1] == 0:
        signal.alarm(300)  # ends it if it hangs
        if nested:
            found.append(works())

def call():
    if what == "step":
        lm([text] * 4, logits_to_keep=1)
    elif what == "op":
        fa.ops.matmul(x, x)
    elif what == "generate":
        lm.generate([1, 2, 3], max_new_tokens=50, eos_token_id=-1)
    else:
        fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=threads)

call()
inside = False
outcome = "none" if works() else "wrong"
signal.signal(signal.SIGALRM, fork)
signal.setitimer(signal.ITIMER_REAL, 0.02)
while not children:  # the signal comes during a call, sooner or later
    try:
        inside = True
        call()
        inside, outcome = False, "finished"
    except Cancelled as error:
        outcome = "cancelled"
        if "forked in a signal handler" not in str(error):
            raise
if os.getpid() != parent:
    os._exit(0 if works() and all(found) else 1)
if outcome != "finished" or not works():
    sys.exit(f"in the parent: {outcome}")
print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
"""


@pytest.mark.parametrize("nested", ["plain", "nested"])
@pytest.mark.parametrize("what", ["step", "op", "generate", "load"])
def test_fault_59_fork_in_a_signal_handler_during_a_call(tmp_path: Path, what: str, nested: str) -> None:
    """The child's call finishes or raises Cancelled, and the model works there, even in the handler."""
    folder = write_gpt2(tmp_path, vocab_size=2000, n_positions=128, n_embd=192, n_layer=4, n_head=4)
    for threads in ("1", "2", "2"):
        done = subprocess.run(
            [sys.executable, "-c", IN_HANDLER, str(folder), threads, nested, what],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


NO_IMPORT = """
import sys
import numpy as np
import fastattn as fa

lm = fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)
{first}
before = set(sys.modules)
lm(np.arange(9, dtype=np.int32), output_hidden_states=True)
lm([[1, 2], [3]])
{second}
print(sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", ""),
        ("lm.generate", "lm.generate([1, 2, 3], max_new_tokens=2)"),
        ("fa.ops", "fa.ops.softmax(np.ones((2, 3), np.float32))"),
    ],
)
def test_fault_59_a_call_imports_nothing(tmp_path: Path, first: str, second: str) -> None:
    """A forked child waits forever for a module that another thread was importing."""
    done = subprocess.run(
        [sys.executable, "-c", NO_IMPORT.format(first=first, second=second), str(write_gpt2(tmp_path))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
