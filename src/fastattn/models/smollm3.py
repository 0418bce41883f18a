"""SmolLM3 (Bakouch et al. 2025): a Llama in which every fourth layer has no positions. SmolLM2 is a Llama."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.causal import FULL, LOCAL, architectures, layer_types
from fastattn.models.config import ConfigReader
from fastattn.models.llama import HARMLESS, LlamaConfig, read_sizes, windows_of

ARCHITECTURES = architectures("SmolLM3")


def read_config(raw: Mapping[str, object]) -> LlamaConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "SmolLM3")
    sizes = read_sizes(
        c,
        intermediate_size=11008,
        positions=32768,
        hidden_size=2048,
        layers=36,
        heads=16,
        kv_heads=4,
        theta=2000000.0,
        tied=True,
        null_head_dim=False,
    )
    bias, rotates = c.flag("attention_bias", False), _rotating_layers(c, sizes["num_hidden_layers"])
    window = c.count("sliding_window", None, low=1) if c.raw("sliding_window") is not None else None
    window = window if c.flag("use_sliding_window", False) else None
    default = [FULL if window is None or turns else LOCAL for turns in rotates]
    config = LlamaConfig(
        **sizes,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=c.flag("mlp_bias", False),
        rotates=rotates,
        windows=windows_of(c, layer_types(c, default), window),
        **c.common("smollm3", c.size("vocab_size", 128256), bos=128000, eos=128001, pad=128004),
    )
    c.finish(f"{HARMLESS} max_window_layers")
    return config


def _rotating_layers(c: ConfigReader, layers: int) -> tuple[bool, ...]:
    """Read which layers have rotary positions: a list of 1 and 0, or all but every n-th one."""
    every, given = c.size("no_rope_layer_interval", 4), c.raw("no_rope_layers")
    if given is None:
        return tuple((i + 1) % every != 0 for i in range(layers))
    if not isinstance(given, list) or len(given) < layers or any(type(x) is not int or x not in (0, 1) for x in given):
        raise c.error("no_rope_layers", f"a list of at least {layers} numbers that are 0 or 1")
    return tuple(turns == 1 for turns in given[:layers])
