"""Measures how models share the cores: two in one process, two processes, more threads than cores, a busy neighbor.

    python benchmarks/sharing.py [--works decode encode] [--rounds 5] [--seconds 1.0]

The result of a case is the tokens per second of all its models, relative to one model running alone in the same rounds.
A ratio of 1 uses the cores fully; with a neighbor on every core, 0.5 does. Each case has its own processes, which sleep
while another case is measured. So a round also shows that idle threads cost nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from make_models import build

MODELS = {"decode": "gpt2", "encode": "bert-base"}
PROMPT, STEPS, ROWS, LENGTH = 32, 4, 4, 64


@dataclass(frozen=True, slots=True)
class Case:
    """`processes` processes with `models` models each, `threads` threads per core; `busy`: a neighbor on every core."""

    name: str
    processes: int = 1
    models: int = 1
    threads: int = 1
    busy: bool = False


CASES = (
    Case("alone"),
    Case("two models in one process", models=2),
    Case("two processes", processes=2),
    Case("two threads per core", threads=2),
    Case("a neighbor on every core", busy=True),
)


def work_of(kind: str, threads: int) -> Callable[[], int]:
    """Return a function that runs a model for some milliseconds and returns its number of tokens."""
    import fastattn

    path = build(MODELS[kind])
    if kind == "decode":
        model = fastattn.AutoModelForCausalLM.from_pretrained(path, threads=threads)
        prompt = [(7919 * i) % model.config.vocab_size for i in range(PROMPT)]
        return lambda: len(model.generate(prompt, max_new_tokens=STEPS, eos_token_id=-1)) - PROMPT
    encoder = fastattn.AutoModel.from_pretrained(path, threads=threads)
    batch = [[1000 + i] * LENGTH for i in range(ROWS)]
    return lambda: sum(map(len, encoder(batch).last_hidden_state))


def worker(kind: str, models: int, threads: int) -> None:
    """For each input line, a number of seconds, run all models as fast as possible and print tokens per second."""
    works = [work_of(kind, threads) for _ in range(models)]
    print("ready", flush=True)
    for line in sys.stdin:
        seconds, rates = float(line), [0.0] * models

        def repeat(i: int, seconds: float = seconds, rates: list[float] = rates) -> None:
            begin, done = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds:
                done += works[i]()
            rates[i] = done / (time.perf_counter() - begin)

        each = [threading.Thread(target=repeat, args=(i,)) for i in range(models)]
        for thread in each:
            thread.start()
        for thread in each:
            thread.join()
        print(sum(rates), flush=True)


class Running:
    """The processes of a case."""

    def __init__(self, case: Case, kind: str) -> None:
        self.case = case
        cores = len(os.sched_getaffinity(0))
        arguments = [sys.executable, __file__, "--worker", kind, str(case.models), str(cores * case.threads)]
        pipe = subprocess.PIPE
        self.workers = [subprocess.Popen(arguments, stdin=pipe, stdout=pipe, text=True) for _ in range(case.processes)]
        for process in self.workers:
            self.read(process)

    @staticmethod
    def read(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with {process.wait()}")
        return line

    def rate(self, seconds: float) -> float:
        """Return the tokens per second of all models together."""
        busy = [
            subprocess.Popen([sys.executable, "-I", "-c", "while True: pass"])
            for _ in os.sched_getaffinity(0)
            if self.case.busy
        ]
        for process in self.workers:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        total = sum(float(self.read(process)) for process in self.workers)
        for neighbor in busy:
            neighbor.kill()
            neighbor.wait()
        return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="time of one case in one round")
    parser.add_argument("--json", action="store_true", help="print every sample")
    options = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    for kind in options.works:
        running = [Running(case, kind) for case in CASES]
        rates: dict[str, list[float]] = {case.name: [] for case in CASES}
        for _ in range(options.rounds):
            for case in running:
                rates[case.case.name].append(case.rate(options.seconds))
        for case in running:
            for process in case.workers:
                process.kill()
        results[kind] = rates
    if options.json:
        print(json.dumps(results))
        return
    print("| work | case | tokens/s, all models | relative to alone |\n|---|---|---|---|")
    for kind, rates in results.items():
        for name, samples in rates.items():
            shares: list[Any] = [a / b for a, b in zip(samples, rates["alone"], strict=True)]
            print(f"| {kind} | {name} | {statistics.median(samples):.0f} | {statistics.median(shares):.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
