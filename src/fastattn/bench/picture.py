"""Draws a roofline plot (Williams, Waterman and Patterson 2009) as SVG, or as an HTML page with the SVG.

The x axis shows operations per byte of weights and cache that a workload must read. The y axis shows billions of
operations per second. The machine's limits are roofs: slanted for reading and level for multiplication. Each workload
is a point below them. The SVG has no scripts and is readable on light and dark backgrounds.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from fastattn.bench.tables import quantity
from fastattn.svg import COLORS, TEXT_WIDTH, Box, Labels, draw_line, draw_text, element, mark, style

WIDTH, HEIGHT = 960, 620
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 62, 84
_SMALL, _NORMAL = 11, 13
_STYLE = """
text { fill: #222222; }
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


def to_svg(plot: Plot) -> str:
    """Return the plot as an SVG document."""
    axes = _Axes(plot)
    libraries = list(dict.fromkeys(point.library for point in plot.points))
    places = [(axes.x(point.intensity), axes.y(point.gops)) for point in plot.points]
    labels = Labels(places, (_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM))
    body = [
        element("title", escape(plot.title)),
        element("style", style(_STYLE, _DARK_STYLE)),
        element("rect", width=WIDTH, height=HEIGHT, class_="ground"),
        draw_text(_LEFT, 26, plot.title, size=18, font_weight="bold"),
        draw_text(_LEFT, 46, plot.subtitle, size=_SMALL, class_="quiet"),
        *_grid(axes),
        *_roofs(axes, plot.roofs, labels),
        *_points(plot.points, places, libraries, labels),
        *_legend(libraries),
        *(draw_text(_LEFT, HEIGHT - 10 - 14 * i, note, size=_SMALL, class_="quiet") for i, note in
          enumerate(reversed(plot.notes))),
    ]  # fmt: skip
    attributes = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": WIDTH, "height": HEIGHT, "role": "img"}
    return element("svg", "\n" + "\n".join(body) + "\n", xmlns="http://www.w3.org/2000/svg", **attributes) + "\n"


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
        found.append(draw_line(axes.x(value), top, axes.x(value), bottom, "grid"))
        if major or axes.x1 / axes.x0 < 1000:
            found.append(
                draw_text(axes.x(value), bottom + 16, f"{value:g}", size=_SMALL, anchor="middle", class_="quiet")
            )
    for value, major in _ticks(axes.y0, axes.y1):
        found.append(draw_line(left, axes.y(value), right, axes.y(value), "grid"))
        if major or axes.y1 / axes.y0 < 1000:
            text = f"{value:,.0f}" if value >= 1 else f"{value:g}"
            found.append(draw_text(left - 6, axes.y(value) + 4, text, size=_SMALL, anchor="end", class_="quiet"))
    middle = (top + bottom) / 2
    found.append(element("rect", x=left, y=top, width=right - left, height=bottom - top, class_="frame"))
    found.append(
        draw_text(right, bottom + 34, "operations per byte of weights and KV cache", size=_SMALL, anchor="end")
    )
    turned = f"rotate(-90 20 {middle:.0f})"
    found.append(
        draw_text(20, middle, "billions of operations per second", size=_SMALL, anchor="middle", transform=turned)
    )
    return found


def _roofs(axes: _Axes, roofs: Sequence[Roof], labels: Labels) -> list[str]:
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
        found.append(draw_line(axes.x(start), y, right, y, "roof" if roof.main else "thin"))
        text = f"{roof.name}, {quantity(value)}"
        found.append(draw_text(right - 8, y - 5, text, size=_SMALL, anchor="end"))
        labels.block([(right - 8 - len(text) * _SMALL * TEXT_WIDTH, y - 17, right - 8, y)])
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
        found.append(draw_line(*begin, *end, "roof" if roof.main else "thin"))
        lines.append((roof, begin, math.dist(begin, end)))
        if roof.main:
            labels.block(_along(begin, angle, 0.0, lines[-1][2], -1, 1))
    for roof, begin, length in lines:
        found.append(_slanted(f"{roof.name}, {quantity(roof.gbps or 0)} GB/s", begin, angle, length, labels))
    return found


def _along(begin: tuple[float, float], angle: float, start: float, end: float, above: float, below: float) -> list[Box]:
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


def _slanted(text: str, begin: tuple[float, float], angle: float, length: float, labels: Labels) -> str:
    """Draw a text just above a slanted line, where it has the fewest overlaps."""
    width = len(text) * _SMALL * TEXT_WIDTH
    starts = [10 + (length - width - 20) * i / 12 for i in range(13)] if length > width + 20 else [10.0]
    boxes = {start: _along(begin, angle, start, start + width, -16, -4) for start in starts}
    start = min(starts, key=lambda at: (labels.hits(boxes[at]), at))
    labels.block(boxes[start])
    x = begin[0] + start * math.cos(math.radians(angle))
    y = begin[1] - start * math.sin(math.radians(angle))
    turned = f"rotate({-angle:.2f} {x:.2f} {y:.2f}) translate(0 -5)"
    return draw_text(x, y, text, size=_SMALL, transform=turned)


def _points(
    points: Sequence[Point], places: Sequence[tuple[float, float]], libraries: Sequence[str], labels: Labels
) -> list[str]:
    """Draw the points: the first library's with names, the others' only with their percent."""
    found, texts = [], []
    order = sorted(range(len(points)), key=lambda i: (libraries.index(points[i].library) > 0, places[i][1], places[i]))
    for i in order:
        point, (x, y) = points[i], places[i]
        rank = libraries.index(point.library)
        about = f"{point.name}, {point.library}: {quantity(point.gops)} billion operations/s, "
        about += f"{point.intensity:.3g} per byte, {point.percent:.0f} % of its limit"
        found.append(element("g", element("title", escape(about)) + mark(rank, x, y)))
        text = f"{point.percent:.0f} %" if rank else f"{point.name}  {point.percent:.0f} %"
        size = _SMALL if rank else _NORMAL
        at_x, at_y, anchor = labels.take(text, x, y, size)
        if math.hypot(at_x - x, at_y - 4 - y) > 24:
            texts.append(draw_line(x, y, at_x, at_y - 4, "lead"))
        weight = "normal" if rank else "bold"
        color = f"halo t{rank % len(COLORS)}"
        texts.append(draw_text(at_x, at_y, text, size=size, anchor=anchor, class_=color, font_weight=weight))
    return texts + found


def _legend(libraries: Sequence[str]) -> list[str]:
    found, x = [], float(_LEFT)
    for rank, library in enumerate(libraries):
        found.append(mark(rank, x + 6, HEIGHT - _BOTTOM + 30))
        found.append(draw_text(x + 17, HEIGHT - _BOTTOM + 34, library, size=_SMALL))
        x += 34 + len(library) * _SMALL * TEXT_WIDTH
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
