"""Measures generation steps: tokens per second, and the cost of a step beyond the ops of its Program.

    python benchmarks/decode_steps.py MODEL [--batches 1 8 32] [--against SRC]

MODEL is a folder with a GPT-2 checkpoint. The cost beyond the ops is that of drawing tokens, of the binding and of
Python; ops and steps are timed in the same runs. --against names the `src` folder of another version of fastattn. It
takes turns with this version; the ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top-k 50": {"do_sample": True, "seed": 1},
    "top-p 0.9": {"do_sample": True, "seed": 1, "top_k": 0, "top_p": 0.9},
}
PROMPT = 32


def worker(model_path: str, threads: int | None) -> None:
    """Answer `[batch, options, n_new]` with the seconds of the steps and the seconds outside their ops."""
    import fastattn
    from fastattn.generation.scheduler import Scheduler

    model = fastattn.AutoModelForCausalLM.from_pretrained(model_path, threads=threads)
    inner: Any = model.executor._executor  # type: ignore[attr-defined]
    vocab_size = model.config.vocab_size
    plain_step = Scheduler.step
    steps: list[tuple[float, float]] = []

    def timed_step(self: Scheduler) -> Any:
        before, begin = sum(inner.op_seconds), time.perf_counter()
        drawn = plain_step(self)
        seconds = time.perf_counter() - begin
        steps.append((seconds, seconds - (sum(inner.op_seconds) - before)))
        return drawn

    Scheduler.step = timed_step  # type: ignore[method-assign]
    for line in sys.stdin:
        batch, options, n_new = json.loads(line)
        prompts = [[(7919 * i + 31 * j) % vocab_size for j in range(PROMPT)] for i in range(batch)]
        inner.set_profiling(True)
        steps.clear()
        model.generate(prompts, max_new_tokens=n_new, eos_token_id=-1, **OPTIONS[options])
        decoding = steps[2:]  # after the prompts
        print(json.dumps([statistics.median(s) for s in zip(*decoding, strict=True)]), flush=True)


class Worker:
    """This file in a separate process that uses one source folder."""

    def __init__(self, src: Path, model: str, threads: int | None) -> None:
        # Without the current directory, which -c puts first.
        code = f"import sys; sys.path[:] = {[str(src), str(Path(__file__).parent)]!r} + [p for p in sys.path if p]; "
        code += "import decode_steps as d; "
        code += f"d.worker({model!r}, {threads!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, *question: Any) -> list[float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer: list[float] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--against", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new", type=int, default=24, help="tokens of each text")
    args = parser.parse_args()
    sources = [Path(__file__).resolve().parents[1] / "src", *([args.against.resolve()] if args.against else [])]
    workers = [Worker(src, args.model, args.threads) for src in sources]
    print(
        "| batch | options | tokens/s | outside the ops, us per step |" + (" tokens/s, ratio |" if args.against else "")
    )
    print("|---|---|---|---|" + ("---|" if args.against else ""))
    for batch in args.batches:
        for options in args.options:
            for one in workers:
                one.ask(batch, options, args.new)
            turns = [[one.ask(batch, options, args.new) for one in workers] for _ in range(args.rounds)]
            seconds, beside = (
                [statistics.median(turn[i][part] for turn in turns) for i in range(len(workers))] for part in (0, 1)
            )
            rates = " (other: ".join(f"{batch / s:.1f}" for s in seconds) + ")" * (len(workers) - 1)
            asides = " (other: ".join(f"{s * 1e6:.1f}" for s in beside) + ")" * (len(workers) - 1)
            row = f"| {batch} | {options} | {rates} | {asides} |"
            if args.against:
                row += f" {statistics.median(turn[1][0] / turn[0][0] for turn in turns):.2f} |"
            print(row, flush=True)
    for one in workers:
        one.close()


if __name__ == "__main__":
    main()
