"""The keywords of transformers' `generate` that are not options here.

Those that change nothing in a result are accepted, with any value or with the values that change nothing. The others
are refused with what to do instead, and a name that nobody knows with the closest one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from fastattn.checks import check_flag, check_number, closest, quote
from fastattn.errors import DTypeError, InputError

_FLAGS = ("disable_compile", "is_assistant", "low_memory", "renormalize_logits", "use_cache", "use_model_defaults")
_OF_BEAMS = "there is no beam search: use do_sample=True, or greedy search"
_NO_PROCESSORS = "logits cannot be changed by code: call the model, and draw from its logits"
_LIMITED = "use temperature, top_k, top_p, min_p and repetition_penalty"
_LOGPROBS = "use return_dict_in_generate=True, which gives the log-probabilities of the new tokens"
_CALL = "call the model with the ids that generate returned"
_NO_DRAFTS = "there is no assisted generation; leave it out"
_NO_CACHES = "generate makes its own cache; give the whole prompt"
_CACHES = ("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "hybrid", "sliding_window")
# The values that change nothing, besides None and empty collections, and what to do instead of others.
_REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "assistant_confidence_threshold": ((0.4,), _NO_DRAFTS),
    "assistant_early_exit": ((), _NO_DRAFTS),
    "assistant_ensemble_weight": ((), _NO_DRAFTS),
    "assistant_lookbehind": ((10,), _NO_DRAFTS),
    "assistant_model": ((), _NO_DRAFTS),
    "assistant_tokenizer": ((), _NO_DRAFTS),
    "bad_words_ids": ((), _LIMITED),
    "begin_suppress_tokens": ((), _LIMITED),
    "cache": ((), _NO_CACHES),
    "cache_config": ((), "load the model with kv_dtype= for smaller keys and values"),
    "cache_implementation": (_CACHES, "load the model with kv_dtype= for smaller keys and values"),
    "cache_position": ((), _NO_CACHES),
    "compile_config": ((), "nothing is compiled; leave it out"),
    "constraints": ((), _OF_BEAMS),
    "custom_generate": ((), "no code of a checkpoint is run"),
    "decoder_input_ids": ((), "give input_ids"),
    "decoder_start_token_id": ((), "these models have no decoder of their own; give input_ids"),
    "diversity_penalty": ((0,), _OF_BEAMS),
    "dola_layers": ((), _LIMITED),
    "encoder_no_repeat_ngram_size": ((0,), _LIMITED),
    "encoder_repetition_penalty": ((1,), "use repetition_penalty"),
    "epsilon_cutoff": ((0,), _LIMITED),
    "eta_cutoff": ((0,), _LIMITED),
    "exponential_decay_length_penalty": ((), "use max_new_tokens and eos_token_id"),
    "force_words_ids": ((), _OF_BEAMS),
    "forced_bos_token_id": ((), "put the id at the end of the prompt"),
    "forced_eos_token_id": ((), "add the id to the result"),
    "guidance_scale": ((1,), _LIMITED),
    "inputs_embeds": ((), "give input_ids"),
    "labels": ((), "no loss is computed; leave it out"),
    "logits_processor": ((), _NO_PROCESSORS),
    "logits_to_keep": ((0, 1), "generate computes the logits that it draws from"),
    "max_cache_len": ((), "the cache grows as needed; leave it out"),
    "max_matching_ngram_size": ((), _NO_DRAFTS),
    "max_time": ((), "use stream, and close it when the time is over"),
    "negative_prompt_attention_mask": ((), _LIMITED),
    "negative_prompt_ids": ((), _LIMITED),
    "no_repeat_ngram_size": ((0,), "use repetition_penalty"),
    "num_assistant_tokens": ((20,), _NO_DRAFTS),
    "num_assistant_tokens_schedule": (("constant",), _NO_DRAFTS),
    "num_beam_groups": ((1,), _OF_BEAMS),
    "num_beams": ((1,), _OF_BEAMS),
    "output_attentions": ((False,), _CALL),
    "output_hidden_states": ((False,), _CALL),
    "output_logits": ((False,), _LOGPROBS),
    "output_scores": ((False,), _LOGPROBS),
    "past_key_values": ((), _NO_CACHES),
    "penalty_alpha": ((0,), _LIMITED),
    "position_ids": ((), "positions count the tokens of each sequence; mark padding with attention_mask"),
    "prefill_chunk_size": ((), "long prompts are read in parts anyway; leave it out"),
    "prefix_allowed_tokens_fn": ((), _NO_PROCESSORS),
    "prompt_lookup_num_tokens": ((), _NO_DRAFTS),
    "remove_invalid_values": ((False,), 'use nan="finite"'),
    "return_legacy_cache": ((False,), _NO_CACHES),
    "sequence_bias": ((), _LIMITED),
    "speculation_type": ((), _NO_DRAFTS),
    "stopping_criteria": ((), "use stop_strings and eos_token_id, or stream and close it"),
    "suppress_tokens": ((), _LIMITED),
    "synced_gpus": ((False,), "a model runs on one device"),
    "target_lookbehind": ((10,), _NO_DRAFTS),
    "token_healing": ((False,), "leave it out"),
    "token_type_ids": ((), "generate takes no token types: give it input_ids and attention_mask alone"),
    "top_h": ((), _LIMITED),
    "typical_p": ((1,), _LIMITED),
    "use_mtp": ((False,), _NO_DRAFTS),
    "watermarking_config": ((), _LIMITED),
}


def check_unused(keywords: Mapping[str, Any], ours: Collection[str], where: str) -> None:
    """Refuse keywords that would change something, and unknown ones. Raises InputError, DTypeError.

    ours: the names that the caller takes itself.
    """
    for name, value in keywords.items():
        if name in _FLAGS:
            if value is not None:
                check_flag(name, value)
        elif name == "length_penalty":  # of beam search alone
            if value is not None:
                check_number(name, value)
        elif name == "early_stopping":  # of beam search alone
            if value is not None and value != "never":
                check_flag(name, value)
        elif name in _REFUSED:
            _check_neutral(name, value, *_REFUSED[name])
        else:
            hint = closest(name, (*ours, *_FLAGS, *_REFUSED, "length_penalty", "early_stopping"))
            raise InputError(f"{where}: unknown option {quote(name)}{hint or '; see GenerationOptions'}")


def with_generation_config(options: Mapping[str, Any], *, ours: Collection[str] = ()) -> dict[str, Any]:
    """The options with those of their `generation_config`, which count where no keyword says otherwise.

    None says nothing, but for top_k, where it is "off". ours: see `_from_generation_config`.
    Raises DTypeError, InputError.
    """
    found = _from_generation_config(options.get("generation_config"), ours)
    for name, value in options.items():
        if name != "generation_config" and (value is not None or name not in found or name == "top_k"):
            found[name] = value
    return found


def _from_generation_config(config: Any, ours: Collection[str]) -> dict[str, Any]:
    """The options that a GenerationConfig of transformers, or a mapping, sets.

    return_dict_in_generate is left out where it is not one of `ours`: only the form of `generate`'s result depends on
    it. Raises DTypeError, InputError.
    """
    if config is None:
        return {}
    as_dict = getattr(config, "to_diff_dict", None)
    found = as_dict() if callable(as_dict) else config
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise DTypeError(f"generation_config: expected a GenerationConfig or a mapping, got {quote(config)}")
    if "return_dict_in_generate" not in ours and found.get("return_dict_in_generate") is not None:
        check_flag("return_dict_in_generate", found["return_dict_in_generate"])
        found = {name: value for name, value in found.items() if name != "return_dict_in_generate"}
    return {
        name: value
        for name, value in found.items()
        if value is not None and name not in ("transformers_version", "_from_model_config", "_commit_hash")
    }


def _check_neutral(name: str, value: Any, allowed: tuple[object, ...], instead: str) -> None:
    if value is None or (isinstance(value, (list, tuple, dict)) and not value):
        return
    if not any(_is_same(value, item) for item in allowed):
        expected = " or ".join(repr(item) for item in (None, *allowed[:3]))
        raise InputError(f"{name}: expected {expected}, got {quote(value)}; {instead}")


def _is_same(value: Any, item: object) -> bool:
    if isinstance(value, (bool, np.bool_)) or isinstance(item, bool):
        return isinstance(value, (bool, np.bool_)) and isinstance(item, bool) and bool(value) == item
    kinds = (str,) if isinstance(item, str) else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and bool(value == item)
