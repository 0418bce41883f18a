"""Converts measurements to a roofline plot (`picture`)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from fastattn.bench.machine import RATE_NAMES, Machine, headline
from fastattn.bench.picture import Plot, Point, Roof
from fastattn.bench.run import ModelBench
from fastattn.bench.turns import OURS, Row
from fastattn.profiling.limits import PRODUCTS

_NOTE = (
    "A point's height is the roof in this plot times the point's percentage of its limit; that limit was measured "
    "before and after it."
)


def plot(benches: Sequence[ModelBench], machine: Machine | None, about: dict[str, Any]) -> Plot:
    """Create a plot with the roofs of the machine (if measured) and of the models' limits, and a point per workload."""
    benches = [bench for bench in benches if any(row.profile is not None for row in bench.rows)]
    roofs: list[Roof] = []
    points: list[Point] = []
    if machine is not None:
        threads = max(machine.limits)
        roofs += [Roof(RATE_NAMES.get(n, n), gops=rate) for n, rate in machine.limits[threads].rates.items()]
        roofs += [Roof(read.place, gbps=read.gbps) for read in machine.reads[threads]]
    weights = [measured_rates(bench.rows)[1] for bench in benches]
    same = [
        gbps for gbps in weights for roof in roofs if roof.name == "memory" and 2 / 3 < gbps / (roof.gbps or 0) < 1.5
    ]
    roofs = [roof for roof in roofs if roof.name != "memory" or not same]  # the weights are in memory: one roof
    for bench in benches:
        rates, gbps = measured_rates(bench.rows)
        product = PRODUCTS[bench.dtype]
        name = RATE_NAMES[product]
        roofs = [roof for roof in roofs if roof.name != name]
        roofs.append(Roof(name, gops=rates[product], main=True))
        roofs.append(Roof(f"weights of {bench.name}", gbps=gbps, main=True))
        several = f"{bench.name} " if len(benches) > 1 else ""
        for row in bench.rows:
            points += row_points(row, f"{several}{row.name}", rates[product], gbps)
    names = ", ".join(dict.fromkeys(f"{bench.name} in {bench.dtype}" for bench in benches)) or "Limits of the machine"
    threads = benches[0].threads if benches else max(machine.limits) if machine else 1
    title = f"{names}, {threads} thread{'s' if threads > 1 else ''}"
    return Plot(title, headline(about), roofs, points, [_NOTE] if points else [])


def measured_rates(rows: Sequence[Row]) -> tuple[dict[str, float], float]:
    """Return the medians of the limits measured with the profiles: rates, and GB/s of reading the weights."""
    limits = [row.profile["limits"] for row in rows if row.profile is not None]
    names = limits[0]["rates"]
    rates = {name: statistics.median(found["rates"][name] for found in limits) for name in names}
    return rates, statistics.median(found["read_gbps"] for found in limits)


def row_points(row: Row, name: str, gops: float, gbps: float) -> list[Point]:
    """Return one point per library, ours first."""
    cost = row.limit(OURS)
    intensity = cost.operations / cost.bytes
    roof = min(gops, gbps * intensity)
    return [
        Point(name, library, intensity, roof * row.percent(library) / 100, row.percent(library))
        for library in row.turns
    ]
