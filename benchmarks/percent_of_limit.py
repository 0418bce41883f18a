"""Measures how close fastattn comes to the machine's limits, and stores the results.

It runs `fastattn bench` on the full-size models of make_models.py, and single matrix products. Optionally, other
libraries run the same workloads.

    python benchmarks/percent_of_limit.py                                        # every row, fastattn alone
    python benchmarks/percent_of_limit.py --against torch onnxruntime numpy      # with ratios
    python benchmarks/percent_of_limit.py --rows gpt2/decode-1 bert-base --rounds 15 --seconds 0.2

A row is MODEL, MODEL/WORK or a product. The tables and all samples are written to benchmarks/results/<cpu>-<commit>;
`fastattn.bench.turns` describes the turns. "best" is the lowest time. On a shared machine, quote ratios and
percentages from one run, never a rate alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastattn.bench.libraries import LIBRARIES
from fastattn.bench.machine import about
from fastattn.bench.process import Process, command_of
from fastattn.bench.report import result_table, rows_as_dicts, share_table
from fastattn.bench.run import ModelBench, Options, bench_model, open_model
from fastattn.bench.turns import OURS, Row, measure
from fastattn.bench.works import works_of
from make_models import build, home
from work import MODELS, PRODUCTS

HERE = Path(__file__).resolve().parent
OTHERS = [*(name for name in LIBRARIES if name != OURS), "numpy"]
MULTIPLY = ("torch", "numpy")  # libraries that also run separate products


def bench_models(options: argparse.Namespace) -> list[ModelBench]:
    benches = []
    for model in MODELS:
        wanted = [row for row in options.rows if row.split("/")[0] == model]
        if not wanted:
            continue
        path = build(model)
        names = None if model in wanted else tuple(row.partition("/")[2] for row in wanted)
        settings = Options(
            threads=options.threads, dtype=options.dtype, works=names, rounds=options.rounds, seconds=options.seconds,
            against=tuple(name for name in options.against if name in LIBRARIES), keep=home() / "converted",
        )  # fmt: skip
        benches.append(bench_model(path, settings, say=lambda line: print(line, file=sys.stderr, flush=True)))
        print(result_table(benches[-1].rows) + "".join(f"left out: {line}\n" for line in benches[-1].left_out))
    return benches


def bench_products(options: argparse.Namespace) -> list[Row]:
    names = [row for row in options.rows if row in PRODUCTS]
    rows: list[Row] = []
    if not names:
        return rows
    workers: dict[str, Process] = {}
    try:
        others = [] if options.dtype not in (None, "float32") else options.against  # they multiply in float32
        for library in (OURS, *(name for name in others if name in MULTIPLY)):
            dtype = options.dtype or "float32"
            arguments = json.dumps({"library": library, "threads": options.threads, "dtype": dtype})
            blas = {"OPENBLAS_NUM_THREADS": str(options.threads)} if library == "numpy" else {}
            workers[library] = Process(command_of("products", arguments), options.threads, environment=blas)
        for name in names:
            print(name, file=sys.stderr, flush=True)
            rows.append(Row(name, "sequences", 1))
            measure(rows[-1], workers, {"name": name}, rounds=options.rounds, seconds=options.seconds)
    finally:
        for worker in workers.values():
            worker.close()
    print(result_table(rows))
    return rows


def commit() -> str:
    """Return the commit of this checkout, with -changed if files differ from it."""
    git = ["git", "-C", str(HERE)]
    done = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:10] + ("-changed" if status.stdout.strip() else "")


def save(benches: list[ModelBench], products: list[Row], options: argparse.Namespace) -> Path:
    found: dict[str, Any] = {**about(), "commit": commit()}
    name = re.sub(r"[^a-z0-9]+", "-", found["cpu"].lower()).strip("-")
    path = Path(options.out) if options.out else HERE / "results" / f"{name}-{found['commit'] or 'unknown'}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    models = [{**bench.as_dict(), "path": bench.name} for bench in benches]  # do not publish the local path
    content = {
        "command": " ".join(["python", "benchmarks/percent_of_limit.py", *sys.argv[1:]]),
        "machine": found,
        "models": models,
        "products": rows_as_dicts(products),
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    parts = [f"`{content['command']}`\n"]
    for bench in benches:
        shares = f"```\n{share_table(bench.rows)}```\n"
        parts += [f"## {bench.name}, {bench.dtype}\n", result_table(bench.rows, markdown=True), shares]
    parts += ["## Products\n", result_table(products, markdown=True)] if products else []
    path.with_suffix(".md").write_text("\n".join(parts), encoding="utf-8")
    return path


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[*MODELS, *PRODUCTS], metavar="ROW")
    parser.add_argument("--against", nargs="+", default=[], choices=OTHERS, metavar="LIBRARY")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8", "int4"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="minimum time of a turn")
    parser.add_argument("--out", help="where to write the JSON (benchmarks/results/<cpu>-<commit>.json)")
    options = parser.parse_args()
    for row in options.rows:
        model, _, work = row.partition("/")
        if row in PRODUCTS or (model in MODELS and not work):
            continue
        known = [w.name for w in works_of(open_model(build(model)).built.task, 10**6)] if model in MODELS else []
        if work not in known:
            parser.error(f"--rows: expected a model ({', '.join(MODELS)}), MODEL/WORK or a product, got {row!r}")
    return options


def main() -> None:
    options = arguments()
    benches = bench_models(options)
    products = bench_products(options)
    print(f"written: {save(benches, products, options)}")


if __name__ == "__main__":
    main()
