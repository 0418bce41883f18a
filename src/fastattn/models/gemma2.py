"""Gemma 2 (Gemma Team 2024): a Gemma with norms around each sublayer, soft caps, and a window in every second layer."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.models.causal import FULL, LOCAL, architectures, check_rotary, layer_types
from fastattn.models.config import ConfigReader
from fastattn.models.gemma import HARMLESS, GemmaConfig, read_sizes, read_softcap
from fastattn.models.llama import windows_of
from fastattn.models.rope import read_rope

ARCHITECTURES = architectures("Gemma2")


def read_config(raw: Mapping[str, object]) -> GemmaConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "Gemma 2")
    sizes = read_sizes(c, hidden_size=2304, intermediate_size=9216, layers=26, heads=8, kv_heads=4)
    layers, positions = sizes["num_hidden_layers"], c.size("max_position_embeddings", 8192)
    types = layer_types(c, [FULL if i % 2 else LOCAL for i in range(layers)])
    c.must_be("use_bidirectional_attention", None, False)
    c.must_be("hidden_act", None, "gelu_pytorch_tanh")  # transformers reads hidden_activation
    rope = read_rope(c, head_dim=sizes["head_dim"], max_positions=positions)
    check_rotary(c, sizes["head_dim"], rope)
    config = GemmaConfig(
        **sizes,
        hidden_act=c.activation("hidden_activation", "gelu_pytorch_tanh"),
        max_position_embeddings=positions,
        attention_scale=c.size("query_pre_attn_scalar", 256) ** -0.5,
        windows=windows_of(c, types, read_window(c)),
        ropes={"rotary": rope},
        rope_of=("rotary",) * layers,
        outer_norms=True,
        attn_logit_softcapping=read_softcap(c, "attn_logit_softcapping", 50.0),
        final_logit_softcapping=read_softcap(c, "final_logit_softcapping", 30.0),
        **c.common("gemma2", c.size("vocab_size", 256000), bos=2, eos=1, pad=0),
    )
    c.finish(f"{HARMLESS} sliding_window_size")
    return config


def read_window(c: ConfigReader) -> int | None:
    """Read sliding_window; None if it is null."""
    if "sliding_window" in c.values and c.raw("sliding_window") is None:
        return None
    return c.size("sliding_window", 4096)
