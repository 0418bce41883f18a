"""`fastattn bench`: measures the machine's limits, a model against them, and other libraries on its workloads."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastattn.bench.budget import Budget
from fastattn.bench.libraries import LIBRARIES
from fastattn.bench.machine import Machine, about, headline, measure_machine
from fastattn.bench.picture import save
from fastattn.bench.report import result_table, share_table
from fastattn.bench.roofline import plot
from fastattn.bench.run import ModelBench, Options, bench_model, works_in
from fastattn.checks import closest, quote
from fastattn.cli.progress import Reporter
from fastattn.cli.streams import emit, say
from fastattn.errors import BenchError, InputError
from fastattn.executors import cpu
from fastattn.tasks.demo import demo_model

RATE_SECONDS = 0.2  # for each rate of the machine
MACHINE_SECONDS = 2.0  # approximate total for one number of threads


def bench(args: argparse.Namespace) -> int:
    """Measure and print. Invalid arguments are rejected before measuring."""
    for name in (args.json, args.picture, args.keep):
        if name not in (None, "-") and not Path(name).absolute().parent.is_dir():
            raise InputError(f"{name}: expected a file in an existing folder, but there is no {Path(name).parent}")
    budget = Budget(args.max_seconds)
    paths = _models(args)
    works = _works(args, paths)
    threads = args.threads or cpu.info()["threads"]
    found = about()
    quiet = args.json == "-"
    text = headline(found) + "\n"
    _show(text, quiet)
    wants_machine = args.machine or args.model is None or args.picture is not None
    if wants_machine:
        say(f"measuring the limits of the machine, about {2 * MACHINE_SECONDS:g} s")
    seconds = min(RATE_SECONDS, args.max_seconds * RATE_SECONDS / (4 * MACHINE_SECONDS))
    machine = measure_machine(threads, seconds=seconds) if wants_machine else None
    if machine is not None and args.model is None:
        _show("\n" + machine.table(), quiet)
        text += "\n" + machine.table()
    benches = []
    for path, names in works.items():
        with Reporter() as report:
            options = _options(args, threads, names)
            benches.append(bench_model(path, options, say=report.say, step=report.step, budget=budget))
        if benches[-1].rows:
            part = "\n" + model_text(benches[-1], args.profile)
            _show(part, quiet)
            text += part
        for line in benches[-1].left_out:
            say(f"left out: {line}")
    if benches and not any(bench.rows for bench in benches):
        raise BenchError(f"--max-seconds {args.max_seconds:g}: too short to measure anything; allow more")
    if args.json is not None:
        _write_json(args.json, _report(args, found, machine, benches))
    if args.picture is not None:
        save(plot(benches, machine, found), Path(args.picture), text)
    return 0


def model_text(bench: ModelBench, profile: bool) -> str:
    """Return the tables of one model."""
    head = f"{bench.name}, {bench.task}, {bench.parameters / 1e6:.1f} million parameters, {bench.dtype}, "
    head += f"head {bench.head_dtype}, " if bench.head_dtype is not None else ""
    parts = [head + f"{bench.threads} thread{'s' if bench.threads > 1 else ''}\n", result_table(bench.rows)]
    parts.append(share_table(bench.rows))
    if profile:
        parts += [f"{row.name}: {row.profile['text']}\n" for row in bench.rows if row.profile is not None]
    return "\n".join(parts)


def read_libraries(text: str) -> tuple[str, ...]:
    """Parse the value of --against. Raises ArgumentTypeError for an unknown library."""
    from fastattn.bench.run import check_libraries

    names = tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        check_libraries(names)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not names:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(LIBRARIES)}, got none")
    return names


def _models(args: argparse.Namespace) -> list[str | Path]:
    if args.model is not None:
        return [args.model]
    return [] if args.machine else [demo_model("text-generation"), demo_model("text-classification")]


def _works(args: argparse.Namespace, paths: Sequence[str | Path]) -> dict[str | Path, tuple[str, ...] | None]:
    """Return the workloads of each model (None for all), without the models that have none of the requested ones."""
    if args.works is None:
        return dict.fromkeys(paths)
    known = {path: [work.name for work in works_in(path)] for path in paths}
    every = list(dict.fromkeys(name for names in known.values() for name in names))
    for name in args.works:
        if name not in every:
            expected = f"expected some of {','.join(every)}, got {quote(name)}{closest(name, every)}"
            args.parser.error(f"argument --works: {expected}")
    chosen = {path: tuple(name for name in args.works if name in names) for path, names in known.items()}
    return {path: names for path, names in chosen.items() if names}


def _options(args: argparse.Namespace, threads: int, works: tuple[str, ...] | None) -> Options:
    return Options(
        threads=threads,
        dtype=args.dtype,
        kv_dtype=args.kv_dtype,
        head_dtype=args.head_dtype,
        against=args.against or (),
        works=works,
        rounds=args.rounds,
        seconds=args.seconds,
        keep=Path(args.keep) if args.keep else None,
    )


def _report(
    args: argparse.Namespace, found: dict[str, Any], machine: Machine | None, benches: Sequence[ModelBench]
) -> dict[str, Any]:
    return {
        "command": shlex.join(["fastattn", *args.command_line]),
        "machine": found,
        "limits": machine.as_dict() if machine is not None else None,
        "models": [bench.as_dict() for bench in benches],
    }


def _write_json(name: str, report: dict[str, Any]) -> None:
    if name == "-":
        emit(json.dumps(report))
    else:
        Path(name).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _show(text: str, quiet: bool) -> None:
    if not quiet:
        emit(text, end="", flush=True)
