"""Products on their own: LINEARS of them in one go, each with its own weights, x [m, k] @ weight [n, k].T -> [m, n]."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from work import LINEARS, Work


class Product(Protocol):
    def run(self) -> NDArray[Any]:
        """Does all products; the result of the last."""
        ...

    def seconds(self, elapsed: float) -> float:
        """Of the last run, the time of the products alone."""
        ...


def matrices(item: Work) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x [m, k] and weights [LINEARS, n, k], the same for everyone."""
    m, n, k = item.lengths
    rng = np.random.default_rng(0)
    return rng.standard_normal((m, k), dtype=np.float32), rng.standard_normal((LINEARS, n, k), dtype=np.float32)


class Fastattn:
    """A Program of one embedding, which copies the rows of x, and LINEARS linears: the path that models take."""

    def __init__(self, item: Work, threads: int) -> None:
        from fastattn.checkpoint import TensorInfo
        from fastattn.graph.ir import Op, Program, Step, Value, Weight
        from fastattn.runtime import CpuExecutor

        m, n, k = item.lengths
        x, weights = matrices(item)
        plain = {"activation": "none", "has_bias": False, "has_residual": False}
        ops = [Op("embedding", (), 0, ("x",), {"index": "token_ids"})]
        ops += [Op("linear", (0,), i + 1, (f"w{i}",), plain) for i in range(LINEARS)]
        program = Program(
            values=(Value("tokens", k), *(Value("tokens", n) for _ in range(LINEARS))),
            ops=tuple(ops),
            weights={"x": Weight(("x",), "table", (m, k))}
            | {f"w{i}": Weight((f"w{i}",), "matrix", (n, k)) for i in range(LINEARS)},
            outputs={"y": LINEARS},
            n_layer=0,
            n_kv_head=1,
            head_dim=1,
            max_positions=m,
            causal=False,
        )
        with tempfile.TemporaryDirectory() as folder:
            infos = {}
            for name, array in {"x": x, **{f"w{i}": w for i, w in enumerate(weights)}}.items():
                path = Path(folder) / name
                array.tofile(path)
                infos[name] = TensorInfo(
                    name=name, dtype="F32", shape=array.shape, path=path, offset=0, nbytes=array.nbytes
                )
            self.executor = CpuExecutor(program, infos, dtype="float32", threads=threads)
        ids = np.arange(m, dtype=np.int32)
        ends = np.array([0, m], np.int32)
        self.step = Step(token_ids=ids, cu_seqlens=ends, positions=ids, wanted=ids[-1:])

    def run(self) -> NDArray[Any]:
        self.executor.set_profiling(True)
        y: NDArray[Any] = self.executor.run(self.step, ["y"])["y"]
        return y

    def seconds(self, elapsed: float) -> float:
        """Without the copy of x and the pages of a new result array."""
        return sum(self.executor.op_seconds()[1:])


class Torch:
    def __init__(self, item: Work, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        x, weights = matrices(item)
        self.torch = torch
        self.x, self.weights = torch.from_numpy(x), [torch.from_numpy(w) for w in weights]
        self.out = torch.empty(item.lengths[0], item.lengths[1])

    def run(self) -> NDArray[Any]:
        for weight in self.weights:
            self.torch.mm(self.x, weight.T, out=self.out)
        y: NDArray[Any] = self.out.numpy()
        return y

    def seconds(self, elapsed: float) -> float:
        return elapsed


class Numpy:
    def __init__(self, item: Work, threads: int) -> None:
        self.x, self.weights = matrices(item)
        self.out = np.empty(item.lengths[:2], np.float32)

    def run(self) -> NDArray[Any]:
        for weight in self.weights:
            np.matmul(self.x, weight.T, out=self.out)
        return self.out

    def seconds(self, elapsed: float) -> float:
        return elapsed


PRODUCTS: dict[str, type[Any]] = {"fastattn": Fastattn, "torch": Torch, "numpy": Numpy}


def load(name: str, item: Work, threads: int) -> Product:
    product: Product = PRODUCTS[name](item, threads)
    return product
