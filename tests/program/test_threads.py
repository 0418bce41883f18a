"""Threads of a model on the CPUs of the machine.

A kernel that balances load moves threads by itself. So these tests check that our placement changes neither the results
nor the CPUs that a thread may use.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fastattn import AutoModelForCausalLM
from fastattn.graph.ir import Step
from tests.reference.checkpoints import write_gpt2

TASKS = Path("/proc/self/task")


def cpu_of(thread: int) -> int:
    """Return the CPU that a thread of this process last ran on (field 39 of `stat`)."""
    return int((TASKS / str(thread) / "stat").read_text().rpartition(")")[2].split()[36])


@pytest.mark.skipif(not TASKS.is_dir(), reason="there is no /proc")
def test_a_worker_that_starts_on_the_cpu_of_the_caller_may_use_all_of_them_afterwards(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("this process may use one CPU")
    before = {task.name for task in TASKS.iterdir()}
    folder = write_gpt2(tmp_path, n_embd=256, n_head=4, n_layer=4, n_positions=1024)
    ids = np.arange(1000) % 31  # long enough for threads to pay off
    with AutoModelForCausalLM.from_pretrained(folder, threads=2) as model:
        expected = np.asarray(model(ids).logits)
        (worker,) = (int(task.name) for task in TASKS.iterdir() if task.name not in before)
        here = min(allowed)
        seen = set()
        try:
            os.sched_setaffinity(0, {here})  # only affects the calling thread
            for _ in range(5000):  # if something else slows them, steps stop using the worker for a while
                os.sched_setaffinity(worker, {here})
                os.sched_setaffinity(worker, allowed)
                np.testing.assert_array_equal(model(ids).logits, expected)
                seen.add(cpu_of(worker))
                assert os.sched_getaffinity(worker) == allowed
                if seen - {here}:
                    break
        finally:
            os.sched_setaffinity(0, allowed)
        assert seen - {here}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_no_cut_of_the_work_changes_a_bit(dtype: str, tmp_path: Path) -> None:
    """Linears of 2, 6 and 8 panels are split into chunks by rows, panels and threads, some of them without rows.

    Rows fed 20 at a time are not split at all.
    """
    folder = write_gpt2(tmp_path, n_embd=128, n_head=2, n_layer=1, n_positions=1024)
    ids = (np.arange(1024) * 7 % 31).astype(np.int32)
    with AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, threads=1) as model:
        cache, rows = model.executor.new_cache(), []
        for at in range(0, len(ids), 20):
            part = ids[at : at + 20]
            count = np.arange(len(part), dtype=np.int32)
            step = Step(part, np.array([0, len(part)], np.int32), count + at, count, caches=(cache,))
            rows.append(np.asarray(model.executor.run(step, ["logits"])["logits"]))
        cache.close()
    expected = np.concatenate(rows)
    for threads in (1, 2, 3, 5):
        with AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, threads=threads) as model:
            for n in (1, 23, 24, 25, 31, 61, 193, 367, 1024):
                np.testing.assert_array_equal(model(ids[:n]).logits, expected[:n])
