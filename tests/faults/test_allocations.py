"""Fault 60: every failed allocation in the C++ code raises MemoryError, and the objects work as before.

If one call makes many allocations, some of them are tried; FASTATTN_ALL_ALLOCATIONS=1 tries them all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastattn import _core
from tests.reference.checkpoints import write_gpt2
from tests.reference.hang import HANG_SECONDS

PRELUDE = """
import ctypes, gc, shutil, sys
from pathlib import Path
import numpy as np
import fastattn as fa

library, folder, demo, most = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
shim = ctypes.CDLL(library)
shim.stop_failing.restype = shim.live_blocks.restype = ctypes.c_long
WIDE = {"dtype": "int8", "threads": 2}

def load():
    return fa.AutoModelForCausalLM.from_pretrained(folder, **WIDE)

lm = load()
vectors = fa.SentenceTransformer(demo, threads=2)
x = np.ones((3, 4), np.float32)

def generate():
    options = {"do_sample": True, "top_k": 9, "repetition_penalty": 1.2, "seed": 1, "eos_token_id": -1}
    return [ids.tolist() for ids in lm.generate([[1, 2, 3], [4]], max_new_tokens=4, **options)]

def quantize():
    fa.quantize(folder, folder.parent / "out", dtype="int4", threads=2)

works = {
    "load": load,
    "logits": lambda: [row.tolist() for row in lm([[1, 2, 3], [4]]).logits],
    "generate": generate,
    "encode": lambda: vectors.encode(["a cat", "two dogs"]).tolist(),
    "quantize": quantize,
    "op": lambda: fa.ops.matmul(x, x.T).tolist(),
    "attention": lambda: fa.ops.scaled_dot_product_attention(x, x, x).tolist(),
    "close": lambda: load().close(),
}
"""
RUN = """
def result(work):
    if work is load:
        return [row.tolist() for row in work()([[1, 2, 3]]).logits]
    return work()

def tidy():
    shutil.rmtree(folder.parent / "out", ignore_errors=True)

def fail(work, n, and_all_after):
    gc.collect(0)
    shim.fail_at(n, and_all_after)
    try:
        found = work()
    except MemoryError:
        return None
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        shim.stop_failing()
        if work is quantize and (folder.parent / "out").exists():
            raise SystemExit(f"allocation {n}: half a folder is left")
    if work is generate and not and_all_after:  # a step is tried again with fewer sequences
        return None if found == expected else "another result"
    return "no error"

for name, work in works.items():
    expected = result(work)
    tidy()
    shim.fail_at(1 << 60, 0)
    work()
    count = shim.stop_failing()
    tidy()
    step = max(1, count // most)
    for and_all_after in (0, 1):
        for n in range(1, count + 1, step):
            found = fail(work, n, and_all_after)
            if found is not None:
                raise SystemExit(f"{name}, allocation {n} of {count}, {and_all_after=}: {found}")
            if n % 7 == 1 and result(work) != expected:
                raise SystemExit(f"{name}, after allocation {n} of {count}, {and_all_after=}: another result")
            tidy()
    gc.collect()
    before = shim.live_blocks()
    for n in range(1, count + 1, step):
        fail(work, n, 0)
        tidy()
    gc.collect()
    if shim.live_blocks() > before:
        raise SystemExit(f"{name}: {shim.live_blocks() - before} allocations are left over")
    print(name, count)
print("all failed as they should")
"""


def preloaded(folder: Path) -> Path:
    """Build the library that makes allocations fail."""
    library = folder / "failing_allocations.so"
    source = Path(__file__).with_name("failing_allocations.cpp")
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC"]
    subprocess.run(["c++", *flags, "-o", library, source, "-ldl"], check=True, timeout=HANG_SECONDS)
    return library


NO_PYTHON_MEMORY = """
import shutil, sys
from pathlib import Path
import _testcapi
import numpy as np
import fastattn as fa
from fastattn import _core

folder, demo = map(Path, sys.argv[1:])
out = folder.parent / "out"
lm = fa.AutoModelForCausalLM.from_pretrained(folder, threads=1)
vectors = fa.SentenceTransformer(demo, threads=1)
executor = lm.executor._executor
cache = executor.new_cache()
x = np.ones((3, 4), np.float32)

def load():
    with fa.AutoModelForCausalLM.from_pretrained(folder, threads=1) as model:
        return model.executor.weight_bytes

def quantize():
    fa.quantize(folder, out, dtype="int8", threads=1)
    return (out / "model.safetensors").read_bytes()

works = {
    "engine": lambda: _core.Engine(1) and 0, "pace": lambda: _core.Pace() and 0,
    "cache": lambda: executor.new_cache().length, "fork": lambda: cache.fork().length,
    "op": lambda: fa.ops.softmax(x).tolist(),
    "logits": lambda: [row.tolist() for row in lm([[1, 2, 3], [4]]).logits],
    "generate": lambda: lm.generate([1, 2, 3], max_new_tokens=3, eos_token_id=-1).tolist(),
    "encode": lambda: vectors.encode(["a cat", "two dogs"]).tolist(), "load": load, "quantize": quantize,
}

def expected_error(error):
    # numpy, Python and the tokenizers library themselves do not raise MemoryError for each of their allocations.
    name, text = type(error).__name__, str(error)
    return (
        name == "MemoryError"
        or (name == "SystemError" and "fastattn._core" not in text)
        or (name == "TypeError" and text.endswith("not PosixPath"))
        or (name == "PanicException" and text == "PyObject pointer is null")
    )

for name, work in works.items():
    expected, failed, n = work(), 0, 0
    shutil.rmtree(out, ignore_errors=True)
    while n < 20_000:
        try:
            _testcapi.set_nomemory(n, n + 1)
            found = work()
        except BaseException as error:
            _testcapi.remove_mem_hooks()
            failed += 1
            if not expected_error(error):
                raise
            if out.exists():
                sys.exit(f"{name}, allocation {n}: half a folder is left")
        else:
            _testcapi.remove_mem_hooks()
            if found != expected:
                sys.exit(f"{name}, allocation {n}: another result")
        shutil.rmtree(out, ignore_errors=True)
        n += 1 + n // 30
    if not failed:
        sys.exit(f"{name}: nothing failed")
    if work() != expected:
        sys.exit(f"{name}: another result afterwards")
    shutil.rmtree(out, ignore_errors=True)
print("all failed as they should")
"""


def test_fault_60_an_object_for_which_python_has_no_memory(tmp_path: Path) -> None:
    pytest.importorskip("_testcapi")
    demo = Path(str(_core.__file__)).parent / "demo" / "bert-sst2"
    done = subprocess.run(
        [sys.executable, "-c", NO_PYTHON_MEMORY, str(write_gpt2(tmp_path / "model")), str(demo)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "all failed as they should\n"), done.stderr


def test_fault_60_each_allocation_that_fails(tmp_path: Path) -> None:
    demo = Path(str(_core.__file__)).parent / "demo" / "bert-sst2"
    folder = write_gpt2(tmp_path / "model")
    most = 1 << 30 if os.environ.get("FASTATTN_ALL_ALLOCATIONS") else 60
    library = preloaded(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + RUN, str(library), str(folder), str(demo), str(most)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all failed as they should\n")
    counts = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()[:-1]}
    assert set(counts) == {"load", "logits", "generate", "encode", "quantize", "op", "attention", "close"}
    assert min(counts.values()) > 0
