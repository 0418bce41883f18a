"""Formats measurements as tables and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastattn.bench.tables import markdown_table, quantity, text_table
from fastattn.bench.turns import OURS, Row
from fastattn.profiling.limits import UNSTEADY

_LEAST_SHARE = 0.005  # minimum share of the time for a separate column


def result_table(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """Return a table of time, rate and percent of the limit per library, with the ratio to ours and the agreement."""
    compared = any(len(row.turns) > 1 or row.errors for row in rows)
    unit = "/".join(dict.fromkeys(row.unit for row in rows))
    header = ["work", *(["library"] if compared else []), "ms", "best ms", f"{unit}/s", "of limit", "limit"]
    header += ["time / ours", "agreement"] if compared else []
    cells = []
    for row in rows:
        for library in row.turns:
            seconds, best = row.median(library), min(row.seconds(library))
            limit = row.limit(library)
            line = [row.name, *([library] if compared else []), quantity(seconds * 1e3), quantity(best * 1e3)]
            about = "" if row.is_steady(library) else "~"
            line += [quantity(row.rate(library)), f"{about}{row.percent(library):.0f} %", str(limit)]
            if compared:
                other = library != OURS and OURS in row.turns
                line += [f"{row.ratio(library):.2f}x", str(row.agreement(library) or "")] if other else ["", ""]
            cells.append(line)
        cells += [[row.name, library, *[""] * (len(header) - 3), error] for library, error in row.errors.items()]
    table = markdown_table(header, cells) if markdown else text_table(header, cells, left=2 if compared else 1)
    steady = all(row.is_steady(library) for row in rows for library in row.turns)
    return table if steady else f"{table}\n{UNSTEADY}\n"


def share_table(rows: Sequence[Row]) -> str:
    """Return a table of fastattn's time by kind of op; empty if nothing was profiled."""
    shares = {row.name: row.profile["shares"] for row in rows if row.profile is not None}
    if not shares:
        return ""
    most: dict[str, float] = {}
    for found in shares.values():
        for kind, share in found.items():
            most[kind] = max(most.get(kind, 0.0), share)
    kinds = [kind for kind, share in sorted(most.items(), key=lambda item: -item[1]) if share >= _LEAST_SHARE]
    cells = [[name, *(f"{found.get(kind, 0.0):.1%}" for kind in kinds)] for name, found in shares.items()]
    return text_table(["share of the time", *kinds], cells)


def rows_as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return results and all samples, for JSON."""
    return [
        {
            "work": row.name,
            "unit": row.unit,
            "count": row.count,
            "libraries": {library: _figures(row, library) for library in row.turns},
            "errors": row.errors,
            "profile": row.profile and {name: value for name, value in row.profile.items() if name != "text"},
        }
        for row in rows
    ]


def _figures(row: Row, library: str) -> dict[str, Any]:
    agreement = row.agreement(library) if library != OURS else None
    limit = row.limit(library)
    return {
        "median_s": row.median(library),
        "best_s": min(row.seconds(library)),
        "per_second": row.rate(library),
        "percent": round(row.percent(library), 2),
        "binds": limit.binds,
        "ratio": round(row.ratio(library), 4) if OURS in row.turns else None,
        "agreement": agreement and {**asdict(agreement), "difference": _finite(agreement.difference)},
        "limit": asdict(limit),
        "turns": [
            {
                "limit_s": [turn.before.seconds, turn.after.seconds],
                "steady": turn.steady,
                "waited": round(turn.waited, 3),
                "seconds": [round(seconds, 9) for seconds in turn.seconds],
            }
            for turn in row.turns[library]
        ],
    }


def _finite(value: float | None) -> float | None:
    """Replace infinity and NaN, which JSON does not have, with None."""
    return value if value is not None and math.isfinite(value) else None
