"""How close fastattn comes to the machine: percent of the FMA rate (products, prefill, encoders) and of the DRAM read
rate (decode), both measured in the same rounds as the work; other libraries on the same work if asked.

    python benchmarks/percent_of_limit.py                                        # every row, fastattn alone
    python benchmarks/percent_of_limit.py --against torch onnxruntime numpy      # with ratios
    python benchmarks/percent_of_limit.py --rows gpt2-decode --rounds 15 --seconds 0.2

Turns go limit, work, limit, work, ...; every library runs in a process of its own, and all others are stopped
meanwhile, so that no idle thread pool spins. A turn counts if the limits before and after it agree within 10 %; its
percent is against their mean; figures are medians over the turns. Everyone gets the same weights and token ids, and the
results are compared. The table and all samples go to benchmarks/results/. "best" is the lowest time: on a shared
machine, quote ratios and percents of one run, and never a rate alone.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from make_models import build
from work import WORKS, Work

STEADY = 0.1
HERE = Path(__file__).resolve().parent
LIBRARIES = ("fastattn", "torch", "onnxruntime", "numpy")
CAN = {"torch": ("forward", "decode", "product"), "onnxruntime": ("forward", "decode"), "numpy": ("product",)}


class Worker:
    """A process that is stopped except while it answers."""

    def __init__(self, library: str, model: str, threads: int) -> None:
        # Beside a library's own pool, numpy's would only take its cores.
        blas = str(threads if library == "numpy" else 1)
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": blas, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), library, model, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"the process ended with code {self.process.wait()}"}
        self.process.send_signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@dataclass(frozen=True, slots=True)
class Turn:
    """Some runs of one library, between two measurements of the limit."""

    before: float
    after: float
    seconds: list[float]

    @property
    def steady(self) -> bool:
        """Whether the machine was the same before and after; the cores of a shared one may change within seconds."""
        return abs(self.before - self.after) <= STEADY * max(self.before, self.after)

    @property
    def limit(self) -> float:
        return (self.before + self.after) / 2


@dataclass(slots=True)
class Row:
    """All turns of one piece of work."""

    work: Work
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)

    def steady(self, library: str) -> list[Turn]:
        """The turns that count: the steady ones, or all if there are none."""
        turns = self.turns[library]
        return [turn for turn in turns if turn.steady] or turns

    def seconds(self, library: str) -> list[float]:
        return [time for turn in self.steady(library) for time in turn.seconds]

    def limit(self, library: str) -> float:
        return statistics.median(turn.limit for turn in self.steady(library))

    def rate(self, library: str) -> float:
        return self.work.cost() / statistics.median(self.seconds(library))

    def percent(self, library: str) -> float:
        """Median over the turns, each against its own limit."""
        cost = self.work.cost()
        return 100 * statistics.median(
            cost / statistics.median(turn.seconds) / turn.limit for turn in self.steady(library)
        )

    def ratio(self, library: str) -> float:
        """Time over ours, each as a share of the limit in its own turns, so that the machine's drift drops out."""
        return self.percent("fastattn") / self.percent(library)

    def agreement(self, library: str) -> str:
        """Of a result with fastattn's."""
        ours, theirs = self.results.get("fastattn", {}), self.results.get(library, {})
        if "tokens" in ours and "tokens" in theirs:
            same = np.mean(np.array(ours["tokens"]) == np.array(theirs["tokens"]))
            return f"{same:.0%} of tokens equal"
        if "values" in ours and "values" in theirs:
            a, b = np.array(ours["values"]), np.array(theirs["values"])
            return f"max difference / max {np.abs(a - b).max() / np.abs(b).max():.0e}"
        return ""


def libraries(work: Work, against: list[str]) -> list[str]:
    return ["fastattn", *(name for name in against if work.kind in CAN[name])]


def measure(row: Row, workers: dict[str, Worker], options: argparse.Namespace) -> None:
    """Turns in rotation until every library has `rounds` steady ones, or four times as many were tried."""

    def limit() -> float:
        answer = workers["fastattn"].ask(work=row.work.name, limit=True)
        if "error" in answer:
            raise SystemExit(f"{row.work.name}: measuring the limit: {answer['error']}")
        return float(answer["limit"])

    before = limit()
    for _ in range(4 * options.rounds):
        for library, worker in workers.items():
            turns = row.turns.setdefault(library, [])
            if library in row.errors or sum(turn.steady for turn in turns) >= options.rounds:
                continue
            answer = worker.ask(work=row.work.name, seconds=options.seconds)
            after = limit()
            if "error" in answer:
                row.errors[library] = answer["error"]
                continue
            turns.append(Turn(before, after, answer.pop("seconds")))
            row.results[library] = answer
            before = after
    row.turns = {library: turns for library, turns in row.turns.items() if turns}


def table(rows: list[Row]) -> str:
    lines = [
        "| work | library | time ms (best) | rate | limit measured | percent of limit | time / ours | agreement |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        unit = "GB/s" if row.work.limit == "read_gbps" else "GFLOP/s"
        for library in row.turns:
            seconds = row.seconds(library)
            ms, best = statistics.median(seconds) * 1e3, min(seconds) * 1e3
            other = library != "fastattn" and "fastattn" in row.turns
            lines.append(
                f"| {row.work.name} | {library} | {ms:.2f} ({best:.2f}) | {row.rate(library):.1f} {unit} "
                f"| {row.limit(library):.1f} {unit} | {row.percent(library):.0f} % "
                f"| {f'{row.ratio(library):.2f}x' if other else ''} | {row.agreement(library) if other else ''} |"
            )
        lines += [f"| {row.work.name} | {library} | {error} | | | | | |" for library, error in row.errors.items()]
    return "\n".join(lines) + "\n"


def ragged(rows: list[Row]) -> str:
    """What a token of the ragged batch costs, beside one of the even batch."""
    by_name = {row.work.name: row for row in rows}
    if not {"bert-ragged", "bert-8x128"} <= by_name.keys():
        return ""
    lines = []
    for library in by_name["bert-ragged"].turns:
        if library not in by_name["bert-8x128"].turns:
            continue
        # At the limit of the turns, in microseconds a token.
        cost = [
            row.work.cost() / (row.percent(library) / 100) / sum(row.work.lengths)
            for row in (by_name["bert-ragged"], by_name["bert-8x128"])
        ]
        lines.append(f"{library}: a token of the ragged batch costs {cost[0] / cost[1]:.2f}x one of 8x128\n")
    return "".join(lines)


def machine() -> dict[str, Any]:
    from fastattn import _core

    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    libraries = {"fastattn", "numpy", "torch", "transformers", "onnxruntime"}
    versions = {d.name: d.version for d in importlib.metadata.distributions() if d.name in libraries}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    return {
        "cpu": found[1] if found else platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "target": _core.active_target(),
        "compiler": _core.compiler,
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.stdout.strip(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def save(rows: list[Row], options: argparse.Namespace) -> Path:
    about = machine()
    name = re.sub(r"[^a-z0-9]+", "-", about["cpu"].lower()).strip("-")
    path = Path(options.out) if options.out else HERE / "results" / f"{name}-{about['date'][:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": " ".join(["python", "benchmarks/percent_of_limit.py", *sys.argv[1:]]),
        "machine": about,
        "threads": options.threads,
        "rows": [
            {
                "work": row.work.name,
                "limit": row.work.limit,
                "cost": row.work.cost(),
                "percent": {library: round(row.percent(library), 1) for library in row.turns},
                "ratio": {library: round(row.ratio(library), 3) for library in row.turns},
                "agreement": {library: row.agreement(library) for library in row.turns if library != "fastattn"},
                "turns": {
                    library: [
                        {
                            "limit": [round(turn.before, 2), round(turn.after, 2)],
                            "steady": turn.steady,
                            "seconds": [round(time, 7) for time in turn.seconds],
                        }
                        for turn in turns
                    ]
                    for library, turns in row.turns.items()
                },
                "errors": row.errors,
            }
            for row in rows
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(f"`{content['command']}`\n\n{table(rows)}\n{ragged(rows)}", encoding="utf-8")
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(WORKS), choices=list(WORKS), metavar="ROW")
    parser.add_argument("--against", nargs="+", default=[], choices=list(CAN), metavar="LIBRARY")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="least time that a turn measures")
    parser.add_argument("--out", help="where to write the JSON (benchmarks/results/<cpu>-<date>.json)")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    rows: list[Row] = []
    workers: dict[tuple[str, str], Worker] = {}
    try:
        for name in options.rows:
            work = WORKS[name]
            if work.kind != "product":
                build(work.model)
            for key in [key for key in workers if key[1] != work.model]:
                workers.pop(key).close()
            for library in libraries(work, options.against):
                if (library, work.model) not in workers:
                    workers[library, work.model] = Worker(library, work.model, options.threads)
            rows.append(Row(work))
            mine = {library: workers[library, work.model] for library in libraries(work, options.against)}
            measure(rows[-1], mine, options)
            print(table(rows[-1:]).split("\n", 2)[2] if len(rows) > 1 else table(rows), end="", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    print(ragged(rows), end="")
    print(f"written: {save(rows, options)}")


if __name__ == "__main__":
    main()
