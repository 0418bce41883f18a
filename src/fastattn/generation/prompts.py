"""Converts a caller's prompt to the ids that generation starts from."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import quote
from fastattn.errors import ConfigError, DTypeError, InputError
from fastattn.generation.engine import Engine
from fastattn.generation.options import GenerationOptions
from fastattn.graph.executor import Executor
from fastattn.graph.kinds import LoraAdapter
from fastattn.models.inputs import Batch, read_batch
from fastattn.models.sequences import place
from fastattn.tokenizer import Tokenizer, check_text

_log = logging.getLogger("fastattn")


class HasTokenizer(Protocol):
    """An object that may have a tokenizer."""

    @property
    def tokenizer(self) -> Tokenizer | None: ...


class LanguageModel(HasTokenizer, Protocol):
    """What generation requires of a model."""

    @property
    def executor(self) -> Executor: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> Sequence[int]: ...
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def generation_config(self) -> Mapping[str, Any]: ...
    def explain_id(self, token_id: int) -> str: ...
    def find_adapter(self, name: str) -> LoraAdapter: ...


HOW_TO_CUT = '; truncate="left" cuts the prompt, overflow="slide" continues beyond the context'


@dataclass(frozen=True, slots=True)
class Prompts:
    """Checked prompts.

    ids: int32, the real tokens of each prompt. names: of the prompts, for messages. lengths: as max_length counts them.
    single: the caller passed one sequence rather than a list of one.
    """

    ids: list[NDArray[np.int32]]
    names: list[str]
    lengths: list[int]
    single: bool


def read_prompts(
    model: LanguageModel,
    ids: Any,
    attention_mask: Any,
    options: GenerationOptions,
    *,
    name: str = "input_ids",
    if_too_long: str = HOW_TO_CUT,
) -> Prompts:
    """Check token ids. Without attention_mask, padding is inferred from the padding id, as in transformers.

    For messages: name, of the ids; if_too_long, what to do about a prompt that is too long. Raises DTypeError,
    InputError, ContextLengthError.
    """
    _refuse_texts(ids, name)
    checked = options.truncate is None and options.overflow == "error"
    context = model.executor.program.max_positions if checked else sys.maxsize
    batch = read_batch(
        ids,
        attention_mask,
        vocab_size=vocab_size(model),
        max_positions=context,
        explain=model.explain_id,
        name=name,
        if_too_long=if_too_long,
    )
    rows = batch.ids if attention_mask is not None else _without_padding(model, batch, options, name)
    # For a 2-D array transformers also counts the padding: every row gets the same number of new tokens.
    lengths = [batch.width] * len(rows) if batch.layout == "dense" else list(map(len, rows))
    names = [place(name, batch.layout, i) for i in range(len(rows))]
    return Prompts(rows, names, lengths, batch.layout == "single")


def _refuse_texts(ids: Any, name: str) -> None:
    streamed = name == "text_or_ids"  # `stream`, `surprisal` and others take a text, but one at a time
    first = ids[0] if isinstance(ids, (list, tuple)) and ids else ids
    if isinstance(first, (str, bytes, bytearray)):
        what = type(ids).__name__ if first is ids else f"{type(ids).__name__} of {type(first).__name__}"
        instead = (
            'pass one text per call; pipeline("text-generation") continues several'
            if streamed
            else 'encode the text with the tokenizer\'s encode(), or use stream() or pipeline("text-generation")'
        )
        expected = "one text or token ids" if streamed else "token ids"
        raise DTypeError(f"{name}: expected {expected}, got {what}; {instead}")
    if isinstance(ids, Mapping) or (hasattr(ids, "keys") and not hasattr(ids, "__array__")):
        instead = (
            'pass the text, or the "input_ids" of one text'
            if streamed
            else "call generate(**encoding) instead of generate(encoding)"
        )
        raise DTypeError(f"{name}: expected token ids, got {type(ids).__name__}; {instead}")


def _without_padding(
    model: LanguageModel, batch: Batch, options: GenerationOptions, name: str
) -> list[NDArray[np.int32]]:
    """Return the rows without padding if the padding id is known; warn if the id may be padding or text."""
    eos = options.eos_ids(model.eos_token_ids)
    pad = model.pad_token_id if options.pad_token_id is None else options.pad_token_id
    if pad is not None and pad not in eos:
        # Rows of equal length may have been padded. Other rows were not, so there the id is probably text.
        padded = len(batch.counts) > 1 and len(set(batch.counts)) == 1
        if not padded and (batch.token_ids == pad).any():
            _log.warning(
                "%s: id %d is pad_token_id, so it is removed as padding; if it is text, pass an attention_mask",
                name,
                pad,
            )
        return [row[row != pad] for row in batch.ids]
    maybe = pad if pad is not None else next(iter(model.eos_token_ids), None)
    if maybe is not None and batch.layout == "dense" and len(batch.counts) > 1 and batch.touches(maybe):
        _log.warning(
            "%s: rows begin or end with id %d, which is also an eos id, and there is no attention_mask: they are "
            "read as text; pass an attention_mask, or lists of different lengths",
            name,
            maybe,
        )
    return batch.ids


def encode_prompt(tokenizer: Tokenizer, text: object, name: str, **options: Any) -> NDArray[np.int32]:
    """Return the ids of a text. Only an empty text may have none. Raises DTypeError, InputError."""
    checked = check_text(text, name)
    ids = np.array(tokenizer.encode(checked, **options), np.int32)
    if checked and not len(ids):
        raise InputError(
            f'{name}: expected a text of at least one token, got {quote(checked)}, which encodes to none; pass "" to '
            "begin without a prompt"
        )
    return ids


def need_tokenizer(model: HasTokenizer, what: str) -> Tokenizer:
    """Return the model's tokenizer; raise ConfigError if its folder has none."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ConfigError(
            f"{what}: expected a tokenizer in the model's folder, found none; add its tokenizer.json, as "
            "tokenizer.save_pretrained(folder) writes it, or call the model with token ids"
        )
    return tokenizer


def start_id(model: LanguageModel, options: GenerationOptions, name: str) -> int:
    """Return the id that an empty prompt starts from."""
    limit = vocab_size(model)
    if options.bos_token_id is not None and options.bos_token_id >= limit:
        raise InputError(f"bos_token_id: expected 0 to {limit - 1}, got {options.bos_token_id}")
    for token_id in (options.bos_token_id, model.bos_token_id, *model.eos_token_ids):
        if token_id is not None:
            return token_id
    raise InputError(
        f"{name}: expected at least one id, because the checkpoint has no bos or eos id to start from; pass a prompt, "
        "or bos_token_id"
    )


def eos_ids(model: LanguageModel, options: GenerationOptions) -> frozenset[int]:
    """Return the ids that end a text. Raises InputError for an id that the model does not have."""
    ids, limit = options.eos_ids(model.eos_token_ids), vocab_size(model)
    for i in ids if options.eos_token_id is not None else ():
        if i >= limit:
            raise InputError(f"eos_token_id: expected -1 to {limit - 1}, got {i}")
    return frozenset(i for i in ids if i < limit)


def vocab_size(model: LanguageModel) -> int:
    """Return the number of ids of the model."""
    program = model.executor.program
    return program.values[program.outputs["logits"]].width
