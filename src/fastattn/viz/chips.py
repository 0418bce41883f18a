"""Draws tokens as boxes in running lines, for the pictures of tokens and of surprisal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastattn.svg import draw_text, element
from fastattn.viz.drawing import MONO_WIDTH, Drawing, clip, columns

_SIZE, _SMALL, _HEIGHT, _LINE, _WIDTH = 14, 10, 36, 44, 860
_MOST = 60  # columns of a token


@dataclass(frozen=True, slots=True)
class Chip:
    """A token with a line below it. class_: its color; opacity: the strength of the color."""

    text: str
    below: str
    starts_word: bool
    class_: str
    opacity: float = 1.0


def draw_chips(title: str, description: str, chips: Sequence[Chip]) -> Drawing:
    """Return the tokens in lines of a fixed width."""
    x, y, widest, parts = 0.0, 0.0, 0.0, list[str]()
    for chip in chips:
        text = clip(chip.text, _MOST)
        width = 10 + max(columns(text) * _SIZE, columns(chip.below) * _SMALL) * MONO_WIDTH
        x += 6 if chip.starts_word and x else 0
        if x + width > _WIDTH:
            x, y = 0.0, y + _LINE
        box = {"x": x, "y": y, "width": width, "height": _HEIGHT, "rx": 4}
        parts += [
            element("rect", **box, class_="panel"),
            element("rect", **box, class_=chip.class_, opacity=chip.opacity),
            draw_text(x + width / 2, y + 16, text, size=_SIZE, anchor="middle", class_="mono"),
            draw_text(x + width / 2, y + 30, chip.below, size=_SMALL, anchor="middle", class_="mono"),
        ]
        x += width + 2
        widest = max(widest, x)
    return Drawing(title, description, widest, y + _LINE, parts)
