"""Measures the memory of processes that load one model folder: all of each process, and the sum without double counts.

    fastattn quantize DIR PACKED --dtype int8
    python benchmarks/shared_memory.py DIR PACKED --processes 1 2 4

Each process loads the folder as an `AutoModel` with one thread and runs 16 texts of 64 tokens, then waits. RSS counts
a shared page in each process. PSS divides it by the number of processes that map it, so the sum of PSS is the memory
that is in use. The figures are from /proc/PID/smaps_rollup. With --fork, one process loads the folder, and its forked
children run it. "base" has no model.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

IDS = [[1000 + i] * 64 for i in range(16)]
FIELDS = ("Rss", "Pss", "Pss_Anon", "Pss_File")
_MIB = 1024  # the unit of smaps_rollup is KiB


def worker(folder: str) -> None:
    """Load the folder, run it, and wait until standard input closes."""
    load(folder)
    print("ready", flush=True)
    sys.stdin.read()


def load(folder: str) -> Callable[[], object]:
    """Return a function that runs the folder's model, after its first run."""
    from fastattn import AutoModel

    if not folder:
        return lambda: None
    model = AutoModel.from_pretrained(folder, threads=1)
    model(IDS)
    return lambda: model(IDS)


def parent(folder: str, count: int) -> None:
    """Load the folder, fork `count` children that run it, print their ids, and wait until standard input closes."""
    run = load(folder)
    children = []
    for _ in range(count):
        ready, done = os.pipe()
        child = os.fork()
        if child == 0:
            run()
            os.write(done, b"x")
            signal.pause()
        os.read(ready, 1)
        children.append(child)
    print("ready", *children, flush=True)
    sys.stdin.read()
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def memory_of(pid: int) -> dict[str, float]:
    """Return fields of a process's memory in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) / _MIB for line in lines}
    return {name: found[name] for name in FIELDS}


def measure(folder: str, count: int) -> list[dict[str, float]]:
    """Return the memory of `count` processes that have the folder's model loaded at the same time."""
    pipe = subprocess.PIPE
    command = [sys.executable, __file__, "--worker", folder]
    workers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(count)]
    try:
        for process in workers:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise SystemExit(f"a worker ended with {process.wait()}")
        return [memory_of(process.pid) for process in workers]
    finally:
        for process in workers:
            process.communicate()


def measure_forked(folder: str, count: int) -> list[dict[str, float]]:
    """Return the memory of a process that has loaded the folder's model, and of `count` forked children that use it."""
    command = [sys.executable, __file__, "--parent", folder, str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        word, *children = process.stdout.readline().split() or [""]
        if word != "ready":
            raise SystemExit(f"the parent ended with {process.wait()}")
        return [memory_of(pid) for pid in (process.pid, *map(int, children))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--fork", action="store_true", help="count a parent and its forked children")
    options = parser.parse_args()
    print("| folder | processes | RSS of each | PSS of each | of it, files | sum of PSS |\n|---|---|---|---|---|---|")
    for folder in ["", *options.folders]:
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / 2**20 if folder else 0
        name = f"{Path(folder).name}, {size:.0f} MiB of weights" if folder else "base"
        for count in options.processes:
            found = measure_forked(folder, count - 1) if options.fork else measure(folder, count)
            rss, pss, file = (sum(row[key] for row in found) / count for key in ("Rss", "Pss", "Pss_File"))
            print(f"| {name} | {count} | {rss:.0f} | {pss:.0f} | {file:.0f} | {sum(row['Pss'] for row in found):.0f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2])
    elif sys.argv[1:2] == ["--parent"]:
        parent(sys.argv[2], int(sys.argv[3]))
    else:
        main()
