"""The text models of Gemma 3 (Gemma Team 2025): normalized queries and keys, five local layers for each global one.

EmbeddingGemma is one whose tokens also attend to the tokens after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastattn.models.causal import FULL, LOCAL, check_rotary, layer_types
from fastattn.models.config import ConfigReader
from fastattn.models.gemma import HARMLESS, GemmaConfig, read_sizes, read_softcap
from fastattn.models.gemma2 import read_window
from fastattn.models.llama import windows_of
from fastattn.models.rope import Rope, read_rope
from fastattn.settings import Settings

ARCHITECTURES = ("Gemma3TextModel", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification")
TABLES = {FULL: "rotary.global", LOCAL: "rotary.local"}


def read_config(raw: Mapping[str, object]) -> GemmaConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "Gemma 3")
    sizes = read_sizes(c, hidden_size=2304, intermediate_size=9216, layers=26, heads=8, kv_heads=4)
    layers, positions = sizes["num_hidden_layers"], c.size("max_position_embeddings", 131072)
    every, both = c.size("sliding_window_pattern", 6), _both_ways(c)
    types = layer_types(c, [LOCAL if (i + 1) % every else FULL for i in range(layers)])
    window = read_window(c)
    if both and window is None:
        raise c.error("sliding_window", "a window, with use_bidirectional_attention")
    c.must_be("attn_logit_softcapping", None)  # transformers ignores it
    c.must_be("hidden_act", None, "gelu_pytorch_tanh")  # transformers reads hidden_activation
    ropes = _ropes(c, sizes["head_dim"], positions)
    config = GemmaConfig(
        **sizes,
        hidden_act=c.activation("hidden_activation", "gelu_pytorch_tanh"),
        max_position_embeddings=positions,
        attention_scale=c.size("query_pre_attn_scalar", 256) ** -0.5,
        windows=windows_of(c, types, window // 2 + 1 if both and window is not None else window),
        ropes=ropes,
        rope_of=tuple(TABLES[kind] for kind in types),
        outer_norms=True,
        qk_norm=True,
        causal=not both,
        final_logit_softcapping=read_softcap(c, "final_logit_softcapping", None),
        **c.common("gemma3_text", c.size("vocab_size", 262208), bos=2, eos=1, pad=0),
    )
    c.finish(f"{HARMLESS} _sliding_window_pattern")
    return config


def _both_ways(c: ConfigReader) -> bool:
    """Read use_bidirectional_attention; null means false."""
    key = "use_bidirectional_attention"
    return c.raw(key) is not None and c.flag(key, False)


def _ropes(c: ConfigReader, head_dim: int, positions: int) -> dict[str, Rope]:
    """Read the frequencies of both types of layers. rope_scaling applies to the global layers only."""
    given = c.table("rope_parameters")
    if not set(given) <= set(TABLES) or not all(isinstance(item, dict | None) for item in given.values()):
        raise c.error("rope_parameters", f"an object with {FULL} and {LOCAL}")
    c.must_be("partial_rotary_factor", None)
    thetas = {FULL: c.number("rope_theta", 1000000.0), LOCAL: c.number("rope_local_base_freq", 10000.0)}
    ropes = {}
    for kind, name in TABLES.items():
        values: dict[str, Any] = {**(given.get(kind) or {}), **(c.table("rope_scaling") if kind == FULL else {})}
        own = Settings(c.where, {"rope_parameters": values})
        ropes[name] = read_rope(own, head_dim=head_dim, max_positions=positions, theta=thetas[kind])
    check_rotary(c, head_dim, *ropes.values())
    return ropes
