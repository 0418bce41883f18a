"""Translates the architecture in a GGUF file to config.json and tensor names of Hugging Face.

A new architecture is one function and one entry in ARCHITECTURES. Names: gguf-py/gguf/constants.py and
tensor_mapping.py of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.checkpoint.gguf import llama
from fastattn.checkpoint.gguf.architecture import OUTPUT, Architecture, Config, Place, read_sizes
from fastattn.checkpoint.gguf.keys import Keys
from fastattn.checkpoint.gguf.reader import GgufFile
from fastattn.checks import quote
from fastattn.errors import ConfigError

_GPT2_SIZES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "intermediate_size": "n_inner",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def _gpt2(gguf: GgufFile, keys: Keys) -> Config:
    sizes = {_GPT2_SIZES.get(name, name): value for name, value in read_sizes(gguf, keys).items()}
    keys.must_be("attention.causal", True)
    keys.must_be("attention.head_count_kv", sizes["n_head"])
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **sizes,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "tie_word_embeddings": OUTPUT not in gguf.tensors,
    }


def _bert(gguf: GgufFile, keys: Keys) -> Config:
    keys.must_be("attention.causal", False)
    keys.ignore("pooling_type")  # of llama.cpp's embeddings; the hidden states do not depend on it
    types = gguf.tensors.get("token_types.weight")
    config: Config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        **read_sizes(gguf, keys),
        "hidden_act": "gelu",
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "type_vocab_size": types.shape[0] if types is not None and len(types.shape) == 2 else 1,
    }
    head, labels = gguf.tensors.get("cls.output.weight"), keys.texts("classifier.output_labels")
    if head is not None:
        config["architectures"] = ["BertForSequenceClassification"]
        config["num_labels"] = head.shape[0]
        if labels is not None:
            config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    return config


ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": Architecture(
        names={"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f", "output": "lm_head"},
        layer={
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        prefix="h.{}",
        layers="n_layer",
        read=_gpt2,
        transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    ),
    "bert": Architecture(
        names={
            "token_embd": "embeddings.word_embeddings",
            "token_types": "embeddings.token_type_embeddings",
            "position_embd": "embeddings.position_embeddings",
            "token_embd_norm": "embeddings.LayerNorm",
            "cls": "pooler.dense",
            "cls.output": "classifier",
        },
        layer={
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
            "layer_output_norm": "output.LayerNorm",
        },
        prefix="encoder.layer.{}",
        read=_bert,
    ),
    **llama.ARCHITECTURES,
}


def find_architecture(gguf: GgufFile) -> Architecture:
    """Return the architecture of a file. Raises ConfigError, also for a file that is not a whole model."""
    keys = Keys(gguf, "")
    keys.must_be("general.type", "model")
    keys.must_be("split.count", 0, 1)
    keys.must_be("general.quantization_version", 2)
    name = keys.text("general.architecture")
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"{gguf.path}: general.architecture: expected one of {', '.join(ARCHITECTURES)}, got {quote(name, 60)}"
        )
    return ARCHITECTURES[name]


def read_architecture(gguf: GgufFile) -> tuple[Config, dict[str, Place]]:
    """Return config.json, and the place of every tensor by its name in the file. Raises ConfigError."""
    architecture = find_architecture(gguf)
    keys = Keys(gguf, f"{gguf.metadata['general.architecture']}.")
    config = {**architecture.read(gguf, keys), **_token_ids(gguf)}
    keys.finish()
    places, unknown = {}, []
    for name in gguf.tensors:
        place = architecture.place(name, config)
        if place is not None:
            places[name] = place
        elif name not in architecture.computed:
            unknown.append(name)
    if unknown:
        raise ConfigError(
            f"{gguf.path}: expected only tensors of the architecture {quote(config['model_type'])}, got "
            f"{quote(unknown[0], 80)} ({len(unknown)} unknown)"
        )
    return config, places


def _token_ids(gguf: GgufFile) -> Config:
    """Return the special ids that config.json has. The end-of-turn and end-of-message tokens also count as eos."""
    keys = Keys(gguf, "tokenizer.ggml.")
    ids = {
        name: keys.size(f"{name}_token_id", low=0)
        for name in ("bos", "eos", "padding", "eot", "eom")
        if keys.raw(f"{name}_token_id") is not None
    }
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if name in ids))
    return {
        "bos_token_id": ids.get("bos"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ids.get("padding"),
    }
