"""The picture of vectors: texts as points of a map, near each other if their vectors are similar."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import quote
from fastattn.errors import DTypeError, InputError
from fastattn.svg import COLORS, SHAPES, TEXT_WIDTH, Labels, draw_line, draw_text, element, mark
from fastattn.tasks.finite import check_finite
from fastattn.tasks.sentence_transformer import SentenceTransformer
from fastattn.tokenizer import check_texts
from fastattn.tokenizer.texts import read_items
from fastattn.viz.drawing import Drawing, clip
from fastattn.viz.picture import Picture, details, scrolled_table, section
from fastattn.viz.pieces import visible

WIDTH, HEIGHT, _EDGE = 860, 560, 24
_NAMED, _SIZE, _LETTERS = 40, 12, 42  # up to this many points, all names are shown; their font size and length

Vectors: TypeAlias = "NDArray[np.floating[Any]]"


def embeddings(
    model: SentenceTransformer | str | os.PathLike[str] | Vectors, texts: Any, *, labels: Any = None
) -> Picture:
    """Show texts on a map of two dimensions: the first two principal components of their vectors (Pearson 1901).

    model: a SentenceTransformer, a folder or a hub id, which encodes the texts; or the vectors [n_texts, width]
    themselves, for example hidden states. labels: a name for each text; texts with the same name have the same color
    and shape. The map is deterministic: in each component, the largest coordinate is positive.

    data: "texts", "labels" (None if there are none), "vectors" [n_texts, width], "points" float64 [n_texts, 2], and
    "explained" [2], the share of the variance along each axis. Raises DTypeError, InputError for fewer than two texts,
    and NonFiniteError.
    """
    names = check_texts(texts, "texts")
    if len(names) < 2:
        raise InputError(f"texts: expected at least two texts, got {len(names)}")
    groups = None if labels is None else [str(label) for label in read_items(labels, "labels")]
    if groups is not None and len(groups) != len(names):
        raise InputError(f"labels: expected one for each of the {len(names)} texts, got {len(groups)}")
    vectors = _vectors(model, names)
    check_finite(vectors, "texts", "vectors")
    points, explained = principal_components(vectors)
    data = {"texts": names, "labels": groups, "vectors": vectors, "points": points, "explained": explained}
    drawing = _drawing([visible(name) for name in names], groups, points, explained)
    first, second = (f"{100 * share:.0f} %" for share in explained)
    hint = "" if len(names) <= _NAMED else " Point at a mark, or move to it with the tab key, to read its text."
    note = (
        f"{len(names)} texts: those with similar vectors are near each other. The map shows {first} of the variance "
        f"along x and {second} along y. The rest is not visible, so points that are near each other here may be far "
        f"apart.{hint}"
    )
    head = ["text", *(["label"] if groups else []), "x", "y"]
    rows = [
        [
            f"<bdi>{html.escape(visible(name))}</bdi>",
            *([f"<bdi>{html.escape(visible(groups[i]))}</bdi>"] if groups else []),
            *(f'<td class="number">{value:.3f}</td>' for value in points[i]),
        ]
        for i, name in enumerate(names)
    ]
    body = (
        f'<div class="map2d" role="region" tabindex="0" aria-label="Map">{drawing.inline(role="group")}</div>\n'
        + details("As a table", scrolled_table("The points of the map", head, rows))
    )
    return Picture("A map of texts", data, [section("map2d", "Map of texts", note, body)], [drawing])


def _vectors(model: object, texts: list[str]) -> Vectors:
    if isinstance(model, SentenceTransformer):
        return np.asarray(model.encode(texts))
    if isinstance(model, (str, os.PathLike)):
        with SentenceTransformer(os.fspath(model)) as loaded:
            return np.asarray(loaded.encode(texts))
    if not isinstance(model, np.ndarray) or model.ndim != 2 or model.dtype.kind != "f":
        found = f"an array of {model.dtype} {list(model.shape)}" if isinstance(model, np.ndarray) else quote(model)
        raise DTypeError(f"model: expected a SentenceTransformer, a folder or floats [n_texts, width], got {found}")
    if len(model) != len(texts):
        raise InputError(f"model: expected a vector for each of the {len(texts)} texts, got {len(model)}")
    return model


def principal_components(vectors: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the coordinates [n, 2] along the first two principal components, and their shares of the variance."""
    centered = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    shares = np.zeros(2)
    for i in range(min(2, len(sizes))):
        column = left[:, i] * sizes[i]
        points[:, i] = column * np.sign(column[np.argmax(np.abs(column))])
        shares[i] = sizes[i] ** 2 / max(float((sizes**2).sum()), np.finfo(np.float64).tiny)
    return points, shares


def _drawing(
    names: Sequence[str], groups: Sequence[str] | None, points: NDArray[np.float64], explained: NDArray[np.float64]
) -> Drawing:
    groups = None if groups is None else [visible(group) for group in groups]
    kinds = list(dict.fromkeys(groups or ()))
    low, high = points.min(axis=0), points.max(axis=0)
    scale = np.array([WIDTH - 2 * _EDGE - 60, HEIGHT - 2 * _EDGE - 40]) / np.maximum(high - low, 1e-12)
    at = (points - low) * scale.min()  # the same scale along both axes
    size = (high - low) * scale.min()
    at += (np.array([WIDTH, HEIGHT]) - size) / 2
    at[:, 1] = HEIGHT - at[:, 1]
    places = [(float(x), float(y)) for x, y in at]
    labels = Labels(places, (_EDGE, _EDGE, WIDTH - _EDGE, HEIGHT - _EDGE))
    parts = [element("rect", x=1, y=1, width=WIDTH - 2, height=HEIGHT - 2, rx=8, class_="edge")]
    for i, (x, y) in enumerate(places):
        rank = kinds.index(groups[i]) if groups else 0
        parts.append(_point(names[i], groups[i] if groups else "", rank, x, y, labels, named=len(names) <= _NAMED))
    across, up = (f"{100 * share:.0f} % of the variance" for share in explained)
    parts.append(draw_text(WIDTH - 12, HEIGHT - 10, f"x: {across}", size=11, anchor="end", class_="quiet"))
    parts.append(draw_text(12, HEIGHT - 10, f"y: {up}", size=11, class_="quiet"))
    x, y = 8.0, HEIGHT + 22.0
    for rank, kind in enumerate(kinds):
        word = clip(kind, 30)
        if x + 30 + len(word) * 13 * TEXT_WIDTH > WIDTH:
            x, y = 8.0, y + 22
        parts += [mark(rank, x + 6, y - 4), draw_text(x + 18, y, word)]
        x += 36 + len(word) * 13 * TEXT_WIDTH
    words = f"{len(names)} texts" + (f" of {len(kinds)} labels: {', '.join(kinds)}." if kinds else ".")
    return Drawing("Map of texts", words, WIDTH, y + 12 if kinds else HEIGHT, parts)


def _point(name: str, group: str, rank: int, x: float, y: float, labels: Labels, *, named: bool) -> str:
    """Draw a point and its name. Beyond the number of colors and shapes, both repeat."""
    short = clip(name, _LETTERS)
    if named:
        at_x, at_y, anchor = labels.take(short, x, y, _SIZE)
    else:
        at_x, at_y, anchor = (x + 11, y + 4, "start") if x < WIDTH / 2 else (x - 11, y + 4, "end")
    lead = draw_line(x, y, at_x, at_y - 4, "edge") if named and np.hypot(at_x - x, at_y - 4 - y) > 24 else ""
    shown = draw_text(at_x, at_y, short, size=_SIZE, anchor=anchor, class_="name halo")
    ring = element("circle", cx=x, cy=y, r=10, class_="mark")
    whole = html.escape(f"{name}, {group}" if group else name)
    words = element("title", whole)
    hidden = {} if named else {"tabindex": 0}
    classes = "point named" if named else "point"
    return element("g", words + lead + mark(rank % (len(COLORS) * len(SHAPES)), x, y) + ring + shown, class_=classes,
                   **hidden, role="img", aria_label=whole)  # fmt: skip
