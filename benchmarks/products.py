"""Separate products: LINEARS of them per run, x [m, k] @ weight [n, k].T -> [m, n].

percent_of_limit.py starts this as a process that answers the commands of `fastattn.bench.worker`.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastattn.bench.worker import VALUES, Answer, Service, serve
from fastattn.profiling.limits import measure_over
from work import LINEARS, PRODUCTS, Product

WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5 + 1 / 32}  # int4: a scale of one byte per 32


class Runnable(Protocol):
    def run(self) -> NDArray[Any]:
        """Do all products; return the result of the last."""
        ...

    def seconds(self, elapsed: float) -> float:
        """Return the time of the products alone in the last run."""
        ...


def matrices(item: Product) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return x [m, k] and all weights [weights, n, k], the same for every library."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((item.m, item.k), dtype=np.float32)
    return x, rng.standard_normal((item.weights, item.n, item.k), dtype=np.float32)


class Fastattn:
    """A Program that uses the same code path as models.

    It has an embedding that copies the rows of x, LINEARS linears, and a gather of the last one's first row. In dtypes
    other than float32, each linear rounds x.
    """

    def __init__(self, item: Product, threads: int, dtype: str = "float32") -> None:
        from fastattn.checkpoint import array_sources
        from fastattn.executors.cpu import CpuExecutor
        from fastattn.graph.ir import Op, Program, Step, Value, Weight

        m, n, k = item.m, item.n, item.k
        x, weights = matrices(item)
        plain = {"activation": "none", "has_bias": False, "has_residual": False}
        ops = [Op("embedding", (), 0, ("x",), {"index": "token_ids", "offset": 0})]
        ops += [Op("linear", (0,), i + 1, (f"w{i % item.weights}",), plain) for i in range(LINEARS)]
        ops += [Op("gather_rows", (LINEARS,), LINEARS + 1, (), {"which": "wanted"})]
        program = Program(
            values=(Value("tokens", k), *(Value("tokens", n) for _ in range(LINEARS)), Value("wanted", n)),
            ops=tuple(ops),
            weights={"x": Weight(("x",), "table", (m, k))}
            | {f"w{i}": Weight((f"w{i}",), "matrix", (n, k)) for i in range(item.weights)},
            outputs={"y": LINEARS + 1},
            n_layer=0,
            n_kv_head=1,
            head_dim=1,
            max_positions=m,
            causal=False,
        )
        arrays = {"x": x, **{f"w{i}": w for i, w in enumerate(weights)}}
        self.executor = CpuExecutor(program, array_sources(arrays), dtype=dtype, threads=threads)
        ids = np.arange(m, dtype=np.int32)
        ends = np.array([0, m], np.int32)
        self.step = Step(token_ids=ids, cu_seqlens=ends, positions=ids, wanted=ids[:1])

    def run(self) -> NDArray[Any]:
        self.executor.set_profiling(True)
        y: NDArray[Any] = self.executor.run(self.step, ["y"])["y"]
        return y

    def seconds(self, elapsed: float) -> float:
        """Return the time without the copies of x and of a row."""
        return sum(self.executor.op_seconds()[1:-1])


class Torch:
    def __init__(self, item: Product, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        x, weights = matrices(item)
        self.torch = torch
        self.x, self.weights = torch.from_numpy(x), [torch.from_numpy(w) for w in weights]
        self.out = torch.empty(item.m, item.n)

    def run(self) -> NDArray[Any]:
        for i in range(LINEARS):
            self.torch.mm(self.x, self.weights[i % len(self.weights)].T, out=self.out)
        y: NDArray[Any] = self.out.numpy()
        return y

    def seconds(self, elapsed: float) -> float:
        return elapsed


class Numpy:
    def __init__(self, item: Product, threads: int) -> None:
        self.x, self.weights = matrices(item)
        self.out = np.empty((item.m, item.n), np.float32)

    def run(self) -> NDArray[Any]:
        for i in range(LINEARS):
            np.matmul(self.x, self.weights[i % len(self.weights)].T, out=self.out)
        return self.out

    def seconds(self, elapsed: float) -> float:
        return elapsed


LIBRARIES: dict[str, type[Any]] = {"fastattn": Fastattn, "torch": Torch, "numpy": Numpy}


class Runner:
    """Answers the commands of `fastattn.bench.worker` for products; the last product stays loaded."""

    def __init__(self, library: str, threads: int, dtype: str) -> None:
        self.library, self.threads, self.dtype = library, threads, dtype
        self.loaded: tuple[str, Any] = ("", None)

    def product(self, name: str) -> Any:
        if self.loaded[0] != name:
            self.loaded = ("", None)
            options = {"dtype": self.dtype} if self.library == "fastattn" else {}
            self.loaded = (name, LIBRARIES[self.library](PRODUCTS[name], self.threads, **options))
        return self.loaded[1]

    def sample(self, command: Answer) -> tuple[float, Answer]:
        product: Runnable = self.product(command["name"])
        begin = time.perf_counter()
        y = product.run()
        return product.seconds(time.perf_counter() - begin), {"values": y[0, :VALUES].tolist()}

    def limit(self, command: Answer) -> Answer:
        item = PRODUCTS[command["name"]]
        limits = measure_over(self.product(item.name).executor)
        rate = limits.rates["int8" if self.dtype == "int4" else self.dtype]
        weight_bytes = item.weight_bytes * WEIGHT_BYTES[self.dtype] / WEIGHT_BYTES["float32"]
        return {
            "compute_seconds": item.operations / rate / 1e9,
            "memory_seconds": weight_bytes / limits.read_gbps / 1e9,
            "operations": item.operations,
            "bytes": weight_bytes,
        }

    def profile(self, command: Answer) -> Answer:
        raise NotImplementedError("products are not profiled")


def main(arguments: str) -> None:
    options = json.loads(arguments)
    serve(Service(Runner(options["library"], options["threads"], options["dtype"])).answer)
