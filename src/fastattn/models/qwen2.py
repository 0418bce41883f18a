"""Qwen2 and Qwen2.5 (Yang et al. 2024): a Llama with biases for queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.causal import FULL, LOCAL, architectures, layer_types
from fastattn.models.config import ConfigReader
from fastattn.models.llama import HARMLESS, LlamaConfig, read_sizes, windows_of

ARCHITECTURES = architectures("Qwen2")


def read_config(raw: Mapping[str, object]) -> LlamaConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "Qwen2")
    sizes = read_sizes(c, intermediate_size=22016, positions=32768, kv_heads=32, null_head_dim=False)
    layers = sizes["num_hidden_layers"]
    config = LlamaConfig(
        **sizes,
        attention_bias=True,
        windows=read_windows(c, layers),
        rotates=(True,) * layers,
        **c.common("qwen2", c.size("vocab_size", 151936)),
    )
    c.finish(HARMLESS)
    return config


def read_windows(c: ConfigReader, layers: int) -> tuple[int, ...]:
    """Read the window of each layer: with use_sliding_window, all layers from max_window_layers on have one."""
    c.must_be("use_mrope", False, None)
    null = "sliding_window" in c.values and c.raw("sliding_window") is None
    window = None if null else c.size("sliding_window", 4096)
    window = window if c.flag("use_sliding_window", False) else None
    first = c.count("max_window_layers", 28)
    default = [FULL if window is None or i < first else LOCAL for i in range(layers)]
    return windows_of(c, layer_types(c, default), window)
