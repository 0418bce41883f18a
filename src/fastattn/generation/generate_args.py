"""The keyword arguments of `generate` and `stream`, for type checkers; `GenerationOptions` describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict


class Streamer(Protocol):
    """The interface of a transformers streamer."""

    def put(self, value: Any) -> object: ...
    def end(self) -> object: ...


class GenerationArgs(TypedDict, total=False):
    """The keyword arguments that become `GenerationOptions`, and those of transformers that change nothing here.

    use_model_defaults: False ignores the checkpoint's generation_config.json. generation_config: a GenerationConfig of
    transformers, or a mapping. Keywords override its options. `generate` also takes a list with one per prompt.
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
    regex: str | None
    json_schema: Mapping[str, Any] | str | type | None
    choices: Sequence[str] | None
    grammar: str | None
    eos_token_id: int | Sequence[int] | None
    bos_token_id: int | None
    pad_token_id: int | None
    truncate: Literal["left", "right"] | None
    max_batch_size: int | None
    max_time: float | None
    adapter_name: str | None
    overflow: Literal["error", "slide"] | None
    priority: int | None
    prompt_lookup_num_tokens: int | None
    max_matching_ngram_size: int | None
    assistant_model: Any
    num_assistant_tokens: int | None
    nan: Literal["raise", "finite", "propagate"] | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    top_h: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    no_repeat_ngram_size: int | None
    sequence_bias: Any
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    bad_words_ids: Sequence[Sequence[int]] | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | Sequence[int] | None
    exponential_decay_length_penalty: tuple[int, float] | None
    logits_processor: Callable[..., Any] | Sequence[Callable[..., Any]] | None
    prefix_allowed_tokens_fn: Callable[..., Any] | None
    stopping_criteria: Callable[..., Any] | Sequence[Callable[..., Any]] | None
    diversity_penalty: float | None
    best_of: int | None
    top_logprobs: int | None
    output_scores: bool | None
    output_logits: bool | None
    generation_config: Any
    use_cache: bool | None
    use_model_defaults: bool | None
    num_beams: int | None
    num_beam_groups: int | None
    early_stopping: bool | Literal["never"] | None
    length_penalty: float | None
    renormalize_logits: bool | None
    typical_p: float | None
    output_attentions: Literal[False] | None
    output_hidden_states: Literal[False] | None
    synced_gpus: Literal[False] | None


class GenerateArgs(GenerationArgs, total=False):
    """The keyword arguments of `generate`.

    inputs: another name for input_ids. attention_mask: same shape as the ids; 0 is padding. streamer: of transformers,
    for one sequence. tokenizer: decodes the tokens, for stop_strings and options such as regex; None is the model's.
    """

    inputs: Any
    attention_mask: Any
    streamer: Streamer | None
    tokenizer: Any
