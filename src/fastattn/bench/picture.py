"""Draws a roofline plot (Williams, Waterman and Patterson 2009) as SVG, or as an HTML page with the SVG.

The x axis shows operations per byte of weights and cache that a workload must read. The y axis shows billions of
operations per second. The machine's limits are roofs: slanted for reading and level for multiplication. Each workload
is a point below them. The SVG has no scripts and is readable on light and dark backgrounds.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from fastattn.bench.tables import quantity

WIDTH, HEIGHT = 960, 620
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 62, 84
_TEXT_WIDTH = 0.56  # width of a letter, relative to the font size
_SMALL, _NORMAL = 11, 13
_SHAPES = ("circle", "square", "diamond", "triangle", "cross", "ring")
# Okabe and Ito's color-blind safe colors; the second color of each pair is for dark backgrounds.
_COLORS = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9650"),
    ("#007a5a", "#35c79c"),
    ("#a0527f", "#e59cc4"),
    ("#7a6a00", "#f0e442"),
    ("#555555", "#bbbbbb"),
)
_Box = tuple[float, float, float, float]  # left, top, right, bottom
_STYLE = """
text { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #222222; }
.halo { paint-order: stroke; stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; }
.ground { fill: #ffffff; }
.quiet { fill: #666666; }
.grid { stroke: #e4e4e4; stroke-width: 1; }
.frame { stroke: #999999; stroke-width: 1; fill: none; }
.roof { stroke: #222222; stroke-width: 2.5; fill: none; }
.thin { stroke: #8a8a8a; stroke-width: 1.2; stroke-dasharray: 5 4; fill: none; }
.lead { stroke: #aaaaaa; stroke-width: 0.8; }
"""
_DARK_STYLE = """
text { fill: #e8e8e8; }
.halo { stroke: #16181c; }
.ground { fill: #16181c; }
.quiet { fill: #a5a5a5; }
.grid { stroke: #2c3037; }
.frame { stroke: #6a6f78; }
.roof { stroke: #f0f0f0; }
.thin { stroke: #858b95; }
.lead { stroke: #6a6f78; }
"""


@dataclass(frozen=True, slots=True)
class Roof:
    """A limit: `gbps` of reading, or `gops` (billions of operations per second) of multiplication. main: drawn bold."""

    name: str
    gbps: float | None = None
    gops: float | None = None
    main: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """One workload in one library: operations per byte, billions of operations per second, and percent of its limit."""

    name: str
    library: str
    intensity: float
    gops: float
    percent: float


@dataclass(frozen=True, slots=True)
class Plot:
    """The content of the plot. notes: lines under the plot."""

    title: str
    subtitle: str
    roofs: Sequence[Roof]
    points: Sequence[Point] = ()
    notes: Sequence[str] = ()


class _Axes:
    """Logarithmic axes that contain all points and the roofs above them."""

    def __init__(self, plot: Plot) -> None:
        levels = [roof.gops for roof in plot.roofs if roof.gops]
        slopes = [roof.gbps for roof in plot.roofs if roof.gbps]
        top = max([*levels, *(p.gops for p in plot.points)], default=1.0)
        ridge = top / min(slopes) if slopes else 1.0
        xs = [p.intensity for p in plot.points if p.intensity > 0] or [ridge / 30]
        self.x0, self.x1 = min(*xs, ridge) / 2, max(*xs, ridge) * 2.5
        lowest = [p.gops for p in plot.points if p.gops > 0] or [min(slopes, default=top) * self.x0 * 2]
        self.y0, self.y1 = min(*lowest, top) / 2, top * 1.8

    def x(self, value: float) -> float:
        share = math.log(value / self.x0) / math.log(self.x1 / self.x0)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = math.log(value / self.y0) / math.log(self.y1 / self.y0)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


class _Labels:
    """Finds places for labels that overlap no other label, point or roof."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._boxes: list[_Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]

    def take(self, text: str, x: float, y: float, size: int) -> tuple[float, float, str]:
        """Return where to place a label near (x, y): its baseline position and anchor."""
        width = len(text) * size * _TEXT_WIDTH
        best: tuple[int, tuple[float, float, str], _Box] | None = None
        for step in range(9):
            gap = 11 + 12 * step
            for at_x, at_y, anchor in (
                (x + 11, y + 4 + 12 * step, "start"),
                (x - 11, y + 4 + 12 * step, "end"),
                (x, y + gap + 6, "middle"),
                (x + 11, y + 4 - 12 * step, "start"),
                (x - 11, y + 4 - 12 * step, "end"),
                (x, y - gap, "middle"),
            ):
                left = at_x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
                box = (left - 2, at_y - size, left + width + 2, at_y + 3)
                hits = self.hits([box])
                inside = box[0] >= _LEFT and box[2] <= WIDTH - _RIGHT
                inside = inside and box[1] >= _TOP and box[3] <= HEIGHT - _BOTTOM
                hits += 0 if inside else 100
                if best is None or hits < best[0]:
                    best = (hits, (at_x, at_y, anchor), box)
                if best[0] == 0:
                    break
            if best is not None and best[0] == 0:
                break
        assert best is not None
        self._boxes.append(best[2])
        return best[1]

    def block(self, boxes: Iterable[_Box]) -> None:
        """Prevent labels in these areas."""
        self._boxes += boxes

    def hits(self, boxes: Iterable[_Box]) -> int:
        """Return the number of overlaps with blocked areas."""
        return sum(_overlap(box, other) for box in boxes for other in self._boxes)


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _element(name: str, text: str | None = None, **attributes: object) -> str:
    """Return one element. The attribute class_ becomes class, and _ in a name becomes -."""
    parts = [name]
    for key, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f"{key.rstrip('_').replace('_', '-')}={quoteattr(shown)}")
    body = " ".join(parts)
    return f"<{body}/>" if text is None else f"<{body}>{text}</{name}>"


def _text(x: float, y: float, text: str, *, size: int = _NORMAL, anchor: str = "start", **attributes: object) -> str:
    return _element("text", escape(text), x=x, y=y, font_size=size, text_anchor=anchor, **attributes)


def _line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return _element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def to_svg(plot: Plot) -> str:
    """Return the plot as an SVG document."""
    axes = _Axes(plot)
    libraries = list(dict.fromkeys(point.library for point in plot.points))
    places = [(axes.x(point.intensity), axes.y(point.gops)) for point in plot.points]
    labels = _Labels(places)
    body = [
        _element("title", escape(plot.title)),
        _element("style", _styles()),
        _element("rect", width=WIDTH, height=HEIGHT, class_="ground"),
        _text(_LEFT, 26, plot.title, size=18, font_weight="bold"),
        _text(_LEFT, 46, plot.subtitle, size=_SMALL, class_="quiet"),
        *_grid(axes),
        *_roofs(axes, plot.roofs, labels),
        *_points(plot.points, places, libraries, labels),
        *_legend(libraries),
        *(_text(_LEFT, HEIGHT - 10 - 14 * i, note, size=_SMALL, class_="quiet") for i, note in
          enumerate(reversed(plot.notes))),
    ]  # fmt: skip
    attributes = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": WIDTH, "height": HEIGHT, "role": "img"}
    return _element("svg", "\n" + "\n".join(body) + "\n", xmlns="http://www.w3.org/2000/svg", **attributes) + "\n"


def _styles() -> str:
    light, dark = list[str](), list[str]()
    for i, (on_light, on_dark) in enumerate(_COLORS):
        for rules, color in ((light, on_light), (dark, on_dark)):
            rules.append(f".c{i} {{ fill: {color}; stroke: {color}; }} .t{i} {{ fill: {color}; }}")
    by_day, by_night = _STYLE + "\n".join(light), _DARK_STYLE + "\n".join(dark)
    return escape(f"{by_day}\n@media (prefers-color-scheme: dark) {{{by_night}\n}}\n")


def _ticks(low: float, high: float) -> list[tuple[float, bool]]:
    """Return 1, 2 and 5 times the powers of ten, and whether each is a power of ten."""
    found = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**power
            if low <= value <= high:
                found.append((value, digit == 1))
    return found


def _grid(axes: _Axes) -> list[str]:
    left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM
    found = []
    for value, major in _ticks(axes.x0, axes.x1):
        found.append(_line(axes.x(value), top, axes.x(value), bottom, "grid"))
        if major or axes.x1 / axes.x0 < 1000:
            found.append(_text(axes.x(value), bottom + 16, f"{value:g}", size=_SMALL, anchor="middle", class_="quiet"))
    for value, major in _ticks(axes.y0, axes.y1):
        found.append(_line(left, axes.y(value), right, axes.y(value), "grid"))
        if major or axes.y1 / axes.y0 < 1000:
            text = f"{value:,.0f}" if value >= 1 else f"{value:g}"
            found.append(_text(left - 6, axes.y(value) + 4, text, size=_SMALL, anchor="end", class_="quiet"))
    middle = (top + bottom) / 2
    found.append(_element("rect", x=left, y=top, width=right - left, height=bottom - top, class_="frame"))
    found.append(_text(right, bottom + 34, "operations per byte of weights and KV cache", size=_SMALL, anchor="end"))
    turned = f"rotate(-90 20 {middle:.0f})"
    found.append(_text(20, middle, "billions of operations per second", size=_SMALL, anchor="middle", transform=turned))
    return found


def _roofs(axes: _Axes, roofs: Sequence[Roof], labels: _Labels) -> list[str]:
    levels = [roof for roof in roofs if roof.gops]
    slopes = sorted((roof for roof in roofs if roof.gbps), key=lambda roof: -(roof.gbps or 0))
    top = max((roof.gops or 0 for roof in levels), default=axes.y1)
    highest = max((roof.gops or 0 for roof in levels if roof.main), default=top)
    fastest = max((roof.gbps or 0 for roof in slopes), default=0.0)
    slowest_main = min((roof.gbps or 0 for roof in slopes if roof.main), default=fastest)
    found = []
    for roof in levels:
        value = roof.gops or 0.0
        start = max(axes.x0, value / (slowest_main if roof.main and slowest_main else fastest or math.inf))
        y, right = axes.y(value), axes.x(axes.x1)
        found.append(_line(axes.x(start), y, right, y, "roof" if roof.main else "thin"))
        text = f"{roof.name}, {quantity(value)}"
        found.append(_text(right - 8, y - 5, text, size=_SMALL, anchor="end"))
        labels.block([(right - 8 - len(text) * _SMALL * _TEXT_WIDTH, y - 17, right - 8, y)])
        if roof.main:
            labels.block([(axes.x(start), y - 1, right, y + 1)])
    angle = math.degrees(math.atan2(axes.y(1) - axes.y(10), axes.x(10) - axes.x(1)))
    lines = []
    for roof in slopes:
        gbps = roof.gbps or 0.0
        low, high = max(axes.x0, axes.y0 / gbps), min((highest if roof.main else top) / gbps, axes.x1)
        if high <= low:
            continue
        begin, end = (axes.x(low), axes.y(gbps * low)), (axes.x(high), axes.y(gbps * high))
        found.append(_line(*begin, *end, "roof" if roof.main else "thin"))
        lines.append((roof, begin, math.dist(begin, end)))
        if roof.main:
            labels.block(_along(begin, angle, 0.0, lines[-1][2], -1, 1))
    for roof, begin, length in lines:
        found.append(_slanted(f"{roof.name}, {quantity(roof.gbps or 0)} GB/s", begin, angle, length, labels))
    return found


def _along(
    begin: tuple[float, float], angle: float, start: float, end: float, above: float, below: float
) -> list[_Box]:
    """Return small boxes along a slanted line, from `start` to `end` of its length.

    Each extends `above` and `below` pixels from the line.
    """
    steps = max(1, round((end - start) / 8))
    half = (end - start) / steps / 2
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    middles = [start + (2 * i + 1) * half for i in range(steps)]
    return [
        (
            begin[0] + (m - half) * cos,
            begin[1] - m * sin + above,
            begin[0] + (m + half) * cos,
            begin[1] - m * sin + below,
        )
        for m in middles
    ]


def _slanted(text: str, begin: tuple[float, float], angle: float, length: float, labels: _Labels) -> str:
    """Draw a text just above a slanted line, where it has the fewest overlaps."""
    width = len(text) * _SMALL * _TEXT_WIDTH
    starts = [10 + (length - width - 20) * i / 12 for i in range(13)] if length > width + 20 else [10.0]
    boxes = {start: _along(begin, angle, start, start + width, -16, -4) for start in starts}
    start = min(starts, key=lambda at: (labels.hits(boxes[at]), at))
    labels.block(boxes[start])
    x = begin[0] + start * math.cos(math.radians(angle))
    y = begin[1] - start * math.sin(math.radians(angle))
    turned = f"rotate({-angle:.2f} {x:.2f} {y:.2f}) translate(0 -5)"
    return _text(x, y, text, size=_SMALL, transform=turned)


def _points(
    points: Sequence[Point], places: Sequence[tuple[float, float]], libraries: Sequence[str], labels: _Labels
) -> list[str]:
    """Draw the points: the first library's with names, the others' only with their percent."""
    found, texts = [], []
    order = sorted(range(len(points)), key=lambda i: (libraries.index(points[i].library) > 0, places[i][1], places[i]))
    for i in order:
        point, (x, y) = points[i], places[i]
        rank = libraries.index(point.library)
        about = f"{point.name}, {point.library}: {quantity(point.gops)} billion operations/s, "
        about += f"{point.intensity:.3g} per byte, {point.percent:.0f} % of its limit"
        found.append(_element("g", _element("title", escape(about)) + _mark(rank, x, y)))
        text = f"{point.percent:.0f} %" if rank else f"{point.name}  {point.percent:.0f} %"
        size = _SMALL if rank else _NORMAL
        at_x, at_y, anchor = labels.take(text, x, y, size)
        if math.hypot(at_x - x, at_y - 4 - y) > 24:
            texts.append(_line(x, y, at_x, at_y - 4, "lead"))
        weight = "normal" if rank else "bold"
        color = f"halo t{rank % len(_COLORS)}"
        texts.append(_text(at_x, at_y, text, size=size, anchor=anchor, class_=color, font_weight=weight))
    return texts + found


def _mark(rank: int, x: float, y: float) -> str:
    """Return the marker of a library."""
    color, shape = f"c{rank % len(_COLORS)}", _SHAPES[rank % len(_SHAPES)]
    if shape in ("circle", "ring"):
        radius, opacity, stroke = (4.5, 0, 2) if shape == "ring" else (5.5, 1, 1)
        return _element("circle", cx=x, cy=y, r=radius, class_=color, fill_opacity=opacity, stroke_width=stroke)
    outlines: Mapping[str, Sequence[tuple[float, float]]] = {
        "square": ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle": ((0, -5.5), (5.5, 4.5), (-5.5, 4.5)),
        "cross": ((-5, -2), (-2, -2), (-2, -5), (2, -5), (2, -2), (5, -2),
                  (5, 2), (2, 2), (2, 5), (-2, 5), (-2, 2), (-5, 2)),
    }  # fmt: skip
    corners = " ".join(f"{x + dx:.2f},{y + dy:.2f}" for dx, dy in outlines[shape])
    return _element("polygon", points=corners, class_=color)


def _legend(libraries: Sequence[str]) -> list[str]:
    found, x = [], float(_LEFT)
    for rank, library in enumerate(libraries):
        found.append(_mark(rank, x + 6, HEIGHT - _BOTTOM + 30))
        found.append(_text(x + 17, HEIGHT - _BOTTOM + 34, library, size=_SMALL))
        x += 34 + len(library) * _SMALL * _TEXT_WIDTH
    return found


def to_html(plot: Plot, text: str) -> str:
    """Return a page with the plot and the tables."""
    style = (
        "body{margin:2em auto;max-width:1000px;padding:0 1em;"
        "font-family:system-ui,sans-serif;background:#fff;color:#222}"
        "svg{max-width:100%;height:auto}pre{overflow-x:auto;font-size:13px}"
        "@media (prefers-color-scheme:dark){body{background:#16181c;color:#e8e8e8}}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width"/><meta name="color-scheme" content="light dark"/>'
        f"<title>{html.escape(plot.title)}</title><style>{style}</style></head><body>\n"
        f"{to_svg(plot)}<pre>{html.escape(text)}</pre>\n</body></html>\n"
    )


def save(plot: Plot, path: Path, text: str) -> None:
    """Write FILE.svg or FILE.html. Raises OSError."""
    content = to_html(plot, text) if path.suffix.lower() in (".html", ".htm") else to_svg(plot)
    path.write_text(content, encoding="utf-8")
