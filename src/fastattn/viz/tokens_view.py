"""The picture of tokens: the pieces of a text, with their ids and positions."""

from __future__ import annotations

import html
import os
from typing import Any

from fastattn.api.auto_tokenizer import AutoTokenizer
from fastattn.api.model import Model
from fastattn.errors import InputError
from fastattn.tasks.pipeline_base import Pipeline
from fastattn.tasks.sentence_transformer import SentenceTransformer
from fastattn.tokenizer import Tokenizer, check_text
from fastattn.viz.chips import Chip, draw_chips
from fastattn.viz.inputs import tokenizer_of
from fastattn.viz.picture import NO_VALUE, Picture, details, scrolled_table, section
from fastattn.viz.pieces import chip, read_pieces, visible


def tokens(
    tokenizer: Tokenizer | Model | SentenceTransformer | Pipeline[Any] | str | os.PathLike[str],
    text: str,
    *,
    add_special_tokens: bool = True,
) -> Picture:
    """Show the tokens of a text, with their ids and their positions in the text.

    tokenizer: a tokenizer, anything that has one (a model, SentenceTransformer, pipeline), a folder or a hub id.

    data: "tokens", as stored in the vocabulary; "ids" [n_tokens]; "offsets" int32 [n_tokens, 2], the characters of each
    token from the first to one after the last; (0, 0) for tokens that are not in the text. Raises DTypeError,
    InputError, ConfigError.
    """
    found = _tokenizer(tokenizer)
    checked = check_text(text, "text")
    ids = found.encode(checked, add_special_tokens=add_special_tokens)
    offsets = found.offsets(checked, add_special_tokens=add_special_tokens)
    if not ids:
        raise InputError("text: expected a text of at least one token, got one that encodes to none")
    pieces = read_pieces(found, ids)
    colors = ["" if piece.special else f"k{i % 5}" for i, piece in enumerate(pieces)]
    chips = "".join(chip(piece, str(piece.id), class_=color) for piece, color in zip(pieces, colors, strict=True))
    rows = [
        [
            str(i),
            f"<bdi>{html.escape(visible(piece.token))}</bdi>",
            str(piece.id),
            f"{begin} to {end}" if end > begin else NO_VALUE,
            f"“<bdi>{html.escape(visible(checked[begin:end]))}</bdi>”" if end > begin else NO_VALUE,
        ]
        for i, (piece, (begin, end)) in enumerate(zip(pieces, offsets.tolist(), strict=True))
    ]
    note = (
        f"{len(checked)} characters, {len(ids)} tokens. The number below a token is its id, the row of the model's "
        "embedding table. A dashed frame marks special tokens. Colors only separate neighbors."
    )
    table = scrolled_table("Tokens", ["position", "token", "id", "characters", "text"], rows)
    body = f'<p class="tokens">{chips}</p>\n' + details("As a table", table, opened=len(ids) <= 24)
    drawn = [Chip(p.text, str(p.id), p.starts_word, color or "edge") for p, color in zip(pieces, colors, strict=True)]
    words = ", ".join(f"{piece.text} {piece.id}" for piece in pieces)
    data = {"tokens": [piece.token for piece in pieces], "ids": ids, "offsets": offsets}
    drawing = draw_chips(f"{len(ids)} tokens and their ids", words, drawn)
    return Picture("Tokens of a text", data, [section("pieces", "Tokens", note, body)], [drawing])


def _tokenizer(source: Any) -> Tokenizer:
    if isinstance(source, Tokenizer):
        return source
    if isinstance(source, Model):
        return tokenizer_of(source, "tokenizer")
    if isinstance(source, (SentenceTransformer, Pipeline)):
        return source.tokenizer
    return AutoTokenizer.from_pretrained(source)
