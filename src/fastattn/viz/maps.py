"""Attention maps as images: a small PNG for each, and drawings with the tokens at their edges."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.svg import draw_text, element
from fastattn.viz.drawing import MONO_WIDTH, Drawing, clip

_COLOR = (47, 128, 237)  # readable on light and dark backgrounds; the alpha channel says how much
_LABELED, _LABEL = 40, 12  # tokens up to which every row has a label, and the font size
_SMALL_MAP = 132
_SMALL = 128

Floats = NDArray[np.floating[Any]]


def gamma(n: int) -> float:
    """Return the exponent that turns the probabilities in maps of n tokens into opacities.

    It is at most 0.5, so uniform attention, 1 / n, has an opacity of at least 15 %.
    """
    return 0.5 if n < 2 else min(0.5, math.log(0.15) / math.log(1 / n))


def small(probabilities: Floats) -> Floats:
    """Return a map of at most _SMALL rows and columns, each the largest probability of a square of the map."""
    starts = np.arange(0, len(probabilities), math.ceil(len(probabilities) / _SMALL))
    found: Floats = np.maximum.reduceat(np.maximum.reduceat(probabilities, starts, axis=0), starts, axis=1)
    return found


def png(probabilities: Floats, power: float) -> str:
    """Return a map [rows, columns] as a PNG in a data URI: pixel (i, j) has the alpha 255 * p[i, j] ** power."""
    rows, width = probabilities.shape
    levels = np.rint(255 * np.asarray(probabilities, np.float64) ** power).astype(np.uint8)
    lines = np.zeros((rows, width + 1), np.uint8)  # each line starts with 0: no filter
    lines[:, 1:] = levels
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, rows, 8, 3, 0, 0, 0)),  # 8 bits per pixel, indices of a palette
        (b"PLTE", bytes(_COLOR) * 256),
        (b"tRNS", bytes(range(256))),
        (b"IDAT", zlib.compress(lines.tobytes(), 6)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def image(uri: str, x: float, y: float, size: float, n: int) -> str:
    """Return an SVG image of a map of n tokens. Few tokens are drawn as sharp squares."""
    scaling = "pixelated" if size > n else "auto"
    box = {"x": x, "y": y, "width": size, "height": size}
    picture = element("image", href=uri, **box, preserveAspectRatio="none", style=f"image-rendering: {scaling}")
    return picture + element("rect", **box, class_="edge")


def matrix(title: str, description: str, labels: Sequence[str], uri: str) -> Drawing:
    """Return one map, with the tokens that attend on the left, and those that they attend to on top."""
    n = len(labels)
    cell = 19.0 if n <= _LABELED else max(640 / n, 1.0)
    step = max(1, math.ceil((_LABEL + 2) / cell))
    shown = [clip(label, 14) for label in labels]
    edge = 10 + max(len(label) for label in shown[::step]) * _LABEL * MONO_WIDTH
    parts = [image(uri, edge, edge, n * cell, n)]
    for i in range(0, n, step):
        at = edge + (i + 0.5) * cell + _LABEL * 0.35
        parts.append(draw_text(edge - 6, at, shown[i], size=_LABEL, anchor="end", class_="mono"))
        turned = f"rotate(-90 {at:.1f} {edge - 6:.1f})"
        parts.append(draw_text(at, edge - 6, shown[i], size=_LABEL, class_="mono", transform=turned))
    return Drawing(title, description, edge + n * cell + 6, edge + n * cell + 6, parts)


def beside(title: str, drawings: Sequence[Drawing]) -> Drawing:
    """Return drawings in rows of two, each under its title."""
    parts, y = list[str](), 0.0
    width = max(drawing.width for drawing in drawings)
    for at in range(0, len(drawings), 2):
        row = drawings[at : at + 2]
        for i, drawing in enumerate(row):
            x = i * (width + 28)
            parts.append(draw_text(x, y + 14, drawing.title, size=13, class_="quiet"))
            parts.append(element("g", "".join(drawing.elements), transform=f"translate({x:.0f} {y + 20:.0f})"))
        y += max(drawing.height for drawing in row) + 30
    whole = width * min(2, len(drawings)) + 28 * (len(drawings) > 1)
    return Drawing(title, " ".join(d.description for d in drawings), whole, y, parts)


def small_maps(title: str, layers: Sequence[int], heads: Sequence[int], uris: Sequence[Sequence[str]]) -> Drawing:
    """Return all maps without labels, one row per layer."""
    step, left, parts = _SMALL_MAP + 10, 64.0, list[str]()
    for column, head in enumerate(heads):
        middle = left + column * step + _SMALL_MAP / 2
        parts.append(draw_text(middle, 14, f"head {head}", size=12, anchor="middle", class_="quiet"))
    for row, layer in enumerate(layers):
        top = 22.0 + row * step
        middle = top + _SMALL_MAP / 2 + 4
        parts.append(draw_text(left - 8, middle, f"layer {layer}", size=12, anchor="end", class_="quiet"))
        parts += [image(uri, left + i * step, top, float(_SMALL_MAP), 0) for i, uri in enumerate(uris[row])]
    words = f"Small maps of {len(layers)} layers and {len(heads)} heads: the stronger the color, the more attention."
    return Drawing(title, words, left + len(heads) * step, 22 + len(layers) * step, parts)
