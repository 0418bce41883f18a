"""Rates and the minimum time of a step; no test depends on a clock."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from fastattn import _core
from fastattn.errors import InputError
from fastattn.formats import DTYPES
from fastattn.graph.cost import Cost, Formats, StepShape
from fastattn.graph.ir import Op, Program, Value, Weight
from fastattn.graph.step_cost import step_cost
from fastattn.profiling import limits
from fastattn.profiling.limits import PRODUCTS, LeastTime, Limits, least_time, measure, step_least_time

PLAIN = {"activation": "none", "has_bias": False, "has_residual": False}


def test_the_machine_has_rates() -> None:
    for threads in (1, 2):
        found = measure(threads, seconds=0.01, read_bytes=1 << 20)
        assert found.threads == threads
        assert "float32" in found.rates
        assert all(rate > 0 for rate in found.rates.values())
        assert found.read_gbps > 0


def test_fewer_than_one_thread() -> None:
    with pytest.raises(InputError, match="threads"):
        measure(0)


def test_names_of_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rate of the C++ is read, under the name of its format."""
    rates = {"fma_gflops": 480.0, "bf16_gflops": 960.0, "int8_gops": 1800.0, "read_gbps": 40.0}
    assert set(_core.measure_limits(1, 0.01, 1 << 20)) == set(rates)
    monkeypatch.setattr(limits, "_core", SimpleNamespace(measure_limits=lambda *_: rates))
    assert measure(2) == Limits(2, {"float32": 480.0, "bfloat16": 960.0, "int8": 1800.0}, 40.0)


@pytest.mark.parametrize(("weight_bytes", "gbps"), [(1 << 20, 1.0), (1 << 24, 0.5)])
def test_few_bytes_are_read_at_their_best_rate(weight_bytes: int, gbps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, the threads of most readings start late: 3 of 4 take twice the time of the others."""
    monkeypatch.setattr(limits, "measure", lambda threads, **_: Limits(threads, {}, 0.0))
    times = itertools.cycle([2.0, 2.0, 1.0, 2.0])
    executor: Any = SimpleNamespace(
        threads=2, weight_bytes=weight_bytes, seconds_to_read=lambda: next(times) * weight_bytes / 1e9
    )
    assert limits.measure_over(executor).read_gbps == pytest.approx(gbps)


def test_every_format_has_a_rate() -> None:
    """Each format that this build measures has its own rate: a limit never uses the rate of another format."""
    rates = measure(1, seconds=0.01, read_bytes=1 << 20).rates
    assert set(PRODUCTS.values()) <= set(rates)
    assert set(PRODUCTS) == set(DTYPES["cpu"])


def test_the_longer_time_binds() -> None:
    machine = Limits(1, {"float32": 100.0, "int8": 400.0}, 10.0)
    cost = Cost(multiply_adds=1e9, weight_bytes=1e8, kv_bytes=1e8)
    least = least_time(cost, "float32", machine)
    assert (least.compute_seconds, least.memory_seconds) == (2e9 / 100e9, 2e8 / 10e9)
    assert least_time(cost, "int8", machine).compute_seconds == 2e9 / 400e9
    assert least_time(cost, "int4", machine).compute_seconds == 2e9 / 400e9
    assert LeastTime(2.0, 1.0).binds == "compute"
    assert LeastTime(1.0, 2.0).binds == "memory"
    assert LeastTime(1.0, 2.0).seconds == 2.0
    assert LeastTime(1.0, 2.0) + LeastTime(3.0, 1.0) == LeastTime(4.0, 3.0)


def test_a_step_is_bound_by_its_sums() -> None:
    """With one op that multiplies and one that reads, the limit is not the sum of the two maxima."""
    program = Program(
        values=(Value("tokens", 8), Value("tokens", 4), Value("tokens", 1000)),
        ops=(
            Op("embedding", (), 0, ("t",), {"index": "token_ids"}),
            Op("linear", (0,), 1, ("a",), PLAIN),
            Op("linear", (1,), 2, ("b",), PLAIN),
        ),
        weights={
            "t": Weight(("t",), "table", (5, 8)),
            "a": Weight(("a",), "matrix", (4, 8)),
            "b": Weight(("b",), "matrix", (1000, 4)),
        },
        outputs={"y": 2}, n_layer=0, n_kv_head=1, head_dim=1, max_positions=5, causal=False,
    )  # fmt: skip
    machine = Limits(1, {"float32": 1e-3}, 1e-3)
    shape = StepShape((3,))
    cost = step_cost(program, shape)
    least = step_least_time(program, shape, Formats(), machine)
    assert cost == Cost(3 * (8 * 4 + 4 * 1000), 4 * (3 * 8 + 8 * 4 + 4 * 1000))
    # Sums of the same few integers over the same rate, in another order: equal up to their own rounding.
    assert least.compute_seconds == pytest.approx(cost.operations / 1e6, rel=len(program.ops) * 2.0**-50)
    mixed = step_least_time(program, shape, Formats({"b": "int8"}), Limits(1, {"float32": 1e-3, "int8": 4e-3}, 1e-3))
    assert mixed.compute_seconds == pytest.approx(2 * 3 * (8 * 4 + 4 * 1000 / 4) / 1e6, rel=4 * 2.0**-50)
    assert least.memory_seconds == pytest.approx(cost.bytes / 1e6, rel=len(program.ops) * 2.0**-50)
