"""The decoder families with their options, for the comparisons with transformers."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}
QWEN3 = {**SIZES, "head_dim": 10}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 6}

NEOX = {key: size for key, size in SIZES.items() if key != "num_key_value_heads"}
GPTJ = {
    "vocab_size": 61,
    "n_embd": 24,
    "n_head": 3,
    "n_layer": 2,
    "n_positions": 24,
    "rotary_dim": 4,
    "pad_token_id": 0,
}
NEO = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_heads": 3,
    "num_layers": 4,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 4,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}
OPT = {**{key: size for key, size in NEOX.items() if key != "intermediate_size"}, "ffn_dim": 40}
BLOOM = {"vocab_size": 61, "hidden_size": 24, "n_head": 3, "n_layer": 2, "pad_token_id": 0, "seq_length": 24}
GEMMA = {**SIZES, "head_dim": 10}
GEMMA2 = {**GEMMA, "sliding_window": 4, "query_pre_attn_scalar": 7, "attn_logit_softcapping": 0.5}
GEMMA3 = {**GEMMA, "sliding_window": 4, "query_pre_attn_scalar": 7, "sliding_window_pattern": 2}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0, 3.0, 4.0],
    "original_max_position_embeddings": 6,
}
STABLE = {**SIZES, "hidden_size": 32, "partial_rotary_factor": 0.5}

# Name, class of transformers, sizes, other options.
DECODER_CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("llama", "LlamaForCausalLM", SIZES, {}),
    (
        "llama-biases-tied",
        "LlamaForCausalLM",
        SIZES,
        {
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "num_key_value_heads": None,
            "hidden_act": "gelu",
        },
    ),
    ("llama-head-dim", "LlamaForCausalLM", SIZES, {"head_dim": 10, "rms_norm_eps": 0.01, "num_key_value_heads": 1}),
    ("llama-llama3", "LlamaForCausalLM", SIZES, {"rope_parameters": LLAMA3}),
    ("llama-yarn", "LlamaForCausalLM", SIZES, {"rope_parameters": YARN}),
    (
        "llama-linear",
        "LlamaForCausalLM",
        {**SIZES, "head_dim": 8},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 77.0, "factor": 3.0}},
    ),
    (
        "llama-dynamic",
        "LlamaForCausalLM",
        SIZES,
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 77.0, "factor": 3.0}},
    ),
    ("llama-base", "LlamaModel", SIZES, {}),
    ("llama-classify-3", "LlamaForSequenceClassification", SIZES, {"num_labels": 3}),
    ("mistral", "MistralForCausalLM", SIZES, {"sliding_window": 4}),
    ("mistral-no-window", "MistralForCausalLM", SIZES, {"sliding_window": None, "head_dim": 8}),
    ("mistral-wide-window", "MistralForCausalLM", SIZES, {"sliding_window": 9, "num_key_value_heads": 4}),
    ("qwen2", "Qwen2ForCausalLM", SIZES, {"tie_word_embeddings": True}),
    ("qwen2-windows", "Qwen2ForCausalLM", SIZES, {**WINDOWS, "max_window_layers": 1}),
    (
        "qwen2-layer-types",
        "Qwen2ForCausalLM",
        SIZES,
        {**WINDOWS, "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": YARN},
    ),
    ("qwen3", "Qwen3ForCausalLM", QWEN3, {}),
    ("qwen3-base", "Qwen3Model", QWEN3, {"attention_bias": True}),
    ("qwen3-windows", "Qwen3ForCausalLM", QWEN3, {**WINDOWS, "max_window_layers": 0}),
    ("qwen3-classify-1", "Qwen3ForSequenceClassification", QWEN3, {"num_labels": 1}),
    ("smollm3", "SmolLM3ForCausalLM", SIZES, {"num_hidden_layers": 5}),
    (
        "smollm3-options",
        "SmolLM3ForCausalLM",
        SIZES,
        {
            **WINDOWS,
            "no_rope_layers": [0, 1],
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": LLAMA3,
        },
    ),
    ("gemma", "GemmaForCausalLM", GEMMA, {}),
    (
        "gemma-options",
        "GemmaForCausalLM",
        GEMMA,
        {"hidden_act": "gelu", "attention_bias": True, "tie_word_embeddings": False, "num_key_value_heads": 4},
    ),
    ("gemma-classify-3", "GemmaForSequenceClassification", GEMMA, {"num_labels": 3}),
    ("gemma2", "Gemma2ForCausalLM", GEMMA2, {"final_logit_softcapping": 2.0}),
    (
        "gemma2-no-caps",
        "Gemma2ForCausalLM",
        GEMMA2,
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "hidden_activation": "silu"},
    ),
    (
        "gemma2-options",
        "Gemma2ForCausalLM",
        GEMMA2,
        {
            "layer_types": ["full_attention", "sliding_attention"],
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": YARN,
        },
    ),
    ("gemma2-base", "Gemma2Model", GEMMA2, {}),
    ("gemma2-classify-3", "Gemma2ForSequenceClassification", GEMMA2, {"num_labels": 3}),
    ("gemma3", "Gemma3ForCausalLM", GEMMA3, {"num_hidden_layers": 4}),
    (
        "gemma3-options",
        "Gemma3ForCausalLM",
        GEMMA3,
        {
            "layer_types": ["full_attention", "sliding_attention"],
            "final_logit_softcapping": 2.0,
            "attention_bias": True,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 77.0},
            },
        },
    ),
    ("embedding-gemma", "Gemma3TextModel", GEMMA3, {"use_bidirectional_attention": True, "sliding_window": 6}),
    ("gemma3-classify-3", "Gemma3TextForSequenceClassification", GEMMA3, {"num_labels": 3}),
    ("phi3", "Phi3ForCausalLM", SIZES, {"sliding_window": 4}),
    (
        "phi3-longrope",
        "Phi3ForCausalLM",
        SIZES,
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 6, "tie_word_embeddings": True},
    ),
    ("phi3-partial", "Phi3ForCausalLM", SIZES, {"partial_rotary_factor": 0.7, "num_key_value_heads": None}),
    ("phi3-classify-3", "Phi3ForSequenceClassification", SIZES, {"num_labels": 3}),
    ("olmo2", "Olmo2ForCausalLM", SIZES, {}),
    ("olmo2-bias", "Olmo2ForCausalLM", SIZES, {"attention_bias": True, "tie_word_embeddings": True}),
    ("olmo2-base", "Olmo2Model", SIZES, {"rope_parameters": LLAMA3}),
    ("olmo2-classify-3", "Olmo2ForSequenceClassification", SIZES, {"num_labels": 3}),
    ("stablelm", "StableLmForCausalLM", STABLE, {}),
    (
        "stablelm-parallel",
        "StableLmForCausalLM",
        STABLE,
        {"use_parallel_residual": True, "use_qkv_bias": True, "tie_word_embeddings": True},
    ),
    ("stablelm-classify-3", "StableLmForSequenceClassification", STABLE, {"num_labels": 3}),
    ("gpt-neox", "GPTNeoXForCausalLM", NEOX, {"rotary_pct": 0.5}),
    (
        "gpt-neox-sequential",
        "GPTNeoXForCausalLM",
        NEOX,
        {
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_new",
            "tie_word_embeddings": True,
            "rotary_pct": 1.0,
            "rotary_emb_base": 77,
        },
    ),
    (
        "gpt-neox-scaled",
        "GPTNeoXForCausalLM",
        {**NEOX, "num_attention_heads": 2},
        {"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}},
    ),
    ("gpt-neox-base", "GPTNeoXModel", NEOX, {"rotary_pct": 0.5}),
    ("gpt-neox-classify-3", "GPTNeoXForSequenceClassification", NEOX, {"num_labels": 3, "rotary_pct": 0.5}),
    ("gptj", "GPTJForCausalLM", GPTJ, {}),
    (
        "gptj-tied",
        "GPTJForCausalLM",
        GPTJ,
        {"tie_word_embeddings": True, "rotary_dim": 8, "n_inner": 33, "activation_function": "relu"},
    ),
    ("gptj-classify-3", "GPTJForSequenceClassification", GPTJ, {"num_labels": 3}),
    ("gpt-neo", "GPTNeoForCausalLM", NEO, {}),
    (
        "gpt-neo-untied",
        "GPTNeoForCausalLM",
        NEO,
        {"tie_word_embeddings": False, "intermediate_size": 33, "attention_types": [[["local"], 3], [["global"], 1]]},
    ),
    ("gpt-neo-base", "GPTNeoModel", NEO, {"window_size": 9}),
    ("gpt-neo-classify-3", "GPTNeoForSequenceClassification", NEO, {"num_labels": 3}),
    ("opt", "OPTForCausalLM", OPT, {}),
    ("opt-350m", "OPTForCausalLM", OPT, {"do_layer_norm_before": False, "word_embed_proj_dim": 10}),
    (
        "opt-plain-norms",
        "OPTForCausalLM",
        OPT,
        {
            "layer_norm_elementwise_affine": False,
            "enable_bias": False,
            "activation_function": "gelu",
            "_remove_final_layer_norm": True,
            "tie_word_embeddings": False,
        },
    ),
    ("opt-base", "OPTModel", OPT, {}),
    ("opt-classify-3", "OPTForSequenceClassification", OPT, {"num_labels": 3, "word_embed_proj_dim": 10}),
    ("bloom", "BloomForCausalLM", BLOOM, {}),
    (
        "bloom-residuals",
        "BloomForCausalLM",
        {**BLOOM, "n_head": 4},
        {"apply_residual_connection_post_layernorm": True, "tie_word_embeddings": False},
    ),
    ("bloom-base", "BloomModel", BLOOM, {}),
    ("bloom-classify-3", "BloomForSequenceClassification", BLOOM, {"num_labels": 3}),
]
# Some numbers are float32 in every precision: gelu's constant in transformers' BLOOM, 1 + weight and factors of Gemma.
ROUNDED = ("Bloom", "Gemma")
# The families whose heads for questions transformers has, and those with only a classifier of tokens.
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": SIZES,
    "Mistral": SIZES,
    "Qwen2": SIZES,
    "Qwen3": QWEN3,
    "SmolLM3": SIZES,
    "GPTNeoX": NEOX,
    "GPTNeo": NEO,
    "Bloom": BLOOM,
}
LABELERS: dict[str, dict[str, Any]] = {"Gemma": GEMMA, "Gemma2": GEMMA2, "Phi3": SIZES, "StableLm": STABLE}
# Small configs for `fastattn.models.registry.FAMILIES`, by model type.
BASES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": SIZES,
    "qwen2": SIZES,
    "qwen3": QWEN3,
    "smollm3": {**SIZES, "bos_token_id": 1, "eos_token_id": 2},
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "phi3": {**SIZES, "bos_token_id": 1, "eos_token_id": 2},
    "olmo2": {**SIZES, "eos_token_id": 2},
    "stablelm": STABLE,
    "gpt_neox": {**NEOX, "rotary_pct": 0.5},
    "gptj": {**GPTJ, "bos_token_id": 1, "eos_token_id": 2},
    "gpt_neo": {**NEO, "bos_token_id": 1, "eos_token_id": 2},
    "opt": OPT,
    "bloom": BLOOM,
}
