"""One page with all pictures that a model supports."""

from __future__ import annotations

from typing import Any

from fastattn.api.causal_lm import CausalLM
from fastattn.viz.attention_view import attention
from fastattn.viz.inputs import ModelLike, name_of, opened_any
from fastattn.viz.lens_view import next_tokens
from fastattn.viz.picture import Picture
from fastattn.viz.surprisal_view import surprisal
from fastattn.viz.tokens_view import tokens


def look(model: ModelLike, text: str, *, layers: object = None, heads: object = None, top_k: int = 3) -> Picture:
    """Show all pictures of a text that a model supports on one page.

    All models: the tokens, and attention. Language models also: surprisal (of at least two tokens) and the next tokens.
    A folder or hub id is loaded as a language model if it is one. model, layers, heads: as in `attention`. top_k: as in
    `next_tokens`.

    data: the data of each picture, by its name: "tokens", "surprisal", "next_tokens", "attention". Raises the errors of
    these functions.
    """
    with opened_any(model) as loaded:
        pictures: dict[str, Picture] = {"tokens": tokens(loaded, text)}
        if isinstance(loaded, CausalLM):
            if len(pictures["tokens"].data["ids"]) > 1:
                pictures["surprisal"] = surprisal(loaded, text)
            pictures["next_tokens"] = next_tokens(loaded, text, top_k=top_k)
        pictures["attention"] = attention(loaded, text, layers=layers, heads=heads)
        return _join(f"A look inside {name_of(loaded)}", pictures)


def _join(title: str, pictures: dict[str, Picture]) -> Picture:
    data: dict[str, Any] = {name: picture.data for name, picture in pictures.items()}
    sections = [section for picture in pictures.values() for section in picture.sections]
    return Picture(title, data, sections, [drawing for picture in pictures.values() for drawing in picture.drawings])
