"""The keywords of transformers' `generate` that are not options here, with the values that change nothing."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.checks import Neutral, check_flag

_OF_BEAMS = "use prefix_allowed_tokens_fn, or filter several beams yourself"
_LIMITED = "use logits_processor, with a function of your own"
_CALL = "call the model with the ids that generate returned"
_DRAFTS = "speculation has prompt_lookup_num_tokens, assistant_model and num_assistant_tokens"
_NO_CACHES = "generate creates its own cache; pass the whole prompt"
_CACHES = ("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "hybrid", "sliding_window")


KEYWORDS: Mapping[str, Neutral] = {
    "disable_compile": Neutral(check=check_flag),
    "is_assistant": Neutral(check=check_flag),
    "low_memory": Neutral(check=check_flag),
    "renormalize_logits": Neutral(check=check_flag),
    "trust_remote_code": Neutral((False,), "no code of a checkpoint is run"),
    "use_cache": Neutral(check=check_flag),
    "use_model_defaults": Neutral(check=check_flag),
    "assistant_confidence_threshold": Neutral((0.4,), _DRAFTS),
    "assistant_early_exit": Neutral((), _DRAFTS),
    "assistant_ensemble_weight": Neutral((), _DRAFTS),
    "assistant_lookbehind": Neutral((10,), _DRAFTS),
    "assistant_tokenizer": Neutral((), _DRAFTS),
    "cache": Neutral((), _NO_CACHES),
    "cache_config": Neutral((), "load the model with kv_dtype= for smaller keys and values"),
    "cache_implementation": Neutral(_CACHES, "load the model with kv_dtype= for smaller keys and values"),
    "cache_position": Neutral((), _NO_CACHES),
    "compile_config": Neutral((), "nothing is compiled; leave it out"),
    "constraints": Neutral((), _OF_BEAMS),
    "custom_generate": Neutral((), "no code of a checkpoint is run"),
    "decoder_input_ids": Neutral((), "pass input_ids"),
    "decoder_start_token_id": Neutral((), "these models have no separate decoder; pass input_ids"),
    "dola_layers": Neutral((), _LIMITED),
    "encoder_no_repeat_ngram_size": Neutral((0,), _LIMITED),
    "encoder_repetition_penalty": Neutral((1,), "use repetition_penalty"),
    "force_words_ids": Neutral((), _OF_BEAMS),
    "guidance_scale": Neutral((1,), _LIMITED),
    "inputs_embeds": Neutral((), "pass input_ids"),
    "labels": Neutral((), "no loss is computed; leave it out"),
    "logits_to_keep": Neutral((0, 1), "generate computes the logits that it draws from"),
    "max_cache_len": Neutral((), "the cache grows as needed; leave it out"),
    "negative_prompt_attention_mask": Neutral((), _LIMITED),
    "negative_prompt_ids": Neutral((), _LIMITED),
    "num_assistant_tokens_schedule": Neutral(("constant",), _DRAFTS),
    "output_attentions": Neutral((False,), _CALL),
    "output_hidden_states": Neutral((False,), _CALL),
    "past_key_values": Neutral((), _NO_CACHES),
    "penalty_alpha": Neutral((0,), _LIMITED),
    "position_ids": Neutral((), "positions count the tokens of each sequence; mark padding with attention_mask"),
    "prefill_chunk_size": Neutral((), "long prompts are always processed in chunks; leave it out"),
    "remove_invalid_values": Neutral((False,), 'use nan="finite"'),
    "return_legacy_cache": Neutral((False,), _NO_CACHES),
    "speculation_type": Neutral((), _DRAFTS),
    "synced_gpus": Neutral((False,), "a model runs on one device"),
    "target_lookbehind": Neutral((10,), _DRAFTS),
    "token_healing": Neutral((False,), "leave it out"),
    "token_type_ids": Neutral((), "generate takes no token types; pass only input_ids and attention_mask"),
    "use_mtp": Neutral((False,), _DRAFTS),
    "watermarking_config": Neutral((), _LIMITED),
    # Names in other libraries.
    "greedy": Neutral((), "use do_sample=False"),
    "stop": Neutral((), "use stop_strings"),
    "stop_sequences": Neutral((), "use stop_strings"),
    "stream": Neutral((False,), "call stream, which yields the text in pieces"),
}
