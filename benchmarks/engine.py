"""Measures the engine: many callers of one model at the same time.

    python benchmarks/engine.py MODEL PART... [--dtype int4] [--rounds 5]

MODEL is a folder with a GPT-2 checkpoint. The parts are

    overhead    the time of a token outside the C++ call of its step, for calls of 1 and 8 sequences
    throughput  64 threads with requests of mixed lengths, against the same requests in fixed batches of 8
    latency     a short request alone, and together with 8 long ones
    prefix      16 continuations of 500 equal tokens, with and without shared pages
    soak        good, bad and abandoned requests for --seconds; checks every result, memory and threads

Measurements take turns; a ratio is the median over the rounds. The prompts of each round are new, so that only `prefix`
finds known pages.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import fastattn
from fastattn.errors import FastattnError
from fastattn.executors.core_executor import CoreDecoding, CoreExecutor
from fastattn.generation.generate import make_requests
from fastattn.generation.options import GenerationOptions
from fastattn.generation.scheduler import Call, Request, Scheduler

NUMBERS = random.Random(1)


def prompt(n: int, vocab: int = 50257) -> list[int]:
    return [NUMBERS.randrange(vocab) for _ in range(n)]


def requests_of(lm: Any, work: Sequence[tuple[list[int], int]]) -> list[Request]:
    found = []
    for ids, n_new in work:
        options = GenerationOptions(max_new_tokens=n_new, eos_token_id=-1)
        found += make_requests(lm, [np.array(ids, np.int32)], options, tokenizer=None)
    return found


def timed(work: Callable[..., object], *args: Any, **options: Any) -> float:
    begin = time.perf_counter()
    work(*args, **options)
    return time.perf_counter() - begin


def in_threads(jobs: Sequence[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def alone(lm: Any, work: Sequence[tuple[list[int], int]], *, together: int) -> None:
    """Run requests in fixed batches of `together`; the next batch starts when all of one have ended."""
    requests = requests_of(lm, work)
    for at in range(0, len(requests), together):
        with Scheduler(lm.executor, [Call(requests[at : at + together])]) as scheduler:
            while not scheduler.done:
                scheduler.step()


def overhead(lm: Any, rounds: int) -> None:
    inside = [0.0]

    def measured(draw: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            begin = time.perf_counter()
            drawn = draw(*args)
            inside[0] += time.perf_counter() - begin
            return drawn

        return run

    print("| sequences | ms per step | outside the C++ step, us | share |\n|---|---|---|---|")
    with (
        mock.patch.object(CoreDecoding, "draw", measured(CoreDecoding.draw)),
        mock.patch.object(CoreExecutor, "draw", measured(CoreExecutor.draw)),
    ):
        for n in (1, 8):
            rows = []
            for _ in range(rounds):
                prompts = [prompt(32) for _ in range(n)]
                lm.generate(prompts, max_new_tokens=1, eos_token_id=-1)  # the prompts
                n_new, inside[0] = 64, 0.0
                seconds = timed(lm.generate, prompts, max_new_tokens=n_new, eos_token_id=-1)
                rows.append((seconds / n_new, (seconds - inside[0]) / n_new))
            step, outside = (statistics.median(row[i] for row in rows) for i in (0, 1))
            print(f"| {n} | {step * 1e3:.2f} | {outside * 1e6:.0f} | {outside / step:.1%} |", flush=True)


def throughput(lm: Any, rounds: int) -> None:
    taken: dict[str, list[float]] = {"engine": [], "batches of 8": [], "batches of 8, padded": []}
    n_tokens = 0
    for _ in range(rounds):
        work = [(prompt(NUMBERS.randint(16, 128)), round(8 * 32 ** NUMBERS.random())) for _ in range(64)]
        n_tokens = sum(n_new for _, n_new in work)
        padded = [(ids, max(n for _, n in work[i // 8 * 8 : i // 8 * 8 + 8])) for i, (ids, _) in enumerate(work)]

        calls = [partial(lm.generate, ids, max_new_tokens=n, eos_token_id=-1) for ids, n in work]
        taken["engine"].append(timed(in_threads, calls) / n_tokens)
        taken["batches of 8"].append(timed(alone, lm, work, together=8) / n_tokens)
        taken["batches of 8, padded"].append(timed(alone, lm, padded, together=8) / n_tokens)
    print(
        f"| 64 requests, prompts of 16 to 128, 8 to 256 new tokens ({n_tokens}) | new tokens/s | ratio |\n|---|---|---|"
    )
    for name, seconds in taken.items():
        ratio = statistics.median(s / e for s, e in zip(seconds, taken["engine"], strict=True))
        print(f"| {name} | {1 / statistics.median(seconds):.0f} | {ratio:.2f} |", flush=True)


def latency(lm: Any, rounds: int) -> None:
    """Measure a request of 16 + 16 tokens while long ones run, with prompts of 700 tokens or with 400 new tokens."""

    def short() -> float:
        return timed(lm.generate, prompt(16), max_new_tokens=16, eos_token_id=-1)

    print("| beside | ms | alone, ms | ratio, median | ratio, worst |\n|---|---|---|---|---|")
    for name, n_prompt, n_new in (("8 long texts", 30, 400), ("8 long prompts", 700, 2), ("both", 0, 0)):
        quiet, busy = [], []
        stop = threading.Event()

        def long(kind: int, n_prompt: int = n_prompt, n_new: int = n_new, stop: threading.Event = stop) -> None:
            sizes = (n_prompt, n_new) if n_prompt else ((30, 400), (700, 2))[kind % 2]
            (request,) = requests_of(lm, [(prompt(sizes[0]), sizes[1])])
            while not stop.is_set():
                for _ in lm.engine.draws(Call([request], every_token=True)):
                    if stop.is_set():
                        break
                (request,) = requests_of(lm, [(prompt(sizes[0]), sizes[1])])

        for _ in range(rounds):
            quiet += [short() for _ in range(3)]
            stop.clear()
            threads = [threading.Thread(target=long, args=(i,)) for i in range(8)]
            for thread in threads:
                thread.start()
            time.sleep(0.3)
            for _ in range(5):
                busy.append(short())
                time.sleep(0.1 * NUMBERS.random())
            stop.set()
            for thread in threads:
                thread.join()
        base = statistics.median(quiet)
        middle, worst = statistics.median(busy), max(busy)
        times = f"{middle * 1e3:.0f} | {base * 1e3:.0f} | {middle / base:.2f} | {worst / base:.2f}"
        print(f"| {name} | {times} |", flush=True)


def prefix(lm: Any, rounds: int) -> None:
    rows = []
    n_tokens = 0
    for _ in range(rounds):
        shared = prompt(500)
        prompts = [shared + prompt(i % 8 + 1) for i in range(16)]
        n_tokens = sum(map(len, prompts))
        with_pages = timed(lm.generate, prompts, max_new_tokens=1, eos_token_id=-1)
        without = timed(alone, lm, [(ids, 1) for ids in prompts], together=16)
        rows.append((with_pages, without))
    shared_s, plain_s = (statistics.median(row[i] for row in rows) for i in (0, 1))
    print("| 16 prompts of 500 equal tokens and 1 to 8 others | seconds | ratio |\n|---|---|---|")
    print(f"| shared pages | {shared_s:.3f} | 1 |")
    print(
        f"| computed {n_tokens} tokens | {plain_s:.3f} | {statistics.median(b / a for a, b in rows):.1f} |", flush=True
    )


class Soak:
    """Random requests until `end`; every text is compared with that of its request alone."""

    def __init__(self, lm: Any, seconds: float) -> None:
        self.lm, self.vocab = lm, lm.config.vocab_size
        self.work = [(prompt(NUMBERS.randint(1, 80), self.vocab), NUMBERS.randint(1, 40)) for _ in range(40)]
        self.expected = []
        for one in self.work:
            (request,) = requests_of(lm, [one])
            with Scheduler(lm.executor, [Call([request])]) as scheduler:
                while not scheduler.done:
                    scheduler.step()
            self.expected.append(request.ids)
        self.counts = dict.fromkeys(("good", "bad", "abandoned", "wrong", "late"), 0)
        self.end, self._lock = time.monotonic() + seconds, threading.Lock()

    def count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def thread(self, seed: int) -> None:
        numbers = random.Random(seed)
        while time.monotonic() < self.end:
            self.one(numbers, numbers.randrange(len(self.work)), numbers.random())

    def one(self, numbers: random.Random, i: int, kind: float) -> None:
        lm, (ids, n_new), expected = self.lm, self.work[i], self.expected[i]
        if kind < 0.6:
            found = lm.generate(ids, max_new_tokens=n_new, eos_token_id=-1, priority=numbers.randrange(3)).tolist()
            self.count("good" if found == expected else "wrong")
        elif kind < 0.7:
            try:
                lm.generate([self.vocab + 5], max_new_tokens=n_new)
                self.count("wrong")
            except FastattnError:
                self.count("bad")
        elif kind < 0.75:
            found = lm.generate(ids, max_new_tokens=n_new, eos_token_id=-1, max_time=0.001).tolist()
            self.count("late" if found == expected[: len(found)] else "wrong")
        else:
            (request,) = requests_of(lm, [self.work[i]])
            draws = lm.engine.draws(Call([request], every_token=True, run_ahead=16))
            for _ in range(numbers.randint(1, 5)):
                next(draws, None)
            draws.close()
            self.count("abandoned" if request.ids == expected[: len(request.ids)] else "wrong")

    async def task(self, seed: int) -> None:
        numbers = random.Random(seed)
        while time.monotonic() < self.end:
            i = numbers.randrange(len(self.work))
            ids, n_new = self.work[i]
            running = asyncio.ensure_future(self.lm.agenerate(ids, max_new_tokens=n_new, eos_token_id=-1))
            if numbers.random() < 0.3:
                await asyncio.sleep(numbers.random() * 0.01)
                running.cancel()
            try:
                found = (await running).tolist()
                self.count("good" if found == self.expected[i] else "wrong")
            except asyncio.CancelledError:
                self.count("abandoned")

    async def tasks(self) -> None:
        await asyncio.gather(*(self.task(100 + i) for i in range(8)))


def soak(lm: Any, seconds: float) -> None:
    """Run 24 threads and 8 asyncio tasks, and look at pages, threads and memory afterwards."""
    job = Soak(lm, seconds)
    before, memory = threading.active_count(), []
    workers = [threading.Thread(target=job.thread, args=(i,)) for i in range(24)]
    workers.append(threading.Thread(target=lambda: asyncio.run(job.tasks())))
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        memory.append(resident_bytes())
        workers[0].join(seconds / 20)
        time.sleep(0.01)
    time.sleep(1.5)  # the thread for asyncio tasks ends
    stats, after = lm.kv_stats(), threading.active_count()
    print(f"{job.counts}; pages in use {stats.in_use}, idle {stats.idle}; threads {before} before, {after} after")
    middle, last = (memory[at] / 2**20 for at in (len(memory) // 2, -1))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"MiB of memory: {middle:.0f} halfway, {last:.0f} at the end, {most:.0f} at most")
    if job.counts["wrong"] or stats.in_use or after != before or not job.counts["good"]:
        raise SystemExit("soak: failed")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("parts", nargs="+", choices=("overhead", "throughput", "latency", "prefix", "soak"))
    parser.add_argument("--dtype", default="int4")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kv-cache-bytes", type=int)
    args = parser.parse_args()
    lm = fastattn.AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype, kv_cache_bytes=args.kv_cache_bytes)
    for part in args.parts:
        if part == "soak":
            soak(lm, args.seconds)
        else:
            {"overhead": overhead, "throughput": throughput, "latency": latency, "prefix": prefix}[part](
                lm, args.rounds
            )


if __name__ == "__main__":
    main()
