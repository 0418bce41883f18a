"""Faults 58, 59, 60 and 62 with many callers of one model: signals, forks, exits and finalizers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.reference.checkpoints import write_gpt2
from tests.reference.hang import HANG_SECONDS
from tests.reference.package import PYTHON_ENVIRONMENT

SIZES = {"vocab_size": 300, "n_positions": 512, "n_embd": 96, "n_layer": 3, "n_head": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("gpt2"), **SIZES)


PRELUDE = """
import os, random, signal, sys, threading, time
import fastattn as fa

lm = fa.AutoModelForCausalLM.from_pretrained(sys.argv[1], threads=2)

def text(i, n=60):
    return lm.generate([i + 1, 2, 3] * (i + 1), max_new_tokens=n, eos_token_id=-1).tolist()

expected = [text(i) for i in range(6)]
lm.engine.run(lambda pages: pages.tree.clear())
wrong = []

def work(i, times=4):
    for _ in range(times):
        try:
            if text(i) != expected[i]:
                wrong.append(i)
        except BaseException as error:
            wrong.append((i, repr(error)))
            return

def start(n=5, times=4):
    threads = [threading.Thread(target=work, args=(i, times)) for i in range(1, n + 1)]
    for thread in threads:
        thread.start()
    return threads

def finish(threads):
    for thread in threads:
        thread.join()
    work(0, 1)  # the next call repairs what a signal interrupted
    assert not wrong, wrong
    assert lm.kv_stats().in_use == 0, lm.kv_stats()
"""

STREAM = """
import numpy as np
from fastattn.generation.call import Call
from fastattn.generation.generate import make_requests
from fastattn.generation.options import GenerationOptions

def call():
    options = GenerationOptions(max_new_tokens=40, eos_token_id=-1)
    return Call(make_requests(lm, [np.array([5, 6], np.int32)], options, tokenizer=None), every_token=True)

tokens = [draw.token_id for draw in lm.engine.draws(call())]
"""


def run(folder: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script, str(folder)],
        env=PYTHON_ENVIRONMENT, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fault_58_ctrl_c_in_one_of_many_callers(folder: Path) -> None:
    """The main thread leads or waits. Its call ends within 100 ms or so; the others get their texts."""
    script = """
delays = random.Random(1)
late = []
for turn in range(12):
    threads = start(turn % 3)
    sent = []
    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
    timer = threading.Timer(0.01 + 0.05 * delays.random(), interrupt)
    try:
        timer.start()
        while True:
            text(0, 400)
    except KeyboardInterrupt:
        late.append(time.monotonic() - sent[0])
    timer.join()
    finish(threads)
    work(0)
    assert not wrong
print(len(late))
"""
    assert run(folder, script) == "12\n"


def test_fault_58_a_signal_at_any_place_of_the_leader(folder: Path) -> None:
    """A handler that raises, many times; other callers are not affected and the memory is free."""
    script = """
class Stop(Exception):
    pass

def handler(*_):
    raise Stop

signal.signal(signal.SIGALRM, handler)
delays, stopped = random.Random(2), 0
for turn in range(400):
    threads = start(1, 1) if turn % 10 == 0 else []
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.012 * delays.random())
        for piece in lm.engine.draws(call()) if turn % 2 else [text(0, 40)]:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Stop:
        stopped += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    finish(threads)
work(0)
finish(start(2))
print(stopped > 50)
"""
    assert run(folder, STREAM + script) == "True\n"


def test_fault_59_a_fork_while_threads_generate(folder: Path) -> None:
    """A child generates the same texts, and continues a stream of its parent."""
    script = (
        STREAM
        + """
codes = []
threads = start(5, 40)
for _ in range(12):
    time.sleep(0.01)
    stream = lm.engine.draws(call())
    first = [next(stream).token_id for _ in range(5)]
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)  # ends it, should it hang
        rest = [draw.token_id for draw in stream]
        fine = first + rest == tokens and all(text(i) == expected[i] for i in range(6))
        for thread in start(3):
            thread.join()
        os._exit(0 if fine and not wrong else 1)
    assert first + [draw.token_id for draw in stream] == tokens
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
finish(threads)
print(codes)
"""
    )
    assert run(folder, script) == f"{[0] * 12}\n"


def test_fault_59_a_fork_while_asyncio_tasks_generate(folder: Path) -> None:
    """The thread that led for the tasks does not exist in the child."""
    script = """
import asyncio

async def task(i):
    found = await lm.agenerate([i + 1, 2, 3] * (i + 1), max_new_tokens=60, eos_token_id=-1)
    return found.tolist()

async def several():
    return await asyncio.gather(*(task(i) for i in range(6)))

async def main():
    running = asyncio.create_task(several())
    await asyncio.sleep(0.01)
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)
        os._exit(0 if text(1) == expected[1] else 1)
    fine = await running == expected
    return fine, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

print([asyncio.run(main()) for _ in range(5)])
pid = os.fork()
if pid == 0:
    signal.alarm(300)
    os._exit(0 if asyncio.run(several()) == expected else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    assert run(folder, script) == f"{[(True, 0)] * 5}\n0\n"


def test_fault_60_a_step_for_which_there_is_no_memory(folder: Path) -> None:
    """It is tried again with fewer sequences; a request that cannot run alone fails alone."""
    script = """
from fastattn.errors import OutOfMemory
from fastattn.generation import scheduler

step_of = scheduler.step_of
most = [10_000]

def small(chunks):
    if len(chunks) > most[0] or any(request.ids[0] == 250 for request, _ in chunks):
        raise OutOfMemory("no memory for this step")
    return step_of(chunks)

scheduler.step_of = small
for limit in (3, 1):
    most[0] = limit
    finish(start(5, 2))
failed = []

def fail():
    try:
        lm.generate([250] * 5, max_new_tokens=20)
    except OutOfMemory as error:
        failed.append(str(error))

thread = threading.Thread(target=fail)
threads = start(5, 2)
thread.start()
thread.join()
finish(threads)
print(failed)
"""
    assert run(folder, script) == "['no memory for this step']\n"


def test_fault_62_the_interpreter_ends_while_threads_and_tasks_generate(folder: Path) -> None:
    script = """
import asyncio

async def main():
    tasks = [asyncio.ensure_future(lm.agenerate([i, 1], max_new_tokens=500, eos_token_id=-1)) for i in range(3)]
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()

for thread in [threading.Thread(target=work, args=(i, 1000), daemon=True) for i in range(3)]:
    thread.start()
asyncio.run(main())
print("end", flush=True)
"""
    assert run(folder, script) == "end\n"


def test_a_closed_model_ends_the_calls_of_all_threads(folder: Path) -> None:
    script = """
errors = []

def long():
    try:
        while True:
            lm.generate([1, 2], max_new_tokens=500, eos_token_id=-1)
    except fa.errors.InputError as error:
        errors.append("was closed" in str(error) or "after close()" in str(error))

threads = [threading.Thread(target=long) for _ in range(5)]
for thread in threads:
    thread.start()
time.sleep(0.01)
lm.close()
for thread in threads:
    thread.join()
print(errors)
"""
    assert run(folder, script) == f"{[True] * 5}\n"
