"""Measures the machine's limits: its current rates of arithmetic and reading, and the minimum time of a step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from fastattn import _core
from fastattn.executors.cpu import CpuExecutor
from fastattn.formats import FORMATS
from fastattn.graph.cost import Cost, Formats, StepShape
from fastattn.graph.ir import Program
from fastattn.graph.step_cost import op_cost, op_format

# The formats whose rates are measured, and their names in `_core.measure_limits`.
_RATES: Mapping[str, str] = {"float32": "fma_gflops", "bfloat16": "bf16_gflops", "int8": "int8_gops"}
# The format whose rate limits products with weights of a format.
PRODUCTS: Mapping[str, str] = {name: found.product for name, found in FORMATS.items() if found.product is not None}
# Limits that differ by at most this fraction count as equal. In a steady turn of `fastattn bench`, threads wait for a
# core for at most this fraction of the time.
STEADY = 0.1
UNSTEADY = "~ The machine was busy, or its limits changed during the measurement."
_SMALL_READ_BYTES = 1 << 20  # if the read rate is not needed
_FEW_BYTES = 1 << 24  # less is read so quickly that a thread that starts late may double the time


@dataclass(frozen=True, slots=True)
class Limits:
    """The rates of `threads` threads at the time of measurement.

    rates: billions of operations per second by dtype; a multiply-add counts as two. read_gbps: GB/s of memory reads.
    """

    threads: int
    rates: Mapping[str, float]
    read_gbps: float


@dataclass(frozen=True, slots=True)
class LeastTime:
    """The minimum seconds that a step needs for its operations and for its bytes; the larger is the limit."""

    compute_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        """The limit in seconds."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def binds(self) -> str:
        """The limiting resource: "compute" or "memory"."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"

    def __add__(self, other: LeastTime) -> LeastTime:
        return LeastTime(
            self.compute_seconds + other.compute_seconds,
            self.memory_seconds + other.memory_seconds,
        )


def measure(threads: int, *, seconds: float = 0.2, read_bytes: int = 1 << 29) -> Limits:
    """Measure for about `seconds`; the threads share `read_bytes`. Raises InputError for fewer than one thread."""
    found = _core.measure_limits(threads, seconds, read_bytes)
    return Limits(threads, {dtype: found[name] for dtype, name in _RATES.items()}, found["read_gbps"])


def measure_over(executor: CpuExecutor, *, seconds: float = 0.1) -> Limits:
    """Measure with the read rate of a model's own weights, whether they are in memory or in a cache."""
    measured = measure(executor.threads, seconds=seconds, read_bytes=_SMALL_READ_BYTES)
    return Limits(measured.threads, measured.rates, executor.weight_bytes / _seconds_to_read(executor) / 1e9)


def _seconds_to_read(executor: CpuExecutor) -> float:
    """Return the median time; for few bytes the minimum: on a busy machine, a thread may start late."""
    if executor.weight_bytes >= _FEW_BYTES:
        return statistics.median(executor.seconds_to_read() for _ in range(5))
    return min(executor.seconds_to_read() for _ in range(50))


def least_time(cost: Cost, product_format: str, limits: Limits) -> LeastTime:
    """Return the minimum time of an op. product_format: from `fastattn.graph.step_cost.op_format`."""
    rate = limits.rates[PRODUCTS[product_format]]
    return LeastTime(cost.operations / rate / 1e9, cost.bytes / limits.read_gbps / 1e9)


def are_same(before: float, after: float) -> bool:
    """Return whether the minimum times of a workload, measured before and after it, count as equal."""
    return abs(before - after) <= STEADY * max(before, after)


def step_least_time(program: Program, shape: StepShape, formats: Formats, limits: Limits) -> LeastTime:
    """Return the minimum time of a whole step."""
    times = (least_time(op_cost(program, op, shape, formats), op_format(op, formats), limits) for op in program.ops)
    return sum(times, LeastTime(0.0, 0.0))
