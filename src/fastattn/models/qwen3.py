"""Qwen3 (Yang et al. 2025): queries and keys are normalized by head; also Qwen3-Embedding and Qwen3-Reranker."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.causal import architectures
from fastattn.models.config import ConfigReader
from fastattn.models.llama import HARMLESS, LlamaConfig, read_sizes
from fastattn.models.qwen2 import read_windows

ARCHITECTURES = architectures("Qwen3")


def read_config(raw: Mapping[str, object]) -> LlamaConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "Qwen3")
    sizes = read_sizes(
        c,
        intermediate_size=22016,
        positions=32768,
        kv_heads=32,
        head_dim=128,
        null_head_dim=False,
    )
    layers, bias = sizes["num_hidden_layers"], c.flag("attention_bias", False)
    config = LlamaConfig(
        **sizes,
        attention_bias=bias,
        output_bias=bias,
        qk_norm="head",
        windows=read_windows(c, layers),
        rotates=(True,) * layers,
        **c.common("qwen3", c.size("vocab_size", 151936)),
    )
    c.finish(HARMLESS)
    return config
