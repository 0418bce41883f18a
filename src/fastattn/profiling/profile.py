"""Measures where the time of a step goes, for `model.profile(input_ids)`."""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fastattn.errors import InputError
from fastattn.executors.cpu import CpuExecutor
from fastattn.graph.cost import Cost, StepShape
from fastattn.graph.executor import Cache, Executor
from fastattn.graph.ir import Op, Program, Step
from fastattn.graph.kinds import KINDS
from fastattn.graph.step_cost import op_cost, op_format
from fastattn.models.inputs import Batch
from fastattn.profiling.limits import (
    UNSTEADY,
    LeastTime,
    Limits,
    are_same,
    least_time,
    measure_over,
    step_least_time,
)

_LEAST_RUNS = 5
_BETWEEN = "(between ops)"


@dataclass(frozen=True, slots=True)
class OpProfile:
    """One op of the model in one step, over all layers.

    seconds: time spent in it. share: fraction of the step. operations: a multiply-add counts as two. bytes: of weights
    and KV cache. limit_seconds: the minimum time at the measured rates (0 for an op without products). binds: the
    limiting resource, "compute" or "memory".
    """

    op: str
    count: int
    seconds: float
    share: float
    operations: float = 0.0
    bytes: float = 0.0
    limit_seconds: float = 0.0
    binds: str = ""

    @property
    def rate(self) -> str:
        """The rate for the limiting resource: GFLOP/s of operations, or GB/s of weights and cache."""
        if not self.limit_seconds or not self.seconds:
            return ""
        if self.binds == "compute":
            return f"{self.operations / self.seconds / 1e9:.1f} GFLOP/s"
        return f"{self.bytes / self.seconds / 1e9:.1f} GB/s"

    @property
    def percent(self) -> float | None:
        """The percentage of the limit reached; None if there is no limit."""
        return 100 * self.limit_seconds / self.seconds if self.limit_seconds and self.seconds else None


@dataclass(frozen=True, slots=True, repr=False)
class Profile:
    """A step of a model, op by op; `print` shows it as a table.

    seconds: the median step, timed from Python. ops: slowest first, then the time between ops. limits: the mean of the
    machine's limits before and after. limit_seconds, binds: as in OpProfile, for the whole step. steady: whether these
    limits were the same before and after; otherwise `~` marks the percentages.
    """

    what: str
    dtype: str
    seconds: float
    limit_seconds: float
    binds: str
    limits: Limits
    ops: tuple[OpProfile, ...]
    steady: bool = True

    @property
    def percent(self) -> float:
        """The percentage of its limit that the step reached."""
        return 100 * self.limit_seconds / self.seconds

    def _shown(self, percent: float) -> str:
        """Return a percentage for the table. Above 100, the measured limits did not hold during the step."""
        return f"{'' if self.steady and percent <= 100 else '~'}{percent:.0f} %"

    def shares(self) -> dict[str, float]:
        """Return the share of the step by kind of op, largest first."""
        found: dict[str, float] = {}
        for op in self.ops:
            kind = "between" if op.op == _BETWEEN else op.op.split()[0]
            found[kind] = found.get(kind, 0.0) + op.share
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a dict for JSON."""
        return {**asdict(replace(self, ops=())), "ops": [asdict(op) for op in self.ops]}

    def __repr__(self) -> str:
        return (
            f"<Profile of {self.what}, {self.dtype}: {self.seconds * 1e3:.3f} ms, "
            f"{self._shown(self.percent)} of the limit, {len(self.ops)} rows>"
        )

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in self.limits.rates.items())
        lines = [
            f"{self.what}, {self.dtype}, threads: {self.limits.threads}",
            f"{self.seconds * 1e3:.3f} ms, {self._shown(self.percent)} of the limit, which is {self.binds}"
            f" (measured: {rates} GFLOP/s; weights {self.limits.read_gbps:.1f} GB/s)",
            "",
            f"{'op':<44}{'count':>6}{'ms':>10}{'share':>8}{'rate':>17}{'of limit':>10}",
        ]
        for op in self.ops:
            percent = "" if op.percent is None else self._shown(op.percent)
            lines.append(
                f"{op.op:<44}{op.count or '':>6}{op.seconds * 1e3:>10.3f}{op.share:>8.1%}{op.rate:>17}{percent:>10}"
            )
        if any("~" in line for line in lines):
            lines += ["", UNSTEADY]
        return "\n".join(lines)


def profile_step(executor: Executor, batch: Batch, *, decode: bool, seconds: float) -> Profile:
    """Run a step repeatedly for at least `seconds`, and at least five times; see `Model.profile`."""
    if not isinstance(executor, CpuExecutor):
        raise InputError(f'profile: expected a model on device "cpu", got one of {type(executor).__name__}')
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise InputError(f"seconds: expected a number above 0, got {seconds!r}")
    program = executor.program
    if decode and not program.causal:
        raise InputError("decode: expected a language model, got an encoder")
    if batch.n_tokens == 0:
        raise InputError("input_ids: expected at least one token")
    lengths = tuple(len(row) for row in batch.ids if len(row))
    shape = StepShape((1,) * len(lengths), lengths, 1) if decode else StepShape(lengths, None, 1)
    # A separate executor over the same weights: calls from other threads are not counted, and do not run slower.
    own = executor.with_program(program)
    try:
        before = measure_over(executor)
        wall, op_seconds = _median_run(own, batch.step(1), decode, seconds)
        after = measure_over(executor)
    finally:
        own.close()
    count = f"{len(lengths)} sequence{'s' if len(lengths) > 1 else ''}"
    what = f"{count}, {'1 token each after ' if decode else ''}{sum(lengths)} tokens"
    found = _build(executor, shape, _mean(before, after), what, wall, op_seconds)
    times = [step_least_time(program, shape, executor.formats, limits).seconds for limits in (before, after)]
    return replace(found, steady=are_same(*times))


def _median_run(executor: CpuExecutor, step: Step, decode: bool, seconds: float) -> tuple[float, list[float]]:
    """Return the seconds of the median run and of its ops."""
    prompts = np.diff(step.cu_seqlens).tolist()
    caches: tuple[Cache, ...] = ()
    if decode:
        step, caches = _fill(executor, step, prompts)
    runs: list[tuple[float, list[float]]] = []
    try:
        begin = time.perf_counter()
        while len(runs) <= _LEAST_RUNS or time.perf_counter() - begin < seconds:
            executor.set_profiling(True)
            start = time.perf_counter()
            executor.run(step)
            runs.append((time.perf_counter() - start, executor.op_seconds()))
            for cache, length in zip(caches, prompts, strict=False):
                cache.truncate(length)
    finally:
        for cache in caches:
            cache.close()
    runs = sorted(runs[1:])  # the first run allocates memory
    return runs[len(runs) // 2]


def _fill(executor: CpuExecutor, prompt: Step, lengths: Sequence[int]) -> tuple[Step, tuple[Cache, ...]]:
    """Run the prompts into caches; return the next step, of one token per sequence, and the caches."""
    n = len(lengths)
    caches = tuple(executor.new_cache() for _ in range(n))
    try:
        executor.run(replace(prompt, caches=caches))
    except BaseException:
        for cache in caches:
            cache.close()
        raise
    after = Step(
        token_ids=prompt.token_ids[prompt.cu_seqlens[1:] - 1],
        cu_seqlens=np.arange(n + 1, dtype=np.int32),
        positions=np.array(lengths, np.int32),
        wanted=np.arange(n, dtype=np.int32),
        caches=caches,
    )
    return after, caches


def _mean(a: Limits, b: Limits) -> Limits:
    rates = {name: (rate + b.rates[name]) / 2 for name, rate in a.rates.items()}
    return Limits(a.threads, rates, (a.read_gbps + b.read_gbps) / 2)


def _build(
    executor: CpuExecutor, shape: StepShape, limits: Limits, what: str, wall: float, op_seconds: Sequence[float]
) -> Profile:
    """Build a profile in which ops of the same name in all layers are one row."""
    program, formats = executor.program, executor.formats
    spent: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, Cost] = defaultdict(Cost)
    least: dict[str, LeastTime] = defaultdict(lambda: LeastTime(0.0, 0.0))
    for op, seconds in zip(program.ops, op_seconds, strict=True):
        if KINDS[op.kind].reads == "view":  # no work
            continue
        name, cost = op_name(program, op), op_cost(program, op, shape, formats)
        spent[name].append(seconds)
        costs[name] += cost
        least[name] += least_time(cost, op_format(op, formats), limits)
    rows = [_row(name, seconds, wall, costs[name], least[name]) for name, seconds in spent.items()]
    rows.sort(key=lambda row: -row.seconds)
    between = wall - sum(op_seconds)
    rows.append(OpProfile(_BETWEEN, 0, between, between / wall))
    whole = sum(least.values(), LeastTime(0.0, 0.0))
    return Profile(what, executor.dtype, wall, whole.seconds, whole.binds, limits, tuple(rows))


def _row(name: str, seconds: Sequence[float], wall: float, cost: Cost, least: LeastTime) -> OpProfile:
    total = sum(seconds)
    if KINDS[name.split()[0]].format is None:  # no products: limited by the CPU's caches, whose rates are not measured
        return OpProfile(name, len(seconds), total, total / wall)
    return OpProfile(name, len(seconds), total, total / wall, cost.operations, cost.bytes, least.seconds, least.binds)


def op_name(program: Program, op: Op) -> str:
    """Return the kind, the name of the weight without its layer, and its [out_features, in_features]."""
    if not op.weights:
        return op.kind
    first, *others = (part.removesuffix(".weight") for part in op.weights[0].split("+"))
    short = re.split(r"\.\d+\.", first)[-1] + "".join(f"+{part.rpartition('.')[2]}" for part in others)
    if op.kind != "linear":
        return f"{op.kind} {short}"
    return f"{op.kind} {short} [{program.values[op.output].width}, {program.values[op.inputs[0]].width}]"
