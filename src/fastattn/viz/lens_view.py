"""The picture of the next token: what each layer of a language model would predict (the logit lens)."""

from __future__ import annotations

import html
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import check_count
from fastattn.svg import draw_text, element
from fastattn.tasks.finite import check_finite
from fastattn.tasks.softmax import softmax
from fastattn.viz.attention_view import percent
from fastattn.viz.compute import Floats, token_logits
from fastattn.viz.drawing import MONO_WIDTH, Drawing, clip
from fastattn.viz.inputs import ModelLike, encode_prompt, name_of, opened_lm, tokenizer_of
from fastattn.viz.picture import Picture, scrolled_table, section
from fastattn.viz.pieces import Piece, read_pieces

_SIZE, _ROW, _COLUMN, _LETTERS = 12, 24, 96, 12  # of the drawing: letters, rows and columns in pixels, longest token


def next_tokens(lm: ModelLike, prompt: str, *, top_k: int = 3) -> Picture:
    """Show the most probable next tokens after each token of a prompt, as each layer would predict them.

    This is the logit lens: the model's last norm and its output matrix are applied to the hidden states of every layer,
    not only of the last one (nostalgebraist 2020, "interpreting GPT: the logit lens"). lm: a loaded language model, a
    text-generation pipeline, a folder or a hub id. top_k: how many tokens to show.

    data: "tokens" and "ids" [n_tokens] of the prompt; "states", the names of the hidden states: the embeddings, and the
    output of each layer; "top_ids" and "top_probabilities" [states, n_tokens, top_k], the most probable first; of equal
    ones, the lowest id first; "top_tokens", nested lists of the same shape. The last state is what the model predicts.
    Raises DTypeError, InputError, ContextLengthError, ConfigError and NonFiniteError.
    """
    check_count("top_k", top_k, low=1)
    with opened_lm(lm) as model:
        _, ids = encode_prompt(model, prompt, "prompt", low=1)
        tokenizer = tokenizer_of(model, "prompt")
        check_count("top_k", top_k, low=1, high=model.config.vocab_size)
        found: list[tuple[NDArray[np.int32], NDArray[np.float64]]] = []
        for _, states in token_logits(model, ids, lens=True):
            check_finite(states[-1], "prompt", "logits")
            parts = [_best(logits, top_k) for logits in states]
            found.append((np.stack([a for a, _ in parts]), np.stack([b for _, b in parts])))
        top_ids = np.concatenate([a for a, _ in found], axis=1)
        lens = _Lens(
            pieces=read_pieces(tokenizer, ids),
            names=_names(len(top_ids)),
            best=[[read_pieces(tokenizer, row) for row in state] for state in top_ids],
            probabilities=np.concatenate([b for _, b in found], axis=1),
        )
        title = f"What {name_of(model)} expects next"
    data = {
        "tokens": [piece.token for piece in lens.pieces],
        "ids": ids,
        "states": lens.names,
        "top_ids": top_ids,
        "top_probabilities": lens.probabilities,
        "top_tokens": [[[piece.token for piece in row] for row in state] for state in lens.best],
    }
    return Picture(title, data, [_section(lens)], [_drawing(lens)])


@dataclass(frozen=True, slots=True)
class _Lens:
    """The best tokens and probabilities [states, n_tokens, top_k]."""

    pieces: list[Piece]
    names: list[str]
    best: list[list[list[Piece]]]
    probabilities: NDArray[np.float64]

    def hit(self, state: int, i: int) -> bool:
        """Whether the best token is the one that follows in the text."""
        return i + 1 < len(self.pieces) and self.best[state][i][0].id == self.pieces[i + 1].id


def _names(n: int) -> list[str]:
    return ["embeddings", *(f"layer {i}" for i in range(1, n))]


def _best(logits: Floats, k: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the ids and probabilities [rows, k] of the highest logits."""
    ids = np.zeros((len(logits), k), np.int32)
    for row, out in zip(logits, ids, strict=True):
        lowest = np.partition(row, len(row) - k)[len(row) - k]
        some = np.flatnonzero(~(row < lowest))
        out[:] = some[np.argsort(-row[some], kind="stable")[:k]]
    return ids, np.take_along_axis(softmax(logits), ids, axis=-1)


def _section(lens: _Lens) -> str:
    rows = []
    for i, piece in enumerate(lens.pieces):
        cells = [_cell(lens, state, i) for state in range(len(lens.names))]
        rows.append([f"{i} <bdi>{html.escape(piece.text)}</bdi>", *cells])
    note = (
        "Each row is a token of the prompt. A cell shows the tokens that would most probably follow it if the model "
        "ended after that layer; the last column is what the model predicts. The color shows the probability of the "
        "best one. ✓ and a line mark the token that does follow in the prompt."
    )
    table = scrolled_table("The next token by layer", ["after", *lens.names], rows)
    return section("lens", "The next token, layer by layer", note, table)


def _cell(lens: _Lens, state: int, i: int) -> str:
    hit = lens.hit(state, i)
    shown = [
        f"<bdi>{html.escape(piece.text)}</bdi> {percent(p)}"
        for piece, p in zip(lens.best[state][i], lens.probabilities[state, i].tolist(), strict=True)
    ]
    first = f"<b>{'✓ ' * hit}{shown[0]}</b>" + "".join(f"<small>{other}</small>" for other in shown[1:])
    return f'<td{" class=hit" * hit} style="--v:{lens.probabilities[state, i, 0]:.3f}">{first}</td>'


def _drawing(lens: _Lens) -> Drawing:
    """Draw the best token of every cell."""
    left = 12 + max(len(clip(piece.text, _LETTERS)) for piece in lens.pieces) * _SIZE * MONO_WIDTH
    parts = [
        draw_text(left + (i + 0.5) * _COLUMN, 14, name, size=_SIZE, anchor="middle", class_="quiet")
        for i, name in enumerate(lens.names)
    ]
    for i, piece in enumerate(lens.pieces):
        y = 22.0 + i * _ROW
        parts.append(draw_text(left - 8, y + 16, clip(piece.text, _LETTERS), size=_SIZE, anchor="end", class_="mono"))
        for state in range(len(lens.names)):
            box = {"x": left + state * _COLUMN, "y": y, "width": _COLUMN - 2, "height": _ROW - 2, "rx": 3}
            middle = left + (state + 0.5) * _COLUMN - 1
            text = clip(lens.best[state][i][0].text, _LETTERS)
            parts += [
                element("rect", **box, class_="panel"),
                element("rect", **box, class_="heat", opacity=float(lens.probabilities[state, i, 0])),
                draw_text(middle, y + 15, text, size=_SIZE, anchor="middle", class_="mono"),
            ]
            if lens.hit(state, i):
                parts.append(element("rect", **box, class_="mark"))
    last = [f"{lens.best[-1][i][0].text} after {piece.text}" for i, piece in enumerate(lens.pieces)]
    words = f"The best next tokens of the last layer are: {', '.join(last)}. Frames mark the tokens of the prompt."
    return Drawing(
        "The next token, layer by layer", words, left + len(lens.names) * _COLUMN, 26 + len(lens.pieces) * _ROW, parts
    )
