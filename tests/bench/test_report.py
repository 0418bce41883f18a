"""Tables and JSON of measurements."""

from __future__ import annotations

import json
import math

import pytest

from fastattn.bench.report import result_table, rows_as_dicts, share_table
from fastattn.bench.tables import markdown_table, quantity, size, text_table
from fastattn.bench.turns import Limit, Row, Turn

LIMIT = Limit(0.010, 0.004, 4e9, 1e9)


def row(name: str = "8x128", **seconds: float) -> Row:
    made = Row(name, "sequences", 8)
    for library, value in seconds.items():
        made.turns[library] = [Turn(LIMIT, LIMIT, [value, value * 2, value])]
        made.results[library] = {"values": [1.0, 2.0], "top": [1]}
    return made


def test_text_table() -> None:
    assert text_table(["a", "bb"], [["long", "1"], ["x", "234"]]) == "a      bb\nlong    1\nx     234\n"
    assert text_table(["a", "b"], []) == "a  b\n"


def test_markdown_table() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.01"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")]
)
def test_quantities(value: float, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(12, "12 bytes"), (48 << 10, "48 KiB"), (3 << 19, "1.5 MiB"), (1 << 40, "1024 GiB")]
)
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text


def test_fastattn_alone() -> None:
    lines = result_table([row(fastattn=0.020)]).splitlines()
    assert lines[0].split() == ["work", "ms", "best", "ms", "sequences/s", "of", "limit", "limit"]
    assert lines[1].split() == ["8x128", "20.0", "20.0", "400", "50", "%", "compute,", "400", "GFLOP/s"]
    assert len(lines) == 2


def test_compared() -> None:
    made = row(fastattn=0.020, torch=0.050)
    made.errors["openvino"] = "RuntimeError: no"
    lines = result_table([made]).splitlines()
    assert lines[0].endswith("time / ours                            agreement")
    assert lines[1].rstrip().endswith("GFLOP/s")  # ours has no ratio to itself
    assert "2.50x  difference 0e+00, 100 % same argmax" in lines[2]
    assert lines[3].split() == ["8x128", "openvino", "RuntimeError:", "no"]
    assert result_table([made], markdown=True).count("\n") == 5


def test_unsteady_figures_are_marked() -> None:
    made = row(fastattn=0.020)
    made.turns["fastattn"][0] = Turn(LIMIT, Limit(0.02, 0.004, 4e9, 1e9), [0.03])
    text = result_table([made])
    assert "~50 %" in text
    assert text.endswith("~ The machine was busy, or its limits changed during the measurement.\n")


def test_shares() -> None:
    made = row(fastattn=0.020)
    assert share_table([made]) == ""
    made.profile = {"shares": {"linear": 0.9, "attention": 0.08, "add": 0.001}}
    assert [line.split() for line in share_table([made]).splitlines()] == [
        ["share", "of", "the", "time", "linear", "attention"],
        ["8x128", "90.0%", "8.0%"],
    ]


def test_json() -> None:
    made = row(fastattn=0.020, torch=0.050, mute=0.010)
    made.results["torch"] = {"values": [math.nan, 1.0], "top": [0]}
    made.results.pop("mute")
    made.errors["openvino"] = "gone"
    made.profile = {"text": "a table", "shares": {"linear": 1.0}}
    (found,) = json.loads(json.dumps(rows_as_dicts([made]), allow_nan=False))
    assert found["errors"] == {"openvino": "gone"}
    assert found["profile"] == {"shares": {"linear": 1.0}}
    ours, torch = found["libraries"]["fastattn"], found["libraries"]["torch"]
    assert (ours["median_s"], ours["percent"], ours["binds"], ours["agreement"]) == (0.02, 50.0, "compute", None)
    assert torch["ratio"] == 2.5
    assert torch["agreement"] == {"same": 0.0, "difference": None}
    assert found["libraries"]["mute"]["agreement"] is None
    assert ours["turns"][0]["seconds"] == [0.02, 0.04, 0.02]
