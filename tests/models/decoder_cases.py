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
        "llama-linear-partial",
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
]
# The families whose classifiers of tokens and heads for questions transformers has, with their sizes.
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": SIZES,
    "Mistral": SIZES,
    "Qwen2": SIZES,
    "Qwen3": QWEN3,
    "SmolLM3": SIZES,
}
# Small configs for `fastattn.models.registry.FAMILIES`, by model type.
BASES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": SIZES,
    "qwen2": SIZES,
    "qwen3": QWEN3,
    "smollm3": {**SIZES, "bos_token_id": 1, "eos_token_id": 2},
}
