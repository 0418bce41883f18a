"""The picture of attention: which tokens each token attends to."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.api.model import Model
from fastattn.errors import InputError
from fastattn.tasks.finite import check_finite
from fastattn.viz.compute import Floats, attention_maps, attention_shape
from fastattn.viz.drawing import Drawing
from fastattn.viz.inputs import Encoded, ModelLike, chosen, encode_texts, name_of, opened, tokenizer_of
from fastattn.viz.maps import beside, gamma, matrix, png, small, small_maps
from fastattn.viz.picture import Picture, details, scrolled_table, section
from fastattn.viz.pieces import Piece, chip, read_pieces

MAX_SHOWN = 1 << 24  # probabilities on one page: all maps of 12 layers of 12 heads for 341 tokens
_LABELED_MAPS, _LABELED_TOKENS = 4, 40  # larger drawings do not name the tokens
_Images: TypeAlias = "Sequence[Sequence[str]]"
_TOP = 3  # tokens per row of the table


def attention(
    model: ModelLike, text: Any, text_pair: Any = None, *, layers: object = None, heads: object = None
) -> Picture:
    """Show which tokens each token attends to, in each layer and head (Vaswani et al. 2017).

    model: a loaded model of any kind, a SentenceTransformer, a pipeline, a folder or a hub id. text, text_pair: as in a
    tokenizer call: one text, or a sequence of texts and pairs. layers, heads: an index from 0, or a sequence of them.
    None shows all heads, and as many layers as fit on a page of 16 million probabilities; these layers are evenly
    spaced from the first to the last one, and the page says which.

    data: "tokens" and "ids" [n_tokens], "layers", "heads", and "attentions" [layers, heads, n_tokens, n_tokens]: row i
    is what token i attends to, and adds up to 1. The maps have the same bits as those of `output_attentions`, but only
    the chosen ones are computed and stored. For a sequence of texts, "tokens", "ids", "layers" and "attentions" are
    lists with one entry per text. Raises DTypeError, InputError, ContextLengthError, ConfigError if
    there is no tokenizer, and NonFiniteError.
    """
    with opened(model) as loaded:
        encoded, batched = encode_texts(loaded, text, text_pair, "attention")
        return _draw(loaded, encoded, layers, heads, batched=batched)


@dataclass(frozen=True, slots=True)
class Maps:
    """The maps [layers, heads, n_tokens, n_tokens] of a text."""

    pieces: list[Piece]
    layers: list[int]
    heads: list[int]
    n_layers: int
    probabilities: Floats


def _draw(model: Model, encoded: Sequence[Encoded], layers: object, heads: object, *, batched: bool) -> Picture:
    tokenizer, found = tokenizer_of(model, "attention"), list[Maps]()
    n_layers, n_heads = attention_shape(model)
    for i, (ids, types) in enumerate(encoded):
        some_heads = list(range(n_heads)) if heads is None else chosen("heads", heads, n_heads)
        some_layers = _layers(layers, n_layers, len(some_heads), len(ids))
        maps = attention_maps(model, ids, types, some_layers, some_heads)
        check_finite(maps, f"text[{i}]" if batched else "text", "attention")
        found.append(Maps(read_pieces(tokenizer, ids), some_layers, some_heads, n_layers, maps))
    data: dict[str, Any] = {
        "tokens": [[piece.token for piece in maps.pieces] for maps in found],
        "ids": [ids for ids, _ in encoded],
        "layers": [maps.layers for maps in found],
        "heads": found[0].heads,
        "attentions": [maps.probabilities for maps in found],
    }
    if not batched:
        data = {key: value if key == "heads" else value[0] for key, value in data.items()}
    titles = [f"Attention of text {i + 1}" if batched else "Attention" for i in range(len(found))]
    parts = [_show(title, maps, f"map{i}") for i, (title, maps) in enumerate(zip(titles, found, strict=True))]
    title = f"What {name_of(model)} attends to"
    return Picture(title, data, [part for part, _ in parts], [drawing for _, drawing in parts])


def _layers(layers: object, n_layers: int, n_heads: int, n_tokens: int) -> list[int]:
    """Return the layers to show. Raises InputError if their maps do not fit on a page."""
    fit = MAX_SHOWN // (n_heads * n_tokens**2)
    if layers is None and fit:
        count = min(n_layers, fit)
        return sorted({round(i * (n_layers - 1) / max(1, count - 1)) for i in range(count)})
    some = list(range(n_layers)) if layers is None else chosen("layers", layers, n_layers)
    if len(some) > fit:
        raise InputError(
            f"layers, heads: expected at most {MAX_SHOWN} probabilities on a page, got {len(some)} layers x {n_heads} "
            f"heads x {n_tokens} x {n_tokens} tokens; choose fewer layers or heads, or a shorter text"
        )
    return some


def _show(title: str, maps: Maps, group: str) -> tuple[str, Drawing]:
    """Return the section of a page, and the drawing."""
    labels, n = [piece.text for piece in maps.pieces], len(maps.pieces)
    uris = [[png(one, gamma(n)) for one in of_layer] for of_layer in maps.probabilities]
    thumbs = [[png(small(one), gamma(n)) for one in of_layer] for of_layer in maps.probabilities]
    drawings = [
        matrix(f"layer {layer}, head {head}", _words(maps, a, b), labels, uris[a][b])
        for a, layer in enumerate(maps.layers)
        for b, head in enumerate(maps.heads)
        if not a + b or (len(maps.layers) * len(maps.heads) <= _LABELED_MAPS and n <= _LABELED_TOKENS)
    ]
    first = drawings[0]
    one_map = len(maps.layers) * len(maps.heads) == 1
    if len(drawings) > 1 or one_map:
        drawing = beside(title, drawings)
    else:
        drawing = small_maps(title, maps.layers, maps.heads, thumbs)
    start = next((i for i in reversed(range(n)) if not maps.pieces[i].special), n - 1)
    row = maps.probabilities[0, 0, start]
    values = np.sqrt(row / max(float(row.max()), np.finfo(np.float32).tiny))
    chips = "".join(
        chip(piece, value=float(v), class_="on" if i == start else "")
        for i, (piece, v) in enumerate(zip(maps.pieces, values, strict=True))
    )
    rows = [[_place(i, piece), _top(maps, i)] for i, piece in enumerate(maps.pieces)]
    named = f"layer {maps.layers[0]}, head {maps.heads[0]}"
    whole = (
        f'<div class="scroll whole" role="region" tabindex="0" aria-label="Map">{first.inline(class_="matrix")}</div>'
    )
    body = (
        f'<div class="beside">{"" if one_map else _selector(maps, uris, thumbs, group)}'
        f"{details('The whole map', whole, opened=n <= _LABELED_TOKENS)}</div>\n"
        f'<p class="read" aria-live="polite">In <b class="where">{named}</b>, {_row_of(maps, start)}</p>\n'
        '<fieldset class="way" hidden><legend>Shade the tokens that</legend>'
        f'<label><input type="radio" name="{group}-way" value="to" checked> the chosen token attends to</label> '
        f'<label><input type="radio" name="{group}-way" value="from"> attend to the chosen token</label> '
        "<span>Choose a token with a click or the arrow keys.</span></fieldset>\n"
        f'<p class="tokens">{chips}</p>\n'
        + details("As a table", scrolled_table(f"Where attention goes, {named}", ["token", "attends most to"], rows))
    )
    return section("attention", title, _note(maps), body, start=start, gamma=gamma(n)), drawing


def _note(maps: Maps) -> str:
    some = f"{len(maps.layers)} of {maps.n_layers} layers are shown. " if len(maps.layers) < maps.n_layers else ""
    return (
        f"{len(maps.pieces)} tokens. {some}The chosen token has a frame. The stronger the color of another token, the "
        "more the chosen one attends to it; the strongest color is its largest share. All shares add up to 100 %. In "
        "a map, rows are the tokens that attend, columns the tokens that they attend to."
    )


def _place(i: int, piece: Piece) -> str:
    return f"{i} {piece.quoted}"


def _best(maps: Maps, layer: int, head: int, i: int) -> NDArray[np.intp]:
    best: NDArray[np.intp] = np.argsort(-maps.probabilities[layer, head, i], kind="stable")[:_TOP]
    shown: NDArray[np.intp] = best[maps.probabilities[layer, head, i][best] > 0]
    return shown


def _top(maps: Maps, i: int) -> str:
    row = maps.probabilities[0, 0, i]
    return ", ".join(f"{_place(j, maps.pieces[j])} {percent(row[j])}" for j in _best(maps, 0, 0, i).tolist())


def _row_of(maps: Maps, i: int) -> str:
    return f"token {_place(i, maps.pieces[i])} attends to {_top(maps, i)}"


def _words(maps: Maps, layer: int, head: int) -> str:
    """Describe a map for a screen reader: where most attention goes."""
    received = maps.probabilities[layer, head].mean(axis=0)
    best = np.argsort(-received, kind="stable")[:_TOP].tolist()
    shares = ", ".join(f"{maps.pieces[j].text} {percent(float(received[j]))}" for j in best)
    return f"Layer {maps.layers[layer]}, head {maps.heads[head]}: the tokens that get most attention are {shares}."


def percent(value: float) -> str:
    """Return a share as text."""
    if 0 < value < 0.0005:
        return "under 0.1 %"
    return f"{100 * value:.0f} %" if value >= 0.0995 else f"{100 * value:.1f} %"


def _selector(maps: Maps, uris: _Images, thumbs: _Images, group: str) -> str:
    """Return the maps of all heads as a table in which one can be chosen."""
    head = "".join(f'<th scope="col">head {head}</th>' for head in maps.heads)
    rows = []
    for a, layer in enumerate(maps.layers):
        cells = []
        for b, number in enumerate(maps.heads):
            checked = " checked" if not a + b else ""
            label = html.escape(f"layer {layer}, head {number}")
            cells.append(
                f'<td><label><input type="radio" name="{group}" value="{label}"{checked} aria-label="{label}">'
                f'<img class="map" src="{thumbs[a][b]}" data-map="{uris[a][b]}" '
                f'alt="{html.escape(_words(maps, a, b))}"></label></td>'
            )
        rows.append(f'<tr><th scope="row">layer {layer}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll heads" role="region" tabindex="0" aria-label="The maps of all heads"><table>\n'
        "<caption><span>The map of each head</span></caption>\n"
        f'<thead><tr><th scope="col">layer</th>{head}</tr></thead>\n<tbody>{"".join(rows)}</tbody></table></div>\n'
    )
