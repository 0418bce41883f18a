"""Computes what a job costs from one measured rate: tokens/s per core, memory per worker, price per million texts.

    python benchmarks/sizing.py -m DIR -f LINES --threads 1 --price 0.04

The model encodes the lines of a file, a warm-up and then `--rounds` times; the rate is the median. price: of one core
for an hour, in any currency. Only the model's work counts: reading, shuffling and writing data come on top.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from fastattn import SentenceTransformer

HOUR = 3600


@dataclass(frozen=True, slots=True)
class Sizing:
    """The measured rate of one worker. memory_mib: its RSS with the model."""

    tokens_per_s: float
    tokens_per_text: float
    threads: int
    memory_mib: float

    @property
    def per_core(self) -> float:
        """Tokens per second of one core."""
        return self.tokens_per_s / self.threads

    def core_hours(self, texts: float) -> float:
        """Return the core hours of a number of texts."""
        return texts * self.tokens_per_text / self.per_core / HOUR

    def cost(self, texts: float, price: float) -> float:
        """Return the cost of a number of texts at a price per core hour."""
        return self.core_hours(texts) * price


def resident_mib() -> float:
    """Return the resident memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def measure(model: SentenceTransformer, lines: list[str], threads: int, rounds: int) -> Sizing:
    """Return the rate of a model on the lines."""
    tokens = sum(min(n, model.max_seq_length) for n in model.count_tokens(lines))
    model.encode(lines[:64])
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        model.encode(lines)
        seconds.append(time.perf_counter() - begin)
    return Sizing(tokens / statistics.median(seconds), tokens / len(lines), threads, resident_mib())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-f", "--file", required=True, help="one text per line")
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--price", type=float, required=True, help="of one core for an hour")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    lines = Path(args.file).read_text(encoding="utf-8").splitlines()
    print("| dtype | tokens/s per core | tokens per text | memory of a worker, MiB | core hours and cost of 1M texts |")
    print("|---|---|---|---|---|")
    for dtype in args.dtype:
        with SentenceTransformer(args.model, dtype=dtype, threads=args.threads) as model:
            found = measure(model, lines, args.threads, args.rounds)
        hours, cost = found.core_hours(1e6), found.cost(1e6, args.price)
        print(
            f"| {dtype} | {found.per_core:.0f} | {found.tokens_per_text:.1f} | {found.memory_mib:.0f} "
            f"| {hours:.2f} h, {cost:.4f} |"
        )


if __name__ == "__main__":
    main()
