"""The picture of an alignment: which tokens of the source a decoder attended to for each token of its result."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from fastattn.checks import quote
from fastattn.errors import DTypeError, InputError
from fastattn.svg import draw_text, element
from fastattn.tasks.recurrent_seq2seq import RecurrentSeq2Seq
from fastattn.viz.compute import Floats
from fastattn.viz.drawing import MONO_WIDTH, Drawing, clip
from fastattn.viz.maps import gamma, png
from fastattn.viz.picture import Picture, details, scrolled_table, section

_CELL, _LABEL = 22.0, 12


def alignment(model: RecurrentSeq2Seq, source: Any, *, num_beams: int = 1, max_new_tokens: int = 100) -> Picture:
    """Show which tokens of the source the decoder attended to, for each token of the result (Bahdanau et al. 2015).

    source, num_beams, max_new_tokens: as in `RecurrentSeq2Seq.generate`, for one source. data: "source_tokens",
    "target_tokens", and "attention" [n_target, n_source]: the sum of row i is 1. Raises DTypeError, InputError, and
    what `generate` raises.
    """
    if not isinstance(model, RecurrentSeq2Seq):
        raise DTypeError(f"model: expected a RecurrentSeq2Seq, got {quote(type(model).__name__)}")
    found = model.generate(source, num_beams=num_beams, max_new_tokens=max_new_tokens)
    if len(found.sequences) != 1:
        raise InputError(f"source: expected one source, got {len(found.sequences)}")
    columns, rows, maps = found.source_tokens[0], found.target_tokens[0], found.attentions[0]
    drawing = _grid("Alignment", columns, rows, maps)
    note = "Each row is a token of the result. The stronger the color, the more the decoder attended to the column."
    table = details("The numbers", _table(columns, rows, maps))
    whole = f'<div class="scroll whole" role="region" tabindex="0" aria-label="Map">{drawing.inline()}</div>\n'
    part = section("alignment", "Alignment", note, whole + table)
    data = {"source_tokens": columns, "target_tokens": rows, "attention": maps}
    return Picture("Alignment", data, [part], [drawing])


def _grid(title: str, columns: Sequence[str], rows: Sequence[str], maps: Floats) -> Drawing:
    """Return the map with the tokens of the result on the left, and those of the source on top."""
    across, down = ([clip(label, 14) for label in labels] for labels in (columns, rows))
    left, top = (10 + max(map(len, labels), default=0) * _LABEL * MONO_WIDTH for labels in (down, across))
    box = {"x": left, "y": top, "width": len(columns) * _CELL, "height": len(rows) * _CELL}
    parts = [element("rect", **box, class_="edge")]
    if maps.size:
        uri = png(maps, gamma(len(columns)))
        parts.insert(
            0, element("image", href=uri, **box, preserveAspectRatio="none", style="image-rendering: pixelated")
        )
    for i, label in enumerate(across):
        x = left + (i + 0.5) * _CELL + _LABEL * 0.35
        turned = f"rotate(-90 {x:.1f} {top - 6:.1f})"
        parts.append(draw_text(x, top - 6, label, size=_LABEL, class_="mono", transform=turned))
    for i, label in enumerate(down):
        y = top + (i + 0.5) * _CELL + _LABEL * 0.35
        parts.append(draw_text(left - 6, y, label, size=_LABEL, anchor="end", class_="mono"))
    words = f"A map of {len(rows)} tokens of the result and {len(columns)} of the source."
    return Drawing(title, words, left + len(columns) * _CELL + 6, top + len(rows) * _CELL + 6, parts)


def _table(columns: Sequence[str], rows: Sequence[str], maps: Floats) -> str:
    head = ["result", *(html.escape(token) for token in columns)]
    body = [
        [html.escape(token), *(f"{value:.2f}" for value in row)] for token, row in zip(rows, maps.tolist(), strict=True)
    ]
    return scrolled_table("Attention of each token of the result to the source", head, body)
