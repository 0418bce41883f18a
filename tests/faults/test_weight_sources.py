"""Faults of arrays and functions that weights come from: a typed error, and nothing is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn import _core
from fastattn.api.loading import load_executor
from fastattn.checkpoint import ArraySource, ComputedSource, WeightSource, array_sources, read_rows, read_tensor
from fastattn.errors import ConfigError, DTypeError, FastattnError, InputError
from fastattn.executors.sources import read_weight
from fastattn.graph.ir import Weight
from fastattn.models.registry import build
from tests.reference.checkpoints import GPT2, gpt2_tensors
from tests.reference.hang import HANG_SECONDS

SHAPE = (300, 12)
NAME = "wte.weight"  # a matrix that is read as a table as well
Compute = Callable[[int, int], Any]


class OwnError(Exception):
    """An error that the library does not know."""


def raises(error: BaseException) -> Compute:
    def compute(begin: int, end: int) -> NDArray[np.float32]:
        if begin > 0:
            raise error
        return np.zeros((end - begin, 12), np.float32)

    return compute


def returns(make: Callable[[int], Any]) -> Compute:
    """Return a function whose first slice is right; the others are make(number of rows)."""

    def compute(begin: int, end: int) -> Any:
        return np.zeros((end - begin, 12), np.float32) if begin == 0 else make(end - begin)

    return compute


FAULTS: dict[str, tuple[Compute, type[BaseException], str]] = {
    "raises": (raises(OwnError("no disk")), InputError, r"its function raised OwnError: 'no disk'"),
    "raises ours": (raises(ConfigError("adapter: odd")), ConfigError, r"^adapter: odd$"),
    "raises OSError": (raises(OSError(5, "broken")), OSError, r"broken"),
    "raises MemoryError": (raises(MemoryError("full")), MemoryError, r"full"),
    "interrupted": (raises(KeyboardInterrupt()), KeyboardInterrupt, "^$"),
    "exits": (raises(SystemExit(3)), SystemExit, "3"),
    "rows": (returns(lambda n: np.zeros((n + 1, 12), np.float32)), InputError, r"expected shape \[\d+, 12\]"),
    "columns": (returns(lambda n: np.zeros((n, 11), np.float32)), InputError, r"expected shape .*got \[\d+, 11\]"),
    "dimensions": (returns(lambda n: np.zeros(n * 12, np.float32)), InputError, r"expected shape"),
    "float64": (returns(lambda n: np.zeros((n, 12))), DTypeError, r"float32 from its function, got .*float64"),
    "big-endian": (returns(lambda n: np.zeros((n, 12), ">f4")), DTypeError, r"float32 from its function, got .*>f4"),
    "object": (returns(lambda n: np.zeros((n, 12), object)), DTypeError, r"got an array of object"),
    "strided": (returns(lambda n: np.zeros((12, n), np.float32).T), InputError, r"ascontiguousarray"),
    "list": (returns(lambda n: [[0.0] * 12] * n), DTypeError, r"numpy array of float32 from its function, got list"),
    "None": (returns(lambda n: None), DTypeError, r"got NoneType"),
    "masked": (returns(lambda n: np.ma.zeros((n, 12), np.float32)), DTypeError, r"expected a numpy array of float32"),
}


def sources_with(compute: Compute) -> dict[str, WeightSource]:
    config = {**GPT2, "vocab_size": SHAPE[0]}
    return {**array_sources(gpt2_tensors(config)), NAME: ComputedSource(NAME, SHAPE, compute, slice_rows=64)}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_function_is_an_error(fault: str, device: str) -> None:
    compute, error, message = FAULTS[fault]
    built = build({**GPT2, "vocab_size": SHAPE[0]}, sources_with(compute), "causal-lm")
    with pytest.raises(error, match=message) as caught:
        load_executor(built.program, built.tensors, dtype="float32", device=device, threads=2)
    if isinstance(caught.value, FastattnError) and fault != "raises ours":
        assert str(caught.value).startswith("tensor 'wte.weight': rows 64 to 128: ")
    if fault == "raises":
        assert isinstance(caught.value.__cause__, OwnError)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_engine_stays_usable(fault: str) -> None:
    engine = _core.Engine(2)
    compute, error, _ = FAULTS[fault]
    source = ComputedSource("w", SHAPE, compute, slice_rows=64)
    with pytest.raises(error):
        engine.load("w", "matrix", "int8", [("w", "F32", *SHAPE, (source.rows, source.rows_per_call))])
    assert not engine.has("w")
    assert engine.weight_bytes == 0
    array = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    engine.load("w", "matrix", "int8", [("w", "F32", *SHAPE, array)])
    other = _core.Engine(1)
    other.load("w", "matrix", "int8", [("w", "F32", *SHAPE, array)])
    assert [a.tobytes() for a in engine.packed("w")] == [b.tobytes() for b in other.packed("w")]


def test_a_function_that_loads_into_its_own_engine() -> None:
    """Such a function would wait for itself, so it gets an error."""
    engine = _core.Engine(2)

    def compute(begin: int, end: int) -> NDArray[np.float32]:
        engine.load("inner", "vector", "float32", [("v", "F32", 2, 1, np.zeros(2, np.float32))])
        return np.zeros((end - begin, 12), np.float32)

    with pytest.raises(InputError, match="expected no call within a call of the same thread"):
        engine.load("w", "matrix", "float32", [("w", "F32", *SHAPE, (compute, 64))])
    assert not engine.has("inner")


def test_arrays_that_cannot_be_read() -> None:
    square = np.zeros((4, 4), np.float32)
    shifted: NDArray[Any] = np.zeros(65, np.uint8)[1:].view(np.float32)
    for array in (square.T[:, :2], square[:, :2], square[::-1], np.asfortranarray(np.ones((3, 4))), shifted):
        with pytest.raises(InputError, match=r"tensor 'w': expected a C-contiguous array; use numpy.ascontiguous"):
            ArraySource("w", array)
    wrong: list[Any] = [square.astype(">f4"), square.astype(int), square.astype(complex), square.astype(object)]
    for array in wrong:
        with pytest.raises(DTypeError, match="tensor 'w': expected an array of float32, float16, float64, bfloat16"):
            ArraySource("w", array)
    things: list[Any] = [[[1.0]], None, np.ma.zeros((2, 2), np.float32), memoryview(square)]
    for thing in things:
        with pytest.raises(DTypeError, match="tensor 'w': expected a numpy array"):
            ArraySource("w", thing)
    read_only = square.copy()
    read_only.flags.writeable = False
    assert np.array_equal(read_tensor(ArraySource("w", read_only)), square)


def test_bytes_are_not_weights() -> None:
    with pytest.raises(DTypeError, match=r"tensor 'w': dtype: expected one of F32, .*, got U8"):
        read_tensor(ArraySource("w", np.zeros(4, np.uint8)))


def test_an_array_that_changes_its_size(device: str) -> None:
    """An array may be resized in place after its model was built."""
    arrays = gpt2_tensors()
    built = build(GPT2, array_sources(arrays), "causal-lm")
    arrays["wpe.weight"].resize((8, 12), refcheck=False)
    with pytest.raises(FastattnError, match=r"wpe\.weight"):
        load_executor(built.program, built.tensors, dtype="float32", device=device, threads=2)


def test_shapes_that_do_not_fit() -> None:
    arrays = {**gpt2_tensors(), NAME: np.zeros((31, 13), np.float32)}
    with pytest.raises(ConfigError, match=r"wte.weight: expected shape \[31, 12\] from config.json, .* in an array"):
        build(GPT2, array_sources(arrays), "causal-lm")
    source = ComputedSource(NAME, (30, 12), raises(OwnError()))
    with pytest.raises(ConfigError, match=r"expected shape \[31, 12\] from config.json, .*\[30, 12\] in a function"):
        build(GPT2, {**array_sources(gpt2_tensors()), NAME: source}, "causal-lm")
    for weight in (
        Weight(("w",), "matrix", (4, 3)),
        Weight(("w", "w"), "matrix", (3, 4)),
        Weight(("w",), "table", (9, 4)),
    ):
        with pytest.raises(InputError, match="w: expected "):
            read_weight(weight, array_sources({"w": np.zeros((3, 4), np.float32)}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"compute": 3},
        {"shape": ()},
        {"shape": (1, 2, 3)},
        {"shape": (-1, 2)},
        {"shape": (1.5, 2)},
        {"slice_rows": 0},
        {"slice_rows": "all"},
    ],
)
def test_invalid_sources(wrong: dict[str, Any]) -> None:
    right = {"name": "w", "shape": (3, 4), "compute": raises(OwnError()), "slice_rows": 2}
    with pytest.raises((InputError, DTypeError)):
        ComputedSource(**{**right, **wrong})


def test_rows_that_do_not_exist() -> None:
    source = ArraySource("w", np.zeros((3, 4), np.float32))
    for begin, end in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(InputError, match="tensor 'w': expected rows from 0 to 3, got"):
            read_rows(source, begin, end)
    assert read_rows(source, 3, 3).shape == (0, 4)


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_float64_beyond_float32(value: float, device: str) -> None:
    arrays: dict[str, Any] = gpt2_tensors()
    arrays["ln_f.weight"] = arrays["ln_f.weight"].astype(np.float64)
    arrays["ln_f.weight"][3] = value
    built = build(GPT2, array_sources(arrays), "causal-lm")
    with pytest.raises(ConfigError, match=r"ln_f.weight.*: expected float64 numbers within the range of float32, got"):
        load_executor(built.program, built.tensors, dtype="float32", device=device, threads=2)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


PEAK = """
import json, re, sys
import numpy as np
from fastattn import _core
from fastattn.checkpoint import ComputedSource
from fastattn.executors import cpu
from fastattn.graph.ir import Weight

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

engine, shape = _core.Engine(2), (40_000, 1024)

def ones(begin, end):
    return np.ones((end - begin, 1024), np.float32)

sources = {name: ComputedSource(name, shape, ones) for name in "abc"}
weights = {name: Weight((name,), "matrix", shape) for name in sources}
small = {"small": Weight(("small",), "matrix", (64, 1024))}
cpu._load(engine, small, {"small": ComputedSource("small", (64, 1024), ones)}, {"small": "FORM"})
before = peak()
cpu._load(engine, weights, sources, dict.fromkeys(weights, "FORM"))
print(json.dumps([peak() - before, engine.weight_bytes]))
"""


@pytest.mark.parametrize("form", ["float32", "int8", "int4"])
def test_a_computed_weight_needs_little_more_than_its_packed_form(form: str) -> None:
    """A float32 copy of one matrix is 164 MB."""
    done = run_python(PEAK.replace("FORM", form))
    assert done.returncode == 0, done.stderr
    found, packed = json.loads(done.stdout)
    assert packed > 60_000_000
    assert found < packed + 40_000_000


INTERRUPT = """
import os, signal, threading, time
import numpy as np
from fastattn import _core

engine, sent = _core.Engine(2), threading.Event()

def compute(begin, end):
    if not sent.is_set():
        sent.set()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    while True:  # until the interrupt
        WAIT

try:
    engine.load("w", "matrix", "int4", [("w", "F32", 300, 12, (compute, 64))])
except KeyboardInterrupt:
    print("interrupted")
assert not engine.has("w")
engine.load("w", "matrix", "int4", [("w", "F32", 300, 12, np.ones((300, 12), np.float32))])
print(engine.has("w"))
"""


@pytest.mark.parametrize("wait", ["time.sleep(0.1)", "np.ones((200, 200)) @ np.ones((200, 200))"])
def test_fault_58_an_interrupt_in_a_function(wait: str) -> None:
    done = run_python(INTERRUPT.replace("WAIT", wait))
    assert (done.returncode, done.stdout) == (0, "interrupted\nTrue\n"), done.stderr


FORK = """
import os, signal, sys
import numpy as np
from fastattn import _core
from fastattn.errors import Cancelled

engine, children, parent = _core.Engine(2), [], os.getpid()
array = np.random.default_rng(1).standard_normal((300, 12)).astype(np.float32)
parts = [("w", "F32", 300, 12, array)]

def compute(begin, end):
    if begin == 64 and os.getpid() == parent:
        children.append(os.fork())
        if children[-1] == 0:
            signal.alarm(300)  # ends it if it hangs
    return array[begin:end]

def works(name):
    engine.load(name, "matrix", "int8", parts)
    other = _core.Engine(1)
    other.load("w", "matrix", "int8", parts)
    return [a.tobytes() for a in engine.packed(name)] == [b.tobytes() for b in other.packed("w")]

try:
    engine.load("w", "matrix", "int8", [("w", "F32", 300, 12, (compute, 64))])
    outcome = "finished"
except Cancelled:
    outcome = "cancelled"
if os.getpid() != parent:
    os._exit(0 if outcome == "cancelled" and not engine.has("w") and works("w") else 1)
print(outcome, works("v"), os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
"""


def test_fault_59_a_fork_in_a_function() -> None:
    """The load ends in the child, which has none of the threads, and goes on in the parent."""
    done = run_python(FORK)
    assert (done.returncode, done.stdout) == (0, "finished True 0\n"), done.stderr


THREAD_FORKS = """
import os, signal, threading
import numpy as np
from fastattn import _core

engine, started, go_on = _core.Engine(2), threading.Event(), threading.Event()

def compute(begin, end):
    started.set()
    go_on.wait()
    return np.ones((end - begin, 12), np.float32)

loader = threading.Thread(
    target=lambda: engine.load("w", "matrix", "int8", [("w", "F32", 300, 12, (compute, 64))])
)
loader.start()
started.wait()
child = os.fork()
if child == 0:
    signal.alarm(300)
    engine.load("v", "matrix", "int8", [("v", "F32", 300, 12, np.ones((300, 12), np.float32))])
    os._exit(0 if engine.has("v") and not engine.has("w") else 1)
go_on.set()
loader.join()
print(engine.has("w"), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_fault_59_a_fork_while_a_function_runs_in_another_thread() -> None:
    done = run_python(THREAD_FORKS)
    assert (done.returncode, done.stdout) == (0, "True 0\n"), done.stderr


AT_EXIT = """
import threading, time
import numpy as np
from fastattn import _core

engine, started = _core.Engine(2), threading.Event()

def compute(begin, end):
    started.set()
    for _ in range(20):
        WAIT
    return np.ones((end - begin, 12), np.float32)

def load():
    for i in range(1_000_000):
        engine.load(f"w{i}", "matrix", "int8", [("w", "F32", 300, 12, (compute, 64))])

threading.Thread(target=load, daemon=True).start()
started.wait()
time.sleep(0.05)
print("end")
"""


@pytest.mark.parametrize("wait", ["time.sleep(0.001)", "np.ones((50, 50)) @ np.ones((50, 50))", "pass"])
def test_fault_62_the_interpreter_ends_while_a_function_runs(wait: str) -> None:
    for _ in range(3):
        done = run_python(AT_EXIT.replace("WAIT", wait))
        assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_a_file_that_is_replaced_while_a_function_reads_it(tmp_path: Path) -> None:
    """A function that merges an adapter reads the file that was opened, or fails."""
    from fastattn.checkpoint import open_checkpoint
    from fastattn.errors import ModelFormatError
    from tests.reference.checkpoints import write_gpt2

    with open_checkpoint(write_gpt2(tmp_path)) as checkpoint:
        base = checkpoint.tensors[NAME]
    os.replace(write_gpt2(tmp_path / "other") / "model.safetensors", tmp_path / "model.safetensors")
    source = ComputedSource(NAME, base.shape, lambda begin, end: read_rows(base, begin, end))
    with pytest.raises(ModelFormatError, match="expected the file as it was") as caught:
        read_tensor(source)
    assert caught.value.code == "changed"
