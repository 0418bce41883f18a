"""A drawing: the elements of an SVG image and its size, to write as a file of its own or inside a page."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from fastattn.svg import draw_text, element, style

# The width of a letter of the monospaced font, relative to its size.
MONO_WIDTH = 0.602
MONO = 'ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace'
# Colors on light and dark backgrounds. Every text has a contrast of at least 4.5 on every background it can have.
LIGHT = {
    "bg": "#ffffff", "panel": "#f4f6f8", "fg": "#1a1d21", "quiet": "#575e69", "line": "#d5dae1", "accent": "#0a5bb0",
    "heat": "#ffb224", "k0": "#d6e9fb", "k1": "#fbe3cf", "k2": "#d3f0e2", "k3": "#f3dcec", "k4": "#f4efc4",
}  # fmt: skip
DARK = {
    "bg": "#14161a", "panel": "#1e2127", "fg": "#edeff2", "quiet": "#a7aeb9", "line": "#3a3f49", "accent": "#86bdf7",
    "heat": "#9a5600", "k0": "#17395a", "k1": "#57331a", "k2": "#14432f", "k3": "#4c2742", "k4": "#443f0e",
}  # fmt: skip


def _rules(colors: dict[str, str]) -> str:
    rules = {
        "svg .ground": f"fill: {colors['bg']}",
        "svg text": f"fill: {colors['fg']}",
        "svg .quiet": f"fill: {colors['quiet']}",
        "svg .heat": f"fill: {colors['heat']}",
        "svg .panel": f"fill: {colors['panel']}",
        "svg .edge": f"fill: none; stroke: {colors['line']}",
        "svg .mark": f"fill: none; stroke: {colors['accent']}; stroke-width: 2",
        "svg .halo": f"paint-order: stroke; stroke: {colors['bg']}; stroke-width: 4px; stroke-linejoin: round",
        **{f"svg .k{i}": f"fill: {colors[f'k{i}']}" for i in range(5)},
    }
    return "".join(f"{name} {{ {rule} }}\n" for name, rule in rules.items())


# The name of a point of a map is hidden if there are many, until it has the focus or a pointer is over it.
_POINTS = """.point .name, .point .mark { visibility: hidden; }
.point.named .name, .point:hover .name, .point:hover .mark { visibility: visible; }
.point:focus .name, .point:focus .mark { visibility: visible; }
.point:focus { outline: none; }
"""


def stylesheet() -> str:
    """Return the rules of the elements of a drawing, for <style>."""
    return f"svg .mono {{ font-family: {MONO}; }}\n{_POINTS}" + style("\n" + _rules(LIGHT), "\n" + _rules(DARK))


@dataclass(frozen=True, slots=True)
class Drawing:
    """SVG elements on a canvas. title, description: what a screen reader says."""

    title: str
    description: str
    width: float
    height: float
    elements: Sequence[str]

    def inline(self, *, role: str = "img", **attributes: object) -> str:
        """Return an <svg> element for a page, which has the stylesheet. role: "group" if its parts have names."""
        label = html.escape(f"{self.title}. {self.description}", quote=False)
        body = element("title", label) + "".join(self.elements)
        return element("svg", body, **self._size(), role=role, **attributes)

    def document(self) -> str:
        """Return an SVG file."""
        return stack([self])

    def _size(self) -> dict[str, object]:
        return {"viewBox": f"0 0 {self.width:.0f} {self.height:.0f}", "width": round(self.width),
                "height": round(self.height)}  # fmt: skip


def stack(drawings: Sequence[Drawing]) -> str:
    """Return one SVG file with drawings below each other."""
    at, parts = 12.0, list[str]()
    for drawing in drawings:
        parts.append(draw_text(12, at + 15, drawing.title, size=15, font_weight="bold"))
        parts.append(element("g", "\n".join(drawing.elements), transform=f"translate(12 {at + 26:.0f})"))
        at += drawing.height + 44
    width = max(24 + max(d.width, len(d.title) * 9) for d in drawings)
    words = html.escape(" ".join(f"{d.title}. {d.description}" for d in drawings), quote=False)
    body = [
        element("title", words),
        element("style", stylesheet()),
        element("rect", width=float(width), height=at, class_="ground"),
        *parts,
    ]
    size = {"viewBox": f"0 0 {width:.0f} {at:.0f}", "width": round(width), "height": round(at)}
    return element("svg", "\n".join(body), xmlns="http://www.w3.org/2000/svg", **size, role="img") + "\n"


def columns(text: str) -> int:
    """Return the width of a text in letters of a monospaced font."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(bool(unicodedata.combining(c)) for c in text)


def clip(text: str, most: int) -> str:
    """Cut a text to about `most` columns."""
    if columns(text) <= most:
        return text
    kept = ""
    for letter in text:
        if columns(kept + letter) > most - 1:
            break
        kept += letter
    return kept + "…"
