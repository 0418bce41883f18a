"""Fault 62: the default number of threads is the number of CPUs available by affinity and the cgroup's quota."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastattn import _core
from tests.reference.hang import HANG_SECONDS

# The kernel's answer on a machine with 4096 CPUs: a mask that is too small gives EINVAL.
MANY_CPUS = """
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <string.h>

int sched_getaffinity(pid_t pid, size_t bytes, cpu_set_t* set) {
    if (bytes < 4096 / 8) {
        errno = EINVAL;
        return -1;
    }
    memset(set, 0, bytes);
    for (int cpu = 0; cpu < 1500; ++cpu) CPU_SET_S(2 * cpu, bytes, set);
    return 0;
}
"""


def threads_in_child(setup: str = "", **environment: str) -> int:
    code = f"import os\n{setup}\nfrom fastattn import _core\nprint(_core.default_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True, text=True, timeout=HANG_SECONDS, check=True,
    )  # fmt: skip
    return int(done.stdout)


def allowed(cpus: int) -> int:
    """Return the expected number of threads for this many CPUs in the mask, given the quota of the tests."""
    return max(1, int(min(cpus, _core.cpu_quota())))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_affinity(count: int) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:count]
    assert threads_in_child(f"os.sched_setaffinity(0, {cpus})") == allowed(len(cpus))


def test_more_cpus_than_a_cpu_set_holds(tmp_path: Path) -> None:
    (tmp_path / "many.c").write_text(MANY_CPUS)
    library = tmp_path / "many.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "many.c"], check=True, timeout=HANG_SECONDS)
    assert threads_in_child(LD_PRELOAD=str(library)) == allowed(1500)


def machine(root: Path, cgroup: str, files: dict[str, str]) -> str:
    """Create a folder that represents / with /proc/self/cgroup and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        ("", {}, math.inf),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # a container: its own group is the root
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n"}, 4.0),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "25000 50000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/on/the/host\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/a\n", {"a/cpu.max": "what\n"}, math.inf),
        ("0::/a\n", {"a/cpu.max": ""}, math.inf),
        ("0::/a\n", {"a/cpu.max": "100000 0\n"}, math.inf),
        ("0::", {}, math.inf),
        ("::\nno colon\n0::relative\n", {}, math.inf),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        ("4:cpuacct,cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "10000\n"}, 5.0),
        ("4:cpu:/a/b\n", {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "50000\n"}, 1.0),
        ("4:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "50000\n", "cpu/a/cpu.cfs_period_us": "10000\n"}, math.inf),
        ("4:cpu:/on/the/host\n", {"cpu/cpu.cfs_quota_us": "70000\n", "cpu/cpu.cfs_period_us": "10000\n"}, 7.0),
    ],
)
def test_quotas_of_cgroups(tmp_path: Path, cgroup: str, files: dict[str, str], cpus: float) -> None:
    assert _core.cpu_quota(machine(tmp_path, cgroup, files)) == cpus
