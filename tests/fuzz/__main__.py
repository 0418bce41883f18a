"""Fuzzes the readers of model folders: python -m tests.fuzz [SEED ...]; `make fuzz` runs it with AddressSanitizer.

Each input is a valid folder with a few changes (`mutate.py`). A worker process loads and uses it with the public API.
Either that works or raises a typed error. Everything else is a finding: another error, a crash, more than HANG seconds,
too much memory, or NaN without an error. Findings are saved in build/fuzz/findings, each with its files, and
`python -m tests.fuzz --replay FOLDER` repeats one.

FUZZ_SECONDS: how long (default 120). FUZZ_SEED: the first random seed (default: from the clock).
"""

from __future__ import annotations

import faulthandler
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutate import Files
from tests.fuzz.seeds import SEEDS, make, read_folder
from tests.fuzz.worker import Pool, attempt, run, save

HANG = 60  # seconds; the slowest input takes less than one on a quiet machine
OUT = Path("build/fuzz")
CORPUS = Path(__file__).with_name("corpus")


@dataclass(slots=True)
class Totals:
    executions: int = 0
    interesting: int = 0
    findings: int = 0


def corpus_of(name: str, valid: Files) -> list[Files]:
    """Return the inputs of tests/fuzz/corpus that start from a seed."""
    return [{**valid, **read_folder(folder)} for folder in sorted(CORPUS.glob(f"{name}--*"))]


def start_worker(pool: Pool, folder: Path, names: list[str], seed: int) -> tuple[int, int]:
    """Fork a worker; return its process id and the pipe on which it reports."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(ours)
            faulthandler.enable()  # SIGABRT ends a worker that hangs, and prints where
            run(pool, folder, names, seed, theirs, OUT)
        except KeyboardInterrupt:
            status = 0
        except BaseException:
            traceback.print_exc()  # os._exit would end the worker silently
        finally:
            os._exit(status)
    os.close(theirs)
    return pid, ours


def watch(pid: int, reports: int, end: float, totals: Totals, most: int) -> str | None:
    """Count what a worker reports until `fuzz` is done; return how the worker ended before, if it did."""
    while True:
        left = end - time.monotonic()
        ready, _, _ = select.select([reports], [], [], max(0.0, min(left, HANG)))
        data = os.read(reports, 1 << 16) if ready else b""
        totals.executions += data.count(b".")
        totals.interesting += data.count(b"+")
        totals.findings += data.count(b"!")
        if left <= 0 or totals.findings >= most:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        if ready and not data:
            return f"the worker ended with status {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"
        if not ready and left > HANG:
            os.kill(pid, signal.SIGABRT)
            os.waitpid(pid, 0)
            return f"an input took more than {HANG} seconds"


def fuzz(names: list[str], seconds: float, seed: int, most: int = 20) -> Totals:
    """Run workers one after another until the time is over, or there are `most` findings."""
    totals, begin = Totals(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        folder = Path(scratch)
        valid: Mapping[str, Files] = {name: make(name, folder / "seeds") for name in names}
        while time.monotonic() - begin < seconds and totals.findings < most:
            pool = Pool(valid, {name: corpus_of(name, files) for name, files in valid.items()})
            pid, reports = start_worker(pool, folder, names, seed)
            problem = watch(pid, reports, begin + seconds, totals, most)
            os.close(reports)
            seed += 1
            if problem is not None:
                totals.findings += 1
                name = (folder / "name").read_text() if (folder / "name").exists() else "none"
                print(f"{name}: {problem}", flush=True)
                found = read_folder(folder / "input") if (folder / "input").exists() else {}
                save(OUT / "findings" / f"{name}--{pid}-died", found, problem)
    return totals


def replay(folder: Path) -> int:
    """Use one saved input."""
    outcome, problem = attempt(folder.name.partition("--")[0], folder)
    print(outcome if problem is None else problem)
    return int(problem is not None)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--replay"]:
        return max(replay(Path(folder)) for folder in arguments[1:])
    if unknown := [name for name in arguments if name not in SEEDS]:
        sys.exit(f"seed: expected some of {', '.join(SEEDS)}, got {', '.join(unknown)}")
    seconds, seed = float(os.environ.get("FUZZ_SECONDS", "120")), int(os.environ.get("FUZZ_SEED") or time.time())
    shutil.rmtree(OUT, ignore_errors=True)
    print(f"fuzzing for {seconds:g} seconds from FUZZ_SEED={seed}", flush=True)
    totals = fuzz(arguments or list(SEEDS), seconds, seed)
    print(f"{totals.executions} inputs, {totals.interesting} with new outcomes, {totals.findings} findings")
    for text in sorted((OUT / "findings").glob("*.txt")):
        print(f"\n{text.with_suffix('')}\n{text.read_text(encoding='utf-8')}")
    return int(totals.findings > 0 or totals.executions == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
