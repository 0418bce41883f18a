"""Writes SVG: elements, texts, labels that do not overlap, and styles for light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

TEXT_WIDTH = 0.56  # width of a letter, relative to the font size
NORMAL_SIZE = 13
Box = tuple[float, float, float, float]  # left, top, right, bottom
FONTS = 'system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif'
# Okabe and Ito's color-blind safe colors; the second color of each pair is for dark backgrounds.
COLORS = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9650"),
    ("#007a5a", "#35c79c"),
    ("#a0527f", "#e59cc4"),
    ("#7a6a00", "#f0e442"),
    ("#555555", "#bbbbbb"),
)
SHAPES = ("circle", "square", "diamond", "triangle", "cross", "ring")


class Labels:
    """Finds places for labels inside an area. If possible, they overlap no other label, point or blocked box."""

    def __init__(self, points: Sequence[tuple[float, float]], area: Box) -> None:
        self._area = area
        self._boxes: list[Box] = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]

    def take(self, text: str, x: float, y: float, size: int) -> tuple[float, float, str]:
        """Return where to place a label near (x, y): its baseline position and anchor."""
        width = len(text) * size * TEXT_WIDTH
        left, top, right, bottom = self._area
        best: tuple[int, tuple[float, float, str], Box] | None = None
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
                begin = at_x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
                box = (begin - 2, at_y - size, begin + width + 2, at_y + 3)
                hits = self.hits([box])
                inside = box[0] >= left and box[2] <= right and box[1] >= top and box[3] <= bottom
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

    def block(self, boxes: Iterable[Box]) -> None:
        """Prevent labels in these areas."""
        self._boxes += boxes

    def hits(self, boxes: Iterable[Box]) -> int:
        """Return the number of overlaps with blocked areas."""
        return sum(_overlap(box, other) for box in boxes for other in self._boxes)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def element(name: str, text: str | None = None, /, **attributes: object) -> str:
    """Return one element. The attribute class_ becomes class, and _ in a name becomes -."""
    parts = [name]
    for key, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(f"{key.rstrip('_').replace('_', '-')}={quoteattr(shown)}")
    body = " ".join(parts)
    return f"<{body}/>" if text is None else f"<{body}>{text}</{name}>"


def draw_text(
    x: float, y: float, text: str, *, size: int = NORMAL_SIZE, anchor: str = "start", **attributes: object
) -> str:
    return element("text", escape(text), x=x, y=y, font_size=size, text_anchor=anchor, **attributes)


def draw_line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def mark(rank: int, x: float, y: float) -> str:
    """Return the marker of the group with this number: a color and a shape, which repeat after six groups."""
    color, shape = f"c{rank % len(COLORS)}", SHAPES[rank % len(SHAPES)]
    if shape in ("circle", "ring"):
        radius, opacity, stroke = (4.5, 0, 2) if shape == "ring" else (5.5, 1, 1)
        return element("circle", cx=x, cy=y, r=radius, class_=color, fill_opacity=opacity, stroke_width=stroke)
    outlines: Mapping[str, Sequence[tuple[float, float]]] = {
        "square": ((-4.5, -4.5), (4.5, -4.5), (4.5, 4.5), (-4.5, 4.5)),
        "diamond": ((0, -6), (6, 0), (0, 6), (-6, 0)),
        "triangle": ((0, -5.5), (5.5, 4.5), (-5.5, 4.5)),
        "cross": ((-5, -2), (-2, -2), (-2, -5), (2, -5), (2, -2), (5, -2),
                  (5, 2), (2, 2), (2, 5), (-2, 5), (-2, 2), (-5, 2)),
    }  # fmt: skip
    corners = " ".join(f"{x + dx:.2f},{y + dy:.2f}" for dx, dy in outlines[shape])
    return element("polygon", points=corners, class_=color)


def style(light: str, dark: str) -> str:
    """Return the content of <style>: rules, and the colors of marks (`c0`) and their texts (`t0`), light and dark."""
    by_day, by_night = [f"text {{ font-family: {FONTS}; }}{light}"], [dark]
    for i, (on_light, on_dark) in enumerate(COLORS):
        for rules, color in ((by_day, on_light), (by_night, on_dark)):
            rules.append(f".c{i} {{ fill: {color}; stroke: {color}; }} .t{i} {{ fill: {color}; }}\n")
    return escape(f"{''.join(by_day)}@media (prefers-color-scheme: dark) {{{''.join(by_night)}}}\n")
