"""Loads `fastattn serve` with requests that arrive at random times, whether earlier ones have ended or not.

    python benchmarks/serve_load.py --rate 20 --seconds 60                # starts a server with the demo models
    python benchmarks/serve_load.py --url http://localhost:8000 --rates 5 10 20 40 --json FILE
    python benchmarks/serve_load.py --rate 50 --seconds 600 --abandon 0.1 --wrong 0.1   # a soak
    python benchmarks/serve_load.py --clients 32 --seconds 60 --abandon 0.1 --wrong 0.1 --distinct 40 --terminate

With --clients, each client sends a request when its last one has ended. --distinct draws requests from N, which run
alone first; every result must be the same. --terminate sends SIGTERM during a second run of 10 seconds. Otherwise,
arrivals are a Poisson process. A latency counts from the time at which a request should have been sent, so a late
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
EXPECTED = {"completion": (200,), "stream": (200,), "embedding": (200,), "wrong": (400, 404, 413), "abandoned": (0,)}
BUSY = (429, 503)  # allowed for every kind: the server says that it cannot
START_SECONDS = 120
TERMINATE_SECONDS = 10.0
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
        self.alone: dict[tuple[str, int], Any] = {}
        self.n_equal = self.n_different = 0

    async def run_alone(self) -> None:
        """Run each distinct request alone, and remember the results."""
        for number in range(self.args.distinct):
            body, texts = self.bodies(number)
            response = await self.client.post("/v1/completions", json=body)
            self.alone["completion", number] = response.json()["choices"][0]["text"]
            response = await self.client.post("/embed", json={"inputs": texts})
            self.alone["embedding", number] = response.json()

    def bodies(self, number: int) -> tuple[dict[str, Any], list[str]]:
        """Return the completion request and the texts to embed of this number."""
        rng = random.Random(number)
        text = " ".join(rng.choices(WORDS, k=rng.randint(1, self.args.words)))
        body = {"prompt": text, "max_tokens": rng.randint(1, self.args.tokens), "seed": rng.randrange(2**32)}
        return body, [text] * rng.randint(1, 8)

    def compare(self, kind: str, number: int, result: Any) -> None:
        """Count whether a result is the same as alone."""
        if self.alone:
            same = result == self.alone[kind, number]
            self.n_equal += same
            self.n_different += not same

    async def run_clients(self, seconds: float) -> None:
        """Let clients send one request after another for a while."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            while (now := time.perf_counter()) < end:
                await self.send(self.kind(), now)

        await asyncio.gather(*(client() for _ in range(self.args.clients)))

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
        record, number = self.records[kind], self.rng.randrange(self.args.distinct or 2**32)
        body, texts = self.bodies(number)
        try:
            if kind == "embedding":
                response = await self.client.post("/embed", json={"inputs": texts})
                status = response.status_code
                if status == 200:
                    self.compare(kind, number, response.json())
            elif kind == "wrong":
                status = await self.send_wrong(body)
            elif kind == "completion":
                response = await self.client.post("/v1/completions", json=body)
                status = response.status_code
                if status == 200:
                    self.compare(kind, number, response.json()["choices"][0]["text"])
            else:
                status, text = await self.stream(body, record, due, abandon=kind == "abandoned")
                if status == 200:
                    self.compare("completion", number, text)
        except httpx.HTTPError as error:
            if not isinstance(error, httpx.ConnectError):
                print(f"{kind}: {type(error).__name__}", file=sys.stderr)
            status = -1
            await asyncio.sleep(0.1)
        record.statuses[status] += 1
        if status == 200:
            record.seconds.append(time.perf_counter() - due)

    async def send_wrong(self, body: dict[str, Any]) -> int:
        """Send a request that must be refused; return its status."""
        wrong = self.rng.choice(
            (
                {"temperature": "hot"},
                {"unknown": 1},
                {"prompt": []},
                {"n": 10**9},
                {"model": "none"},
                b"{",
                b" " * 3_000_000,
            )
        )
        content = wrong if isinstance(wrong, bytes) else json.dumps({**body, **wrong}).encode()
        kind = {"content-type": "application/json"}
        try:
            return (await self.client.post("/v1/completions", content=content, headers=kind)).status_code
        except (httpx.ReadError, httpx.WriteError):
            if len(content) < 2 << 20:
                raise
            return 413  # the server closed the connection before the whole body was sent

    async def stream(self, body: dict[str, Any], record: Record, due: float, *, abandon: bool) -> tuple[int, str]:
        """Return the status of a stream that ended well, -1 of one that did not, 0 of one that was left early.

        With its text.
        """
        last = text = ""
        async with self.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            if response.status_code != 200:
                return response.status_code, ""
            async for line in response.aiter_lines():
                if not last:
                    record.first.append(time.perf_counter() - due)
                    if abandon:
                        return 0, ""
                last = line or last
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    text += "".join(choice["text"] for choice in event.get("choices", ()))
        return (200 if last == "data: [DONE]" else -1), text

    def mistakes(self) -> list[str]:
        """Return what should not have happened."""
        return [
            f"{kind}: {count} answers with status {status}"
            for kind, record in self.records.items()
            for status, count in record.statuses.items()
            if status not in (*EXPECTED[kind], *BUSY)
        ] + [f"{self.n_different} results differ from those of a run alone"] * bool(self.n_different)


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
    print(f"{load.args.clients} clients" if load.args.clients else f"{rate:g} requests per second")
    if load.alone:
        print(f"  {load.n_equal} results are the same as alone, {load.n_different} differ")
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
        async with loading(url, args) as load:
            await load.run_alone()
            before = None if own is None else own.state()
            await (load.run_clients(args.seconds) if args.clients else load.run(rate, args.seconds))
            wrong += [*load.mistakes(), *await left_over(load)]
        show(rate, load)
        result = {
            "rate": None if args.clients else rate,
            "equal": load.n_equal,
            **{kind: record.summary() for kind, record in load.records.items()},
        }
        if own is not None:
            result |= {"before": before, "after": own.state()}
            print(f"  process    {before} -> {result['after']}")
        results.append(result)
    if args.terminate and own is not None:
        wrong += await terminate(url, args, own)
    return results, wrong


async def terminate(url: str, args: argparse.Namespace, own: OwnServer) -> list[str]:
    """Send SIGTERM under load. Requests that were accepted must end well; others are refused. Returns what is wrong."""
    async with loading(url, args) as load:
        await load.run_alone()
        asyncio.get_running_loop().call_later(TERMINATE_SECONDS / 2, own.process.terminate)
        await (load.run_clients(TERMINATE_SECONDS) if args.clients else load.run(args.rates[0], TERMINATE_SECONDS))
    statuses = sum((record.statuses for record in load.records.values()), Counter[int]())
    print(f"SIGTERM    {dict(sorted(statuses.items()))} (-1: no connection), {load.n_equal} results compared")
    bad = {status for status in statuses if status >= 500 and status != BUSY[1]}
    return [f"SIGTERM: status {status}" for status in bad] + (["SIGTERM: results differ"] if load.n_different else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a running server; its key is in the variable API_KEY (default: start one)")
    parser.add_argument("--rates", "--rate", nargs="+", type=float, default=[10.0], metavar="N", help="per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="per rate")
    parser.add_argument("--words", type=int, default=30, help="most words of a prompt")
    parser.add_argument("--tokens", type=int, default=60, help="most new tokens of a text")
    parser.add_argument("--abandon", type=float, default=0.0, help="fraction of clients that leave a stream early")
    parser.add_argument("--wrong", type=float, default=0.0, help="fraction of wrong requests")
    parser.add_argument("--clients", type=int, default=0, help="send one request after another, instead of --rates")
    parser.add_argument("--distinct", type=int, default=0, help="different requests, run alone first and compared")
    parser.add_argument("--terminate", action="store_true", help="send SIGTERM under load at the end")
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
