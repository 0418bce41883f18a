"""Phi-3 and Phi-4 (Abdin et al. 2024): a Llama with fused linears, and longrope for long texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.checkpoint.source import WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.kinds import activate, attention, embedding, linear, rms_norm, split
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.causal import architectures, head_matrix, key_heads, outputs, rotary_tables, rotate, size_of_heads
from fastattn.models.config import MAX_LAYERS, ConfigReader, unchangeable
from fastattn.models.llama import LAYOUT as LAYOUT
from fastattn.models.llama import LlamaSizes
from fastattn.models.names import ModelNames
from fastattn.models.rope import Rope, read_rope
from fastattn.models.tasks import Task
from fastattn.settings import Settings

ARCHITECTURES = architectures("Phi3")


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class Phi3Config(LlamaSizes):
    """The options of a Phi-3, named as in config.json. sliding_window: 0 for none."""

    rope: Rope
    sliding_window: int


def read_config(raw: Mapping[str, object]) -> Phi3Config:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "Phi-3")
    width, n_head = c.size("hidden_size", 3072), c.size("num_attention_heads", 32)
    head_dim, positions = size_of_heads(c, width, n_head, may_be_null=False), c.size("max_position_embeddings", 4096)
    for key in ("attention_bias", "mlp_bias", "lm_head_bias"):  # of the code that comes with checkpoints
        c.must_be(key, False, None)
    config = Phi3Config(
        hidden_size=width,
        intermediate_size=c.size("intermediate_size", 8192),
        num_hidden_layers=c.size("num_hidden_layers", 32, high=MAX_LAYERS),
        num_attention_heads=n_head,
        num_key_value_heads=key_heads(c, n_head, None),
        head_dim=head_dim,
        hidden_act=c.activation("hidden_act", "silu"),
        max_position_embeddings=positions,
        rms_norm_eps=c.epsilon("rms_norm_eps", 1e-5),
        rope=_rope(c, head_dim, positions),
        sliding_window=0 if c.raw("sliding_window") is None else c.size("sliding_window"),
        tie_word_embeddings=c.flag("tie_word_embeddings", False),
        **c.common("phi3", c.size("vocab_size", 32064), bos=1, eos=32000, pad=32000),
    )
    c.finish("attention_dropout embd_pdrop full_attn_mod interpolate_factor resid_pdrop")
    return config


def _rope(c: ConfigReader, head_dim: int, positions: int) -> Rope:
    """Read the frequencies: default or longrope, which older files call su or yarn."""
    original = c.size("original_max_position_embeddings", 4096)
    scaling, parameters = c.table("rope_scaling"), c.table("rope_parameters")
    key, values = ("rope_scaling", dict(scaling)) if scaling else ("rope_parameters", dict(parameters))
    for kind in ("rope_type", "type"):
        if values.get(kind) in ("su", "yarn"):
            values[kind] = "longrope"
        if values.get(kind) not in (None, "default", "longrope"):
            raise c.error(key, f'{kind} "default" or "longrope"')
    beside = {
        "rope_theta": c.number("rope_theta", 10000.0),
        "partial_rotary_factor": c.number("partial_rotary_factor", 1.0),
    }
    own = Settings(c.where, {**beside, key: values, "original_max_position_embeddings": original})
    rope = read_rope(own, head_dim=head_dim, max_positions=positions)
    if 2 * len(rope.frequencies) > head_dim:
        raise c.error("hidden_size", "heads of an even width")
    return rope


def computed(cfg: Phi3Config, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the rotary table."""
    return rotary_tables({"rotary": cfg.rope}, cfg.max_positions)


def transformer(cfg: Phi3Config, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, hidden_size]."""
    d, inner, eps = cfg.hidden_size, cfg.intermediate_size, cfg.rms_norm_eps
    h = embedding(w["embed_tokens"], t.ids, cfg.vocab_size, d)
    for i in range(cfg.num_hidden_layers):
        b, h = w[f"layers.{i}"], hidden_state(h)
        h = h + attend(cfg, w, rms_norm(h, b["input_layernorm"], eps), i)
        x = rms_norm(h, b["post_attention_layernorm"], eps)
        gate, up = split(linear(x, b["mlp.gate_up_proj"], 2 * inner, bias=False), 2)
        h = h + linear(up * activate(gate, cfg.hidden_act), b["mlp.down_proj"], d, bias=False)
    return hidden_state(rms_norm(h, w["norm"], eps))


def attend(cfg: Phi3Config, w: Weights, x: Tensor, i: int) -> Tensor:
    """Compute the attention of layer i, [n_tokens, hidden_size]."""
    a, heads, kv_heads = w[f"layers.{i}.self_attn"], cfg.num_attention_heads, cfg.num_key_value_heads
    widths = [n * cfg.head_dim for n in (heads, kv_heads, kv_heads)]
    q, k, v = split(linear(x, a["qkv_proj"], sum(widths), bias=False), widths)
    q, k = (rotate(y, w["rotary"], cfg.rope, n, cfg.max_positions) for y, n in ((q, heads), (k, kv_heads)))
    y = attention(q, k, v, layer=i, n_head=heads, n_kv_head=kv_heads, causal=True, window=cfg.sliding_window)
    return linear(y, a["o_proj"], cfg.hidden_size, bias=False)


def build(cfg: Phi3Config, w: Weights, task: Task) -> Program:
    """Build the Program of a task; see `outputs`."""
    head = head_matrix(cfg, w, w["embed_tokens"])
    h = transformer(cfg, w, Tokens())
    return w.tracer.program(outputs(cfg, w, h, task, head), cfg.max_positions)
