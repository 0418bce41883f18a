"""SIMD targets: their order, tile registers that Linux refuses, and the same bits in every thread and after a fork."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fastattn import _core
from fastattn.errors import ConfigError
from tests.reference.hang import HANG_SECONDS
from tests.reference.package import PYTHON_ENVIRONMENT

HAS_AMX = "amx" in _core.available_targets()


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**PYTHON_ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )


def test_order() -> None:
    """avx512_bf16 is above avx512_vnni, but not on Intel's CPUs, whose vdpbf16ps has half the rate of float32."""
    intel, other = _core.built_targets(intel=True), _core.built_targets(intel=False)
    assert sorted(intel) == sorted(other)
    assert _core.built_targets() in (intel, other)
    for targets in (intel, other):
        assert targets[0] == "scalar"
        assert [target for target in targets if target.startswith(("avx2", "avx512"))][:2] in ([], ["avx2", "avx512"])
        assert targets.index("amx") == len(targets) - 1 if "amx" in targets else True
    if "avx512_bf16" in other:
        assert other.index("avx512_bf16") == other.index("avx512_vnni") + 1
        assert intel.index("avx512_bf16") == intel.index("avx512_vnni") - 1
    assert [target for target in _core.built_targets() if target in _core.available_targets()] == (
        _core.available_targets()
    )


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's description of the CPU")
def test_order_on_this_cpu() -> None:
    intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    assert _core.built_targets() == _core.built_targets(intel=intel)


CPU_FLAGS = {"scalar": [], "avx2": ["avx2", "fma", "f16c"]}
CPU_FLAGS["avx512"] = [*CPU_FLAGS["avx2"], "avx512f", "avx512bw", "avx512vl", "avx512dq"]
CPU_FLAGS["avx512_vnni"] = [*CPU_FLAGS["avx512"], "avx512_vnni"]
CPU_FLAGS["avx512_bf16"] = [*CPU_FLAGS["avx512_vnni"], "avx512_bf16"]
CPU_FLAGS["amx"] = [*CPU_FLAGS["avx512_vnni"], "amx_tile", "amx_int8", "amx_bf16"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other CPUs have no features to find")
def test_the_available_targets_are_those_of_the_cpu_flags() -> None:
    """A build that finds too few features is slow, and nothing reports it."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\nflags")[2].split("\n")[0]
    expected = {target for target in _core.built_targets() if set(CPU_FLAGS[target]) <= set(flags.split())}
    assert {*_core.available_targets(), *_core.refused_targets()} == expected


def test_order_of_bfloat16_sums() -> None:
    for target in _core.built_targets():
        assert _core.bfloat16_sums(target) == ("avx512_bf16" if target == "avx512_bf16" else "portable")
    with pytest.raises(ConfigError, match="sse9: not built"):
        _core.bfloat16_sums("sse9")


def test_reasons() -> None:
    refused = "Linux refused the tile registers"
    assert _core.tiles_refused(errno.EPERM) == f"{refused} ({os.strerror(errno.EPERM)})"
    assert _core.tiles_refused(errno.EINVAL).startswith(f"{refused} ({os.strerror(errno.EINVAL)})")
    assert "5.16" in _core.tiles_refused(errno.EINVAL)
    assert "signal stack" in _core.tiles_refused(errno.ENOSPC)


# Linux refuses tile registers to a process with an alternate signal stack that could not store them.
SMALL_STACK = """
import ctypes, json, sys

class Stack(ctypes.Structure):
    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

room = ctypes.create_string_buffer(4096)
stack = Stack(ctypes.cast(room, ctypes.c_void_p), 0, len(room))
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
"""


@pytest.mark.skipif(not HAS_AMX, reason="needs a CPU with AMX")
def test_refused_tile_registers() -> None:
    done = run_python(SMALL_STACK + "from fastattn.cli import main\nsys.exit(main(['info', '--json']))")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["targets_refused"]) == ["amx"]
    assert found["targets_available"] == [target for target in _core.available_targets() if target != "amx"]
    assert found["target_active"] == found["targets_available"][-1]
    assert found["bfloat16_sums"] == "portable"
    done = run_python(SMALL_STACK + "from fastattn.cli import main\nsys.exit(main(['info']))")
    assert "\ntarget amx:         not available, Linux refused the tile registers (" in done.stdout
    assert "\nbfloat16 sums:      portable\n" in done.stdout
    code = "from fastattn.executors import cpu\ntry: cpu.info()\nexcept Exception as e: print(type(e).__name__, e)"
    done = run_python(SMALL_STACK + code, FASTATTN_FORCE_TARGET="amx")
    assert done.stdout.startswith("ConfigError SIMD target amx: Linux refused the tile registers ("), done.stdout
    assert done.stdout.rstrip().endswith(f"; available: {', '.join(found['targets_available'])}")


@pytest.mark.skipif("avx512_bf16" not in _core.available_targets(), reason="needs a CPU with AVX512_BF16")
def test_info_names_the_targets_own_sums() -> None:
    done = run_python("import sys\nfrom fastattn.cli import main\nsys.exit(main(['info']))",
                      FASTATTN_FORCE_TARGET="avx512_bf16")  # fmt: skip
    assert "\nbfloat16 sums:      in the order of avx512_bf16\n" in done.stdout


THREADS_AND_FORKS = """
import hashlib, os, threading

begin, found = threading.Event(), []

def work():
    begin.wait()
    found.append(bits())

early = threading.Thread(target=work)
early.start()  # before the process asks for tile registers

import numpy as np
from fastattn import _core

TARGET = _core.active_target()

def bits():
    rng = np.random.default_rng(3)
    a, weight = (rng.standard_normal((n, 100), np.float32) for n in (40, 130))
    digest = hashlib.sha256()
    for form in ("bfloat16", "int8", "int4"):
        digest.update(_core.kernels.linear(TARGET, a, weight, format=form).tobytes())
    blocks = np.zeros((1, _core.kernels.kv_head_bytes("bfloat16", 64)), np.uint8)
    k, v, q = (rng.standard_normal((50, 64), np.float32) for _ in range(3))
    _core.kernels.kv_store(TARGET, k, v, blocks, position=0, format="bfloat16")
    out = _core.kernels.attention(TARGET, q, blocks, kv_len=50, causal=True, format="bfloat16")
    digest.update(out.tobytes())
    return digest.digest()

expected = bits()
late = threading.Thread(target=work)
late.start()
begin.set()
early.join()
late.join()
assert found == [expected] * 2
child = os.fork()
if child == 0:
    again = threading.Thread(target=work)
    again.start()
    again.join()
    os._exit(0 if bits() == expected == found[-1] and len(found) == 3 else 1)
assert os.waitpid(child, 0)[1] == 0
assert bits() == expected
print("the same")
"""


@pytest.mark.parametrize("target", _core.available_targets())
def test_threads_and_forks_have_the_same_bits(target: str) -> None:
    done = run_python(THREADS_AND_FORKS, FASTATTN_FORCE_TARGET=target)
    assert done.stdout == "the same\n", done.stderr
