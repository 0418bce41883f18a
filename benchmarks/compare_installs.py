"""Compares the speed and the results of two installed fastattns, such as one compiled by gcc and one by clang.

    python benchmarks/compare_installs.py OLD/bin/python NEW/bin/python -m DIR --dtype float32 int8 bfloat16

Both load the model in processes of their own and run the same workloads in turns; the one that waits is stopped. A
ratio is the time of the second divided by that of the first: the median over the rounds, with the quartiles. A result
that differs is an error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastattn.bench.libraries import Job
from fastattn.bench.process import Process
from fastattn.bench.works import Work, choose, works_of
from fastattn.checkpoint import open_checkpoint

START = "import sys; from fastattn.bench.worker import main; main(sys.argv[1])"


def start(python: str, job: Job) -> Process:
    """Start the worker of one install, outside this folder's modules."""
    fields = {**asdict(job), "path": str(job.path), "folder": str(job.folder)}
    arguments = json.dumps({"do": "serve", "library": "fastattn", "job": fields})
    return Process([python, "-I", "-c", START, arguments], job.threads)


def ask(process: Process, work: Work, vocab_size: int, seconds: float) -> dict[str, Any]:
    command = {"name": work.name, "kind": work.kind, "ids": work.ids(vocab_size), "n_new": work.n_new}
    answer = process.ask(do="run", seconds=seconds, **command)
    if "error" in answer:
        sys.exit(f"{work.name}: {answer['error']}")
    return answer


def compare(work: Work, pair: list[Process], vocab_size: int, args: argparse.Namespace) -> tuple[str, bool]:
    """Return a line about one workload, and whether the results are equal."""
    ratios, least, same = [], [float("inf")] * 2, True
    for number in range(args.rounds):
        answers: dict[int, dict[str, Any]] = {}
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            answers[which] = ask(pair[which], work, vocab_size, args.seconds)
            least[which] = min(least[which], *answers[which]["seconds"])
        old, new = (statistics.median(answers[which]["seconds"]) for which in (0, 1))
        ratios.append(new / old)
        same = same and all(answers[0].get(key) == answers[1].get(key) for key in ("tokens", "values"))
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    line = f"{work.name:20} {1e3 * least[0]:9.3f} ms  {middle:.3f} ({low:.3f} to {high:.3f})"
    return f"{line}  fastest {least[1] / least[0]:.3f}  {'same bits' if same else 'DIFFERENT RESULTS'}", same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="the Python of the first install")
    parser.add_argument("new", help="the Python of the second install")
    parser.add_argument("-m", "--model", type=Path, nargs="+", required=True)
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--works", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2)
    args = parser.parse_args()
    failures = 0
    for path in args.model:
        config = open_checkpoint(path).config
        task: Any = "causal-lm" if "gpt2" in str(config.get("model_type")) else "encoder"
        context = int(config.get("n_positions") or config.get("max_position_embeddings") or 512)
        for dtype in args.dtype:
            print(f"{path.name} {dtype}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                job = Job(path.resolve(), task, dtype, args.threads, Path(folder))
                pair = [start(python, job) for python in (args.old, args.new)]
            try:
                for work in choose(works_of(task, context), args.works):
                    line, same = compare(work, pair, int(config["vocab_size"]), args)
                    print("  " + line, flush=True)
                    failures += not same
            finally:
                for process in pair:
                    process.close()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
