"""Mistral (Jiang et al. 2023): a Llama with grouped-query attention, and with a sliding window in its first version."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.causal import architectures
from fastattn.models.config import ConfigReader
from fastattn.models.llama import HARMLESS, LlamaConfig, read_sizes

ARCHITECTURES = architectures("Mistral")


def read_config(raw: Mapping[str, object]) -> LlamaConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "Mistral")
    sizes = read_sizes(c, intermediate_size=14336, positions=131072, kv_heads=8, null_kv_heads=False)
    layers = sizes["num_hidden_layers"]
    window = 0 if "sliding_window" in c.values and c.raw("sliding_window") is None else c.size("sliding_window", 4096)
    c.must_be("layer_types", None)  # transformers' MistralModel does not read it
    config = LlamaConfig(
        **sizes,
        windows=(window,) * layers,
        rotates=(True,) * layers,
        **c.common("mistral", c.size("vocab_size", 32000), bos=1, eos=2),
    )
    c.finish(HARMLESS)
    return config
