"""The plot is well-formed, complete and plain: no scripts, nothing from the network."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fastattn.bench.machine import CacheLevel, Machine, ReadRate
from fastattn.bench.picture import HEIGHT, WIDTH, Plot, Point, Roof, save, to_html, to_svg
from fastattn.bench.roofline import plot, row_points
from fastattn.bench.run import ModelBench
from fastattn.bench.turns import Limit, Row, Turn
from fastattn.profiling.limits import Limits

SVG = "{http://www.w3.org/2000/svg}"
ROOFS = [
    Roof("float32 multiply-add", gops=480.0, main=True),
    Roof("int8 dot product", gops=1900.0),
    Roof("weights", gbps=44.0, main=True),
    Roof("L2", gbps=380.0),
]
POINTS = [
    Point("prefill-512", "fastattn", 200.0, 420.0, 87.5),
    Point("decode-1", "fastattn", 0.5, 21.0, 95.0),
    Point("decode-1", "torch", 0.5, 8.0, 38.0),
    Point('odd <name> & "quotes"', "torch", 4.0, 60.0, 40.0),
]


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def drawn(made: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(to_svg(made))


def test_everything_is_in_it() -> None:
    root = drawn(Plot("A <title>", "a machine & more", ROOFS, POINTS, ["a note"]))
    found = texts(root)
    assert root.tag == f"{SVG}svg"
    for text in ("A <title>", "a machine & more", "a note", "prefill-512  88 %", "decode-1  95 %", "38 %", "40 %",
                 "float32 multiply-add, 480", "weights, 44.0 GB/s", "L2, 380 GB/s", "fastattn", "torch"):  # fmt: skip
        assert text in found
    marks = [group.find(f"{SVG}title") for group in root.iter(f"{SVG}g")]
    assert {mark.text for mark in marks if mark is not None} == {
        "decode-1, fastattn: 21.0 billion operations/s, 0.5 per byte, 95 % of its limit",
        "prefill-512, fastattn: 420 billion operations/s, 200 per byte, 88 % of its limit",
        'odd <name> & "quotes", torch: 60.0 billion operations/s, 4 per byte, 40 % of its limit',
        "decode-1, torch: 8.00 billion operations/s, 0.5 per byte, 38 % of its limit",
    }


def test_it_is_plain() -> None:
    for text in (to_svg(Plot("t", "s", ROOFS, POINTS)), to_html(Plot("t", "s", ROOFS, POINTS), "table")):
        assert "<script" not in text
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
        assert not re.findall(r"(?:href|src|@import|url\()", text)


def test_colors_for_a_dark_background() -> None:
    style = drawn(Plot("t", "s", ROOFS, POINTS)).find(f"{SVG}style")
    assert style is not None
    light, _, dark = (style.text or "").partition("@media (prefers-color-scheme: dark)")
    names = set(re.findall(r"\.([a-z]\w*) \{[^}]*#", light))
    assert {"ground", "grid", "roof", "thin", "c0", "t0", "c5", "t5", "halo"} <= names
    assert names == set(re.findall(r"\.([a-z]\w*) \{[^}]*#", dark))  # every light color has a dark replacement
    assert (style.text or "").count("{") == (style.text or "").count("}")


def test_points_and_texts_are_inside() -> None:
    many = [Point(f"work-{i}", f"library-{i % 7}", 0.3 * 1.5**i, 5.0 * 1.3**i, i * 6.0) for i in range(16)]
    root = drawn(Plot("t", "s", ROOFS, many))
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.attrib["cx"]) < WIDTH
        assert 0 < float(circle.attrib["cy"]) < HEIGHT
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) <= WIDTH
        assert 0 <= float(text.attrib["y"]) <= HEIGHT


def test_points_at_one_place_have_labels_apart() -> None:
    same = [Point(f"work-{i}", "fastattn", 10.0, 100.0, 50.0) for i in range(6)]
    root = drawn(Plot("t", "s", ROOFS, same))
    places = [
        (text.attrib["x"], text.attrib["y"]) for text in root.iter(f"{SVG}text") if (text.text or "").startswith("work")
    ]
    assert len(set(places)) == 6


@pytest.mark.parametrize(
    ("roofs", "points"),
    [
        ([Roof("float32", gops=480.0)], []),
        ([Roof("memory", gbps=40.0)], []),
        (ROOFS, []),
        ([], [Point("a", "fastattn", 1.0, 1.0, 50.0)]),
        ([Roof("float32", gops=0.001, main=True), Roof("memory", gbps=1e6, main=True)], POINTS),
        (ROOFS, [Point("nothing", "fastattn", 1e-3, 1e-6, 0.0)]),
    ],
)
def test_little_to_draw(roofs: list[Roof], points: list[Point]) -> None:
    root = drawn(Plot("t", "s", roofs, points))
    numbers = [float(value) for e in root.iter() for key, value in e.attrib.items() if key in ("x", "y", "x1", "cy")]
    assert all(abs(number) < 1e5 for number in numbers)


def test_files(tmp_path: Path) -> None:
    made = Plot("t", "s", ROOFS, POINTS)
    save(made, tmp_path / "a.svg", "ignored")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == to_svg(made)
    save(made, tmp_path / "a.html", "a table of <work>")
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "a table of &lt;work&gt;" in page
    ElementTree.fromstring(page.partition("\n")[2])  # the page is well-formed too


def bench() -> ModelBench:
    limit = Limit(0.5, 1.0, 40e9, 10e9)
    row = Row("decode-1", "tokens", 1, {"fastattn": [Turn(limit, limit, [1.25])], "torch": [Turn(limit, limit, [2.0])]})
    row.profile = {"limits": {"rates": {"float32": 80.0}, "read_gbps": 10.0}}
    return ModelBench("m", Path("m"), "causal-lm", "float32", "float32", 2, 1000, [row])


def test_points_of_a_row() -> None:
    ours, torch = row_points(bench().rows[0], "decode-1", 80.0, 10.0)
    assert (ours.intensity, ours.percent, ours.gops) == (4.0, 80.0, 32.0)  # 80 % of 4 operations per byte at 10 GB/s
    assert (torch.library, torch.percent, torch.gops) == ("torch", 50.0, 20.0)


def test_a_plot_of_measurements() -> None:
    about = {"cpu": "X", "cpus": 2, "target": "avx2", "fastattn": "1", "compiler": "gcc"}
    limits = {1: Limits(1, {"float32": 40.0}, 9.0), 2: Limits(2, {"float32": 78.0, "int8": 300.0}, 9.5)}
    reads = {1: (ReadRate("memory", 1, 9.0),), 2: (ReadRate("L1", 1, 100.0), ReadRate("memory", 1, 9.5))}
    machine = Machine((CacheLevel(1, 1, (frozenset({0}),)),), limits, reads)
    made = plot([bench()], machine, about)
    assert [(roof.name, roof.main) for roof in made.roofs] == [
        ("int8 dot product", False), ("L1", False), ("float32 multiply-add", True), ("weights of m", True),
    ]  # fmt: skip
    assert made.title == "m in float32, 2 threads"
    assert len(made.points) == 2
    alone = plot([], machine, about)
    assert [roof.name for roof in alone.roofs] == ["float32 multiply-add", "int8 dot product", "L1", "memory"]
    assert alone.title == "Limits of the machine, 2 threads"
    for drawn_plot in (made, alone):
        drawn(drawn_plot)
