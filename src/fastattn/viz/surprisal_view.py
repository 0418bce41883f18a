"""The picture of surprisal: how unexpected each token of a text is for a language model."""

from __future__ import annotations

import math

import numpy as np

from fastattn.tasks.finite import check_finite
from fastattn.tasks.quality import log_softmax
from fastattn.viz.chips import Chip, draw_chips
from fastattn.viz.compute import token_logits
from fastattn.viz.inputs import ModelLike, encode_prompt, name_of, opened_lm, tokenizer_of
from fastattn.viz.picture import NO_VALUE, Picture, details, scrolled_table, section
from fastattn.viz.pieces import chip, read_pieces

_FULL = 16.0  # bits of the strongest color


def surprisal(lm: ModelLike, text: str) -> Picture:
    """Show how unexpected each token of a text is: -log2 of its probability after the tokens before it (Shannon 1948).

    A token of b bits was as unexpected as one of 2**b equally probable ones. The first token has no tokens before it,
    so it has no surprisal. lm: a loaded language model, a text-generation pipeline, a folder or a hub id.

    data: "tokens" and "ids" [n_tokens]; "bits" [n_tokens], NaN for the first; "bits_per_token", their mean;
    "bits_per_byte", their sum per byte of UTF-8 of the text after the first token; "perplexity", 2**bits_per_token.
    Raises DTypeError, InputError for a text of fewer than two tokens, ContextLengthError, ConfigError, NonFiniteError.
    """
    with opened_lm(lm) as model:
        checked, ids = encode_prompt(model, text, "text", low=2)
        tokenizer = tokenizer_of(model, "text")
        bits = np.full(len(ids), np.nan)
        for at, (logits,) in token_logits(model, ids, lens=False):
            check_finite(logits, "text", "logits")
            following = ids[at + 1 : at + 1 + len(logits)]
            logs = log_softmax(logits[: len(following)].astype(np.float64))
            bits[at + 1 : at + 1 + len(following)] = -logs[np.arange(len(following)), following] / math.log(2)
        pieces, begin = read_pieces(tokenizer, ids), int(tokenizer.offsets(checked)[0, 1])
        title = f"What surprises {name_of(model)}"
    total, n_bytes = math.fsum(bits[1:]), len(checked[begin:].encode())
    mean = total / (len(ids) - 1)
    data = {
        "tokens": [piece.token for piece in pieces],
        "ids": ids,
        "bits": bits,
        "bits_per_token": mean,
        "bits_per_byte": total / n_bytes if n_bytes else math.nan,
        "perplexity": 2.0**mean,
    }
    shown = [NO_VALUE, *(f"{b:.1f}" for b in bits[1:].tolist())]
    shades = [0.0, *np.clip(bits[1:] / _FULL, 0, 1).tolist()]
    chips = "".join(chip(piece, b, value=v) for piece, b, v in zip(pieces, shown, shades, strict=True))
    rows = [[f"{i} {piece.quoted}", _number(shown[i]), _chance(float(bits[i]))] for i, piece in enumerate(pieces)]
    summary = f"{mean:.2f} bits per token, {data['bits_per_byte']:.2f} bits per byte, perplexity {2.0**mean:,.1f}"
    note = (
        f"{len(ids)} tokens: {summary}. The number below a token is its surprisal in bits. A token of 1 bit had a "
        "chance of one half, one of 10 bits a chance of one in 1,024. Nothing comes before the first token, so it has "
        "none."
    )
    legend = '<p class="legend"><span>0 bits</span><span class="bar"></span><span>16 bits or more</span></p>\n'
    table = details("As a table", scrolled_table("Surprisal", ["token", "bits", "probability"], rows))
    body = f'{legend}<p class="tokens">{chips}</p>\n{table}'
    drawn = [
        Chip(piece.text, b, piece.starts_word, "heat", v) for piece, b, v in zip(pieces, shown, shades, strict=True)
    ]
    words = f"{summary}. " + ", ".join(f"{piece.text} {b}" for piece, b in zip(pieces, shown, strict=True))
    drawing = draw_chips("Surprisal in bits per token", words, drawn)
    return Picture(title, data, [section("surprisal", "Surprisal", note, body)], [drawing])


def _number(text: str) -> str:
    return f'<td class="number">{text}</td>'


def _chance(bits: float) -> str:
    if math.isnan(bits):
        return _number(NO_VALUE)
    share = 2.0**-bits
    return _number(f"{100 * share:.3g} %" if share >= 1e-4 else f"1 in {1 / share:.2g}" if bits < 1000 else "about 0")
