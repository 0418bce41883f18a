"""One library in a process of its own, driven by JSON lines (see percent_of_limit.py).

    python benchmarks/worker.py fastattn gpt2 2

`{"work": name, "seconds": least}` is answered with `{"seconds": [...], "tokens" or "values": ...}`, or with "error".
`{"work": name, "limit": true}` is answered by fastattn's worker with `{"limit": ...}`, the machine's rate at this
moment: GFLOP/s of fused multiply-adds, or GB/s of reading the very weights that the work reads. (The same loop over
another buffer may run at nearly twice or half that rate, depending on where in the machine its pages lie.)
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

import peers
import products
from make_models import home
from work import WORKS, Work

VALUES = 4096  # of a result that are compared


class Worker:
    def __init__(self, name: str, model: str, threads: int) -> None:
        self.name, self.model, self.threads = name, model, threads
        self.peer: peers.Peer | None = None
        self.products: dict[str, products.Product] = {}
        self.warm: set[str] = set()

    def sample(self, item: Work) -> tuple[float, dict[str, Any]]:
        """Seconds of one pass (of one token, for a decode), and the result."""
        if item.kind == "product":
            if item.name not in self.products:
                self.products = {item.name: products.load(self.name, item, self.threads)}
            product = self.products[item.name]
            begin = time.perf_counter()
            y = product.run()
            return product.seconds(time.perf_counter() - begin), {"values": y[0, :VALUES].tolist()}
        peer = self.loaded()
        ids = item.inputs()
        if item.kind == "decode":
            tokens, seconds = peer.decode(ids, item.n_new)
            return seconds / (item.n_new - 1), {"tokens": tokens}
        begin = time.perf_counter()
        logits = peer.forward(ids)
        return time.perf_counter() - begin, {"values": logits.reshape(-1)[:VALUES].tolist()}

    def limit(self, item: Work) -> float:
        """Rate of the machine at this moment, in the unit of the work's limit."""
        from fastattn import _core

        if item.limit == "fma_gflops":
            return float(_core.measure_limits(self.threads, 0.1, 1 << 20)["fma_gflops"])
        executor = self.loaded().model.executor  # type: ignore[attr-defined]
        return float(executor.weight_bytes / statistics.median(executor.seconds_to_read() for _ in range(5)) / 1e9)

    def loaded(self) -> peers.Peer:
        if self.peer is None:
            self.peer = peers.load(self.name, home() / self.model, self.threads)
        return self.peer

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Samples for at least so long, after one that is dropped."""
        item = WORKS[command["work"]]
        if command.get("limit"):
            return {"limit": self.limit(item)}
        if item.name not in self.warm:
            self.sample(item)
            self.warm.add(item.name)
        taken, result = [], {}
        begin = time.perf_counter()
        while not taken or time.perf_counter() - begin < command["seconds"]:
            seconds, result = self.sample(item)
            taken.append(seconds)
        return {"seconds": taken, **result}


def main() -> None:
    worker = Worker(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to stderr: stdout carries the answers alone
    for line in sys.stdin:
        try:
            answer = worker.answer(json.loads(line))
        except Exception as error:  # the table shows it, the other rows go on
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        out.write(json.dumps(answer) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
