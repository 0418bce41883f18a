"""The machine's limits: how fast it multiplies and reads at this moment, and the least time that a step can take."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fastattn import _core
from fastattn.graph.cost import Cost, StepShape, op_cost
from fastattn.graph.ir import Program

# Names in `_core.measure_limits`, which end in _gflops or _gops (billions a second), _flops or _ops.
_DTYPES: Mapping[str, str] = {"fma": "float32", "f32": "float32", "bf16": "bfloat16", "int8": "int8"}
_BILLIONS: Mapping[str, float] = {"gflops": 1.0, "gops": 1.0, "flops": 1e-9, "ops": 1e-9}
# Whose products a dtype uses, the fastest first; a build without one of them is measured by the next.
_PRODUCTS: Mapping[str, tuple[str, ...]] = {
    "float32": ("float32",),
    "float64": ("float32",),
    "bfloat16": ("bfloat16", "float32"),
    "int8": ("int8", "float32"),
    "int4": ("int8", "float32"),
}
_SMALL_READ_BYTES = 1 << 20  # where the read rate is not asked for


class Loaded(Protocol):
    """Weights in memory, and the threads that read them: `fastattn.runtime.CpuExecutor`."""

    @property
    def threads(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    def seconds_to_read(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates of `threads` threads at one moment.

    rates: billions of operations a second by dtype, a multiply-add counted as two; read_gbps: GB/s of reading memory.
    """

    threads: int
    rates: Mapping[str, float]
    read_gbps: float

    def products(self, dtype: str) -> str:
        """The dtype whose measured rate bounds the products of a model of this dtype."""
        return next(name for name in _PRODUCTS.get(dtype, ("float32",)) if name in self.rates)


@dataclass(frozen=True, slots=True)
class LeastTime:
    """The seconds that a step needs at least for its operations and for its bytes; the longer of the two binds."""

    compute_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        """The limit."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def binds(self) -> str:
        """ "compute" or "memory"."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"

    def __add__(self, other: LeastTime) -> LeastTime:
        return LeastTime(
            self.compute_seconds + other.compute_seconds,
            self.memory_seconds + other.memory_seconds,
        )


def measure(threads: int, *, seconds: float = 0.2, read_bytes: int = 1 << 29) -> Limits:
    """Measure now, for about `seconds`; the threads share `read_bytes`. Raises InputError for less than one thread."""
    rates: dict[str, float] = {}
    read_gbps = 0.0
    for name, value in _core.measure_limits(threads, seconds, read_bytes).items():
        kernel, _, unit = name.rpartition("_")
        if unit == "gbps":
            read_gbps = float(value)
        elif unit in _BILLIONS:
            rates[_DTYPES.get(kernel, kernel)] = float(value) * _BILLIONS[unit]
    return Limits(threads, rates, read_gbps)


def measure_over(executor: Loaded, *, seconds: float = 0.1) -> Limits:
    """The same with the read rate of the very weights of a model, wherever they lie: in memory or in a cache."""
    measured = measure(executor.threads, seconds=seconds, read_bytes=_SMALL_READ_BYTES)
    reading = statistics.median(executor.seconds_to_read() for _ in range(5))
    return Limits(measured.threads, measured.rates, executor.weight_bytes / reading / 1e9)


def op_least_time(kind: str, cost: Cost, dtype: str, limits: Limits) -> LeastTime:
    """Of one op. Products with weights run at the rate of the model's dtype, attention at that of float32."""
    rate = limits.rates[limits.products(dtype if kind == "linear" else "float32")]
    return LeastTime(cost.operations / rate / 1e9, cost.bytes / limits.read_gbps / 1e9)


def step_least_time(program: Program, shape: StepShape, dtype: str, limits: Limits) -> LeastTime:
    """Of a whole step."""
    times = (op_least_time(op.kind, op_cost(program, op, shape, dtype), dtype, limits) for op in program.ops)
    return sum(times, LeastTime(0.0, 0.0))
