"""Llama and the architectures of its form in GGUF files: Mistral (which is a Llama there), Qwen2, Qwen3, SmolLM3."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastattn.checkpoint.gguf.architecture import OUTPUT, Architecture, Config, read_sizes
from fastattn.checkpoint.gguf.keys import Keys
from fastattn.checkpoint.gguf.reader import GgufFile
from fastattn.checkpoint.gguf.tensors import read_values

_FACTORS = "rope_freqs.weight"
# The settings of every Llama 3.1, 3.2 and 3.3; only the factor differs.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


def _read(gguf: GgufFile, keys: Keys, model_type: str, name: str) -> Config:
    sizes = read_sizes(gguf, keys)
    heads = sizes["num_attention_heads"]
    kv_heads = keys.size("attention.head_count_kv", heads)
    for key, number in (("attention.head_count", heads), ("attention.head_count_kv", kv_heads)):
        if heads % number:
            keys.fail(key, f"a divisor of attention.head_count = {heads}")
    head_dim = keys.size("attention.key_length", sizes["hidden_size"] // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.size(key, head_dim) != head_dim:
            keys.fail(key, f"{head_dim}, the size of a head")
    keys.must_be("attention.causal", True)
    for key in ("expert_count", "expert_used_count"):
        keys.must_be(key, 0)
    keys.must_be("tensor_data_layout", "reference", "Meta AI original pth")  # of q and k; both are llama.cpp's order
    return {
        "model_type": model_type,
        "architectures": [f"{name}ForCausalLM"],
        **sizes,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": OUTPUT not in gguf.tensors,
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": _read_scaling(gguf, keys, head_dim),
    }


def _read_scaling(gguf: GgufFile, keys: Keys, head_dim: int) -> Config | None:
    """Return `rope_scaling` of config.json. Llama 3 has one factor per frequency in a tensor."""
    kind = keys.text("rope.scaling.type", "none")
    keys.ignore("rope.scaling.finetuned")
    original = keys.size("rope.scaling.original_context_length", 0) if kind != "yarn" else 0
    if original and kind != "none":
        keys.fail("rope.scaling.original_context_length", f"none with rope.scaling.type {kind!r}")
    keys.must_be("rope.scaling.attn_factor", 1.0)
    if _FACTORS in gguf.tensors:
        if kind not in ("none", "llama3"):
            keys.fail("rope.scaling.type", f"none, because the file has {_FACTORS}")
        keys.must_be("rope.scaling.factor", 1.0)
        return _llama3(gguf, keys, head_dim)
    if kind == "none":
        keys.must_be("rope.scaling.factor", 1.0, 0.0)
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": keys.number("rope.scaling.factor")}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": keys.number("rope.scaling.factor"),
            "original_max_position_embeddings": keys.size("rope.scaling.original_context_length"),
        }
    keys.fail("rope.scaling.type", "none, linear or yarn")


def _llama3(gguf: GgufFile, keys: Keys, head_dim: int) -> Config:
    """Return the settings from which llama.cpp computed the factors of the frequencies."""
    found = read_values(gguf, gguf.tensors[_FACTORS])
    theta, factor = keys.number("rope.freq_base", 10000.0), round(float(found.max()), 3)
    expected = [_factor(theta ** (2 * i / head_dim), factor) for i in range(head_dim // 2)]
    if found.shape != (len(expected),) or not np.allclose(found, expected, rtol=1e-4, atol=0):
        keys.fail("rope.scaling.type", f"factors in {_FACTORS} as in Llama 3 (original context {_ORIGINAL})")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL,
    }


def _factor(radius: float, factor: float) -> float:
    """Return the factor of a wavelength, 2 pi `radius` tokens."""
    turns = _ORIGINAL / (2 * math.pi * radius)
    if turns > _HIGH:
        return 1.0
    smooth = max(0.0, (turns - _LOW) / (_HIGH - _LOW))
    return 1 / ((1 - smooth) / factor + smooth)


def _llama(gguf: GgufFile, keys: Keys) -> Config:
    biases = {"attention_bias": "attn_q", "mlp_bias": "ffn_up"}
    found = {key: f"blk.0.{part}.bias" in gguf.tensors for key, part in biases.items()}
    return {**_read(gguf, keys, "llama", "Llama"), **found}


def _reader(model_type: str, name: str) -> Callable[[GgufFile, Keys], Config]:
    return lambda gguf, keys: _read(gguf, keys, model_type, name)


def _architecture(
    read: Callable[[GgufFile, Keys], Config], *, rotated: bool = False, norms: bool = False
) -> Architecture:
    """Return an architecture. rotated: whether llama.cpp reorders rows of q and k; norms: whether both have norms."""
    return Architecture(
        names={"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
        layer={**_LAYER, **_NORMS} if norms else _LAYER,
        prefix="model.layers.{}",
        read=read,
        rotated={"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"} if rotated else {},
        computed=(_FACTORS,),
    )


ARCHITECTURES = {
    "llama": _architecture(_llama, rotated=True),
    "qwen2": _architecture(_reader("qwen2", "Qwen2")),
    "qwen3": _architecture(_reader("qwen3", "Qwen3"), norms=True),
    "smollm3": _architecture(_reader("smollm3", "SmolLM3"), rotated=True),
}
