"""`generate` for models of an encoder and a decoder: the encoder runs first, and every request reads its memory."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import InputError
from fastattn.generation import generate as generation
from fastattn.generation.prompts import LanguageModel, encode_prompt, need_tokenizer
from fastattn.generation.source import sources_of
from fastattn.graph.executor import Executor
from fastattn.models.outputs import GenerateOutput


class Seq2SeqModel(LanguageModel, Protocol):
    """What generation requires of a model with an encoder."""

    @property
    def encoder(self) -> Executor: ...
    def start_of(self, given: object) -> int: ...
    def read_source(self, input_ids: object, attention_mask: object) -> list[NDArray[np.int32]]: ...


def generate(model: Seq2SeqModel, inputs: Any, *, start: object = None, **options: Any) -> Any:
    """Write texts from `inputs`, texts or token ids; see `Seq2SeqLM.generate`. start: decoder_start_token_id."""
    mask = options.pop("attention_mask", None)
    if options.get("assistant_model") is not None:
        raise InputError("assistant_model: expected None for a model with an encoder; use prompt_lookup_num_tokens")
    if options.get("overflow") not in (None, "error"):
        raise InputError('overflow: expected "error" for a model with an encoder, whose text has a beginning')
    texts, one = _texts_of(inputs)
    if texts is not None:
        if mask is not None:
            raise InputError("attention_mask: expected None with texts, which have no padding")
        tokenizer = need_tokenizer(model, "generate")
        inputs = [encode_prompt(tokenizer, text, f"inputs[{i}]") for i, text in enumerate(texts)]
        mask = [np.ones(len(ids), np.int64) for ids in inputs]
    elif mask is None:
        inputs, mask = _without_padding(model, inputs, options.get("pad_token_id"))
    sources = model.read_source(inputs, mask)
    first = [model.start_of(start)]
    single = texts is None and _is_single(inputs)
    starts: Any = first if single else [first] * len(sources)
    group = sources_of(model.encoder, sources)
    try:
        found = generation.generate(
            model,
            starts,
            attention_mask=np.ones(1, np.int64) if single else [np.ones(1, np.int64)] * len(sources),
            sources=group,
            **options,
        )
    finally:
        for source in group:
            source.close()
    if texts is None or isinstance(found, GenerateOutput):
        return found
    decoded = [need_tokenizer(model, "generate").decode(ids, skip_special_tokens=True) for ids in found]
    return decoded[0] if one and len(decoded) == 1 else decoded


def _texts_of(inputs: object) -> tuple[list[str] | None, bool]:
    """Return the texts of a call, and whether there is one outside of a list; None for token ids."""
    if isinstance(inputs, str):
        return [inputs], True
    if isinstance(inputs, (list, tuple)) and inputs and all(isinstance(item, str) for item in inputs):
        return list(inputs), False
    return None, False


def _is_single(inputs: Any) -> bool:
    """Return whether checked token ids are one sequence."""
    if isinstance(inputs, (list, tuple)):
        return bool(inputs) and not isinstance(inputs[0], (list, tuple)) and not getattr(inputs[0], "ndim", 0)
    return bool(np.ndim(inputs) == 1)


def _without_padding(model: LanguageModel, inputs: Any, pad: int | None) -> tuple[Any, Any]:
    """Return the ids and a mask that is 0 at the padding id in an array of several rows, as in transformers."""
    padding = model.pad_token_id if pad is None else pad
    if padding is None or isinstance(inputs, (list, tuple)) or np.ndim(inputs) != 2:
        return inputs, None
    ids = np.asarray(inputs)
    return ids, (ids != padding).astype(np.int64)
