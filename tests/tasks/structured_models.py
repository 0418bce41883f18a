"""Models for tests of structured output, and masks computed without a library for languages of a few texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.generation import generate as generation
from fastattn.tokenizer import load_tokenizer
from tests.reference.checkpoints import write_gpt2 as write_gpt2_weights
from tests.tasks.tokenizers import LETTERS, MERGES, write_gpt2
from tests.tasks.toy import ToyModel

EOS = 265
PROMPT = [ord("h"), ord("i"), ord(" ")]
_BYTES = {letter: byte for byte, letter in LETTERS.items()}
_TOKENS = [LETTERS[b] for b in range(256)] + [merge.replace(" ", "") for merge in MERGES]
PIECES = [bytes(_BYTES[letter] for letter in token) for token in _TOKENS]  # by id, without EOS
SIZES = {"vocab_size": 266, "n_positions": 512, "n_embd": 48, "n_layer": 2, "n_head": 3}
PAGE_BYTES = 2 * 48 * 4 * 64 * 2  # keys and values, n_embd, float32, positions, layers


def toy(tmp_path: Path, max_positions: int = 256) -> ToyModel:
    """Return a model without weights, whose logits are random, with a byte-level tokenizer."""
    tokenizer = load_tokenizer(write_gpt2(tmp_path / "tokenizer"))
    assert tokenizer is not None
    model = ToyModel(tokenizer, max_positions=max_positions)
    model.eos_token_ids = (EOS,)
    return model


def write_model(folder: Path) -> Path:
    """Write a GPT-2 with 512 positions and a byte-level tokenizer of 266 ids."""
    write_gpt2_weights(folder, **SIZES, eos_token_id=EOS, bos_token_id=EOS)
    return write_gpt2(folder)


def text_of(ids: Iterable[int]) -> str:
    """Return the text of ids; EOS is none."""
    return b"".join(PIECES[i] for i in ids if i != EOS).decode("utf-8")


def only(texts: Iterable[str], prompt_len: int) -> Callable[..., Any]:
    """Return a logits_processor that leaves the ids after which the new text can still become one of the texts."""
    wanted = [text.encode("utf-8") for text in texts]

    def process(ids: NDArray[np.int64], scores: NDArray[Any]) -> NDArray[Any]:
        text = b"".join(PIECES[i] for i in ids[0, prompt_len:].tolist())
        left = {one[len(text) :] for one in wanted if one.startswith(text)}
        allowed = [i for i, piece in enumerate(PIECES) if any(rest.startswith(piece) for rest in left)]
        allowed += [EOS] if b"" in left else []
        found = np.full_like(scores, -np.inf)
        found[0, allowed] = scores[0, allowed]
        return found

    return process


def run(model: Any, prompt: list[int] = PROMPT, **options: Any) -> Any:
    return generation.generate(model, prompt, return_dict_in_generate=True, **{"max_new_tokens": 60, **options})


def new_text(found: Any, i: int = 0, prompt: list[int] = PROMPT) -> str:
    return text_of(found.sequences[i].tolist()[len(prompt) :])
