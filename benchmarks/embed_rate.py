"""Measures `SentenceTransformer.encode` and `fastattn embed` relative to the engine alone, in turns.

With --classifier, also `pipeline("text-classification")` over an iterator, relative to the classifier alone.

python benchmarks/embed_rate.py -m DIR -f LINES --dtype int8 --rounds 5 --classifier DIR
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fastattn import SentenceTransformer, pipeline

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-f", "--file", required=True, help="one text per line")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--classifier", help="a text classifier, to measure a pipeline over an iterator")
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    lines = Path(args.file).read_text(encoding="utf-8").splitlines()
    pairs = [(line, None) for line in lines]
    with SentenceTransformer(args.model, dtype=args.dtype) as model, tempfile.TemporaryDirectory() as folder:
        out, one = Path(folder) / "out.npy", Path(folder) / "one.npy"
        encoded = model.tokenizer.encode_pairs(pairs, max_length=int(model.max_seq_length))
        order = sorted(range(len(lines)), key=lambda i: -len(encoded[i][0]))

        def engine() -> None:
            for start in range(0, len(order), BATCH):
                part = [encoded[i] for i in order[start : start + BATCH]]
                model._stack.run(part, [""] * len(part), prompt_len=0, output="sentence_embedding")

        def command(*words: str) -> None:
            start = [sys.executable, "-m", "fastattn", "embed", "-m", args.model, "--dtype", args.dtype]
            subprocess.run([*start, *words], check=True, capture_output=True)

        def without_ahead() -> None:
            del os.environ["TOKENIZERS_PARALLELISM"]
            model.encode(lines)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"

        works: dict[str, Callable[[], object]] = {
            "engine": engine,
            "tokenize": lambda: model.tokenizer.encode_pairs(pairs, max_length=int(model.max_seq_length)),
            "encode": lambda: model.encode(lines),
            "encode, not ahead": without_ahead,
            "embed -o": lambda: command("-f", args.file, "-o", str(out)),
            "embed -o, one line": lambda: command("-p", "a", "-o", str(one)),
        }
        bases = dict.fromkeys(works, "engine")
        if args.classifier is not None:
            added = classifier_works(args.classifier, args.dtype, lines)
            works |= added
            bases |= dict.fromkeys(added, "classifier")
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(args.rounds):
            for name, work in works.items():
                begin = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - begin)
        for name, found in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(found, seconds[bases[name]], strict=True))
            print(f"{name:<20}{ratio:6.3f}  {' '.join(f'{x:.2f}' for x in found)} s")
        print("same bits:", np.load(out).tobytes() == model.encode(lines).tobytes())


def classifier_works(folder: str, dtype: str, lines: list[str]) -> dict[str, Callable[[], object]]:
    """Return the steps of a classifier alone, and the pipeline over an iterator and over a list."""
    classify = pipeline("text-classification", folder, dtype=dtype, truncation=True)
    longest = min(classify.tokenizer.model_max_length, classify.model.config.max_positions)
    encoded = classify.tokenizer.encode_pairs([(line, None) for line in lines], max_length=longest)
    order = sorted(range(len(lines)), key=lambda i: -len(encoded[i][0]))
    types = classify.model.types_of(classify.tokenizer, [kinds for _, kinds in encoded])

    def engine() -> None:
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            own = None if types is None else [types[i] for i in part]
            classify.model([encoded[i][0] for i in part], token_type_ids=own)

    return {
        "classifier": engine,
        "classify an iterator": lambda: list(classify(iter(lines))),
        "classify a list": lambda: classify(lines),
    }


if __name__ == "__main__":
    main()
