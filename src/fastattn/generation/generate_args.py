"""The keyword arguments of `generate` and `stream`, for type checkers; `GenerationOptions` describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypedDict


class Streamer(Protocol):
    """The interface of a transformers streamer."""

    def put(self, value: Any) -> object: ...
    def end(self) -> object: ...


class GenerationArgs(TypedDict, total=False):
    """The keyword arguments that become `GenerationOptions`, and those of transformers that change nothing here.

    generation_config: a GenerationConfig of transformers, or a mapping. Keywords override its options.
    """

    max_new_tokens: int | None
    min_new_tokens: int | None
    max_length: int | None
    min_length: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    seed: int | Sequence[int] | None
    stop_strings: str | Sequence[str] | None
    eos_token_id: int | Sequence[int] | None
    bos_token_id: int | None
    pad_token_id: int | None
    truncate: Literal["left", "right"] | None
    max_batch_size: int | None
    max_time: float | None
    overflow: Literal["error", "slide"] | None
    priority: int | None
    nan: Literal["raise", "finite", "propagate"] | None
    generation_config: Any
    use_cache: bool | None
    num_beams: Literal[1] | None
    num_beam_groups: Literal[1] | None
    early_stopping: bool | Literal["never"] | None
    length_penalty: float | None
    renormalize_logits: bool | None
    typical_p: float | None
    output_scores: Literal[False] | None
    output_logits: Literal[False] | None
    output_attentions: Literal[False] | None
    output_hidden_states: Literal[False] | None
    synced_gpus: Literal[False] | None


class GenerateArgs(GenerationArgs, total=False):
    """The keyword arguments of `generate`.

    inputs: another name for input_ids. attention_mask: same shape as the ids; 0 is padding. streamer: of transformers,
    for one sequence. tokenizer: decodes the tokens in which stop_strings are
    searched; None is the model's.
    """

    inputs: Any
    attention_mask: Any
    streamer: Streamer | None
    tokenizer: Any
