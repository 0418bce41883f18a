"""Loads `fastattn serve` with requests that arrive at random times, whether earlier ones have ended or not.

    python benchmarks/serve_load.py --rate 20 --seconds 60                # starts a server with the demo models
    python benchmarks/serve_load.py --url http://localhost:8000 --rates 5 10 20 40 --json FILE
    python benchmarks/serve_load.py --rate 50 --seconds 600 --abandon 0.1 --wrong 0.1   # a soak

Arrivals are a Poisson process. A latency counts from the time at which a request should have been sent, so a late
sender hides nothing. Prints a histogram per kind of request, and for a server that it started: memory, threads, open
files and queues before and after. Exit code 1 if an answer is not what it should be, or something is left afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

KINDS = ("completion", "stream", "embedding", "wrong", "abandoned")
WORDS = ("the", "old", "house", "by", "the", "sea", "was", "quiet", "and", "nobody", "knew", "who", "had", "lived")
EXPECTED = {"completion": (200,), "stream": (200,), "embedding": (200,), "wrong": (400,), "abandoned": (0,)}
BUSY = (429, 503)  # allowed for every kind: the server says that it cannot
START_SECONDS = 120
BARS = " ▁▂▃▄▅▆▇█"


@dataclass
class Record:
    """The latencies of one kind of request in seconds, and the statuses. first: of the first event of a stream."""

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        return {
            "requests": sum(self.statuses.values()),
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "seconds": quantiles(self.seconds),
            "first_event_seconds": quantiles(self.first),
            "histogram": histogram(self.seconds),
        }


def quantiles(values: list[float]) -> dict[str, float]:
    """Return quantiles; an empty mapping without values."""
    if not values:
        return {}
    ordered = sorted(values)
    wanted = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    return {name: ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)] for name, q in wanted.items()}


def histogram(values: list[float]) -> list[tuple[float, int]]:
    """Return (upper bound in seconds, count): four buckets per factor of ten."""
    counts = Counter(math.ceil(4 * math.log10(max(value, 1e-4))) for value in values)
    return [(10 ** (i / 4), counts[i]) for i in range(min(counts), max(counts) + 1)] if counts else []


class Load:
    """Sends requests to a server."""

    def __init__(self, url: str, args: argparse.Namespace, rng: random.Random) -> None:
        headers = {"authorization": f"Bearer {os.environ['API_KEY']}"} if "API_KEY" in os.environ else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.client = httpx.AsyncClient(base_url=url, timeout=args.timeout, limits=limits, headers=headers)
        self.args, self.rng = args, rng
        self.records = {kind: Record() for kind in KINDS}

    async def run(self, rate: float, seconds: float) -> None:
        """Send requests at random times for a while, and wait for all answers."""
        begin, at, tasks = time.perf_counter(), 0.0, []
        while (at := at + self.rng.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
            tasks.append(asyncio.create_task(self.send(self.kind(), begin + at)))
        await asyncio.gather(*tasks)

    def kind(self) -> str:
        draw = self.rng.random()
        if draw < self.args.wrong:
            return "wrong"
        if draw < self.args.wrong + self.args.abandon:
            return "abandoned"
        return self.rng.choice(("completion", "stream", "embedding"))

    async def send(self, kind: str, due: float) -> None:
        """Send one request and record its latency from the time at which it was due."""
        record, seed = self.records[kind], self.rng.randrange(2**32)
        text = " ".join(self.rng.choices(WORDS, k=self.rng.randint(1, self.args.words)))
        body: dict[str, Any] = {"prompt": text, "max_tokens": self.rng.randint(1, self.args.tokens), "seed": seed}
        try:
            if kind == "embedding":
                status = (
                    await self.client.post("/embed", json={"inputs": [text] * self.rng.randint(1, 8)})
                ).status_code
            elif kind == "wrong":
                wrong = self.rng.choice(({"temperature": "hot"}, {"unknown": 1}, {"prompt": []}, {"n": 10**9}))
                status = (await self.client.post("/v1/completions", json={**body, **wrong})).status_code
            elif kind == "completion":
                status = (await self.client.post("/v1/completions", json=body)).status_code
            else:
                status = await self.stream(body, record, due, abandon=kind == "abandoned")
        except httpx.HTTPError as error:
            print(f"{kind}: {type(error).__name__}", file=sys.stderr)
            status = -1
        record.statuses[status] += 1
        if status == 200:
            record.seconds.append(time.perf_counter() - due)

    async def stream(self, body: dict[str, Any], record: Record, due: float, *, abandon: bool) -> int:
        """Return the status of a stream that ended well, -1 of one that did not, 0 of one that was left early."""
        last = ""
        async with self.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            if response.status_code != 200:
                return response.status_code
            async for line in response.aiter_lines():
                if not last:
                    record.first.append(time.perf_counter() - due)
                    if abandon:
                        return 0
                last = line or last
        return 200 if last == "data: [DONE]" else -1

    def mistakes(self) -> list[str]:
        """Return what should not have happened."""
        return [
            f"{kind}: {count} answers with status {status}"
            for kind, record in self.records.items()
            for status, count in record.statuses.items()
            if status not in (*EXPECTED[kind], *BUSY)
        ]


class OwnServer:
    """A server that this script started."""

    def __init__(self, extra: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastattn", "serve", "--port", "0", "--log-level", "warning", *extra],
            stderr=subprocess.DEVNULL,
        )
        self.url = f"http://127.0.0.1:{self._port()}"

    def _port(self) -> int:
        """Find the port at which the process listens."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            own = {os.readlink(path) for path in Path(f"/proc/{self.process.pid}/fd").iterdir() if path.is_symlink()}
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                    return int(words[1].partition(":")[2], 16)
            time.sleep(0.2)
        raise SystemExit("serve_load: the server did not start; run fastattn serve to see why")

    def state(self) -> dict[str, int]:
        """Return what the process uses."""
        status = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            if ":" in line
        )
        n_files = len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return {"rss_kb": int(status["VmRSS"].split()[0]), "threads": int(status["Threads"]), "files": n_files}

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(START_SECONDS)


@asynccontextmanager
async def loading(url: str, args: argparse.Namespace) -> AsyncIterator[Load]:
    load = Load(url, args, random.Random(args.seed))
    try:
        yield load
    finally:
        await load.client.aclose()


async def left_over(load: Load) -> list[str]:
    """Return the gauges of running and waiting requests and of pages that are not 0 at rest."""
    names = ("fastattn_requests_running", "fastattn_requests_waiting", "fastattn_kv_pages_in_use")
    found: list[str] = []
    for _ in range(50):
        text = (await load.client.get("/metrics")).text
        found = [line for line in text.splitlines() if line.startswith(names) and not line.endswith(" 0.0")]
        if not found:
            break
        await asyncio.sleep(0.1)
    return found


def show(rate: float, load: Load) -> None:
    """Print the records of one rate."""
    print(f"{rate:g} requests per second")
    for kind, record in load.records.items():
        found = record.summary()
        if not found["requests"]:
            continue
        times = " ".join(f"{name} {1000 * value:.1f}" for name, value in found["seconds"].items())
        first = found["first_event_seconds"]
        shown = f"; first event p50 {1000 * first['p50']:.1f} p99 {1000 * first['p99']:.1f}" if first else ""
        print(f"  {kind:10} {found['requests']:6} {found['statuses']}  ms: {times}{shown}")
        bars = found["histogram"]
        if bars:
            most = max(count for _, count in bars)
            drawn = "".join(BARS[math.ceil(8 * count / most)] for _, count in bars)
            print(f"  {'':10} up to {1000 * bars[0][0]:.1f} ms [{drawn}] up to {1000 * bars[-1][0]:.0f} ms")


async def measure(url: str, args: argparse.Namespace, own: OwnServer | None) -> tuple[list[dict[str, Any]], list[str]]:
    """Run all rates one after another. Returns their results, and what should not have happened."""
    results, wrong = [], []
    async with loading(url, args) as warm:
        await warm.run(5.0, 1.0)
    for rate in args.rates:
        before = None if own is None else own.state()
        async with loading(url, args) as load:
            await load.run(rate, args.seconds)
            wrong += [*load.mistakes(), *await left_over(load)]
        show(rate, load)
        result = {"rate": rate, **{kind: record.summary() for kind, record in load.records.items()}}
        if own is not None:
            result |= {"before": before, "after": own.state()}
            print(f"  process    {before} -> {result['after']}")
        results.append(result)
    return results, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; its key is in the variable API_KEY (default: start one)")
    parser.add_argument("--rates", "--rate", nargs="+", type=float, default=[10.0], metavar="N", help="per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="per rate")
    parser.add_argument("--words", type=int, default=30, help="most words of a prompt")
    parser.add_argument("--tokens", type=int, default=60, help="most new tokens of a text")
    parser.add_argument("--abandon", type=float, default=0.0, help="fraction of clients that leave a stream early")
    parser.add_argument("--wrong", type=float, default=0.0, help="fraction of wrong requests")
    parser.add_argument("--timeout", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("serve", nargs="*", help="after --: more arguments of fastattn serve")
    args = parser.parse_args()
    own = OwnServer(args.serve) if args.url is None else None
    try:
        results, wrong = asyncio.run(measure(args.url or own.url, args, own))  # type: ignore[union-attr]
    finally:
        code = 0 if own is None else own.stop()
    if code:
        wrong.append(f"the server ended with code {code}")
    if args.json:
        command = " ".join(sys.argv)
        Path(args.json).write_text(json.dumps({"command": command, "results": results, "wrong": wrong}, indent=1))
    print("\n".join(f"WRONG: {line}" for line in wrong), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
