"""StableLM (Bellagente et al. 2024): a Llama with layer norms and rotary positions in a part of each head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.checkpoint.source import WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, attention, embedding, layer_norm, linear
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.causal import (
    DecoderConfig,
    architectures,
    gated_mlp,
    head_matrix,
    key_heads,
    outputs,
    rotary_tables,
    rotate,
)
from fastattn.models.config import MAX_LAYERS, ConfigReader, unchangeable
from fastattn.models.llama import LAYOUT as LAYOUT
from fastattn.models.names import ModelNames
from fastattn.models.rope import Rope, read_rope
from fastattn.models.tasks import Task

ARCHITECTURES = (*architectures("StableLm"), "StableLMEpochForCausalLM")


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class StableLmConfig(DecoderConfig):
    """The options of a StableLM, named as in config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    hidden_act: Activation
    max_position_embeddings: int
    layer_norm_eps: float
    rope: Rope
    use_qkv_bias: bool
    use_parallel_residual: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def read_config(raw: Mapping[str, object]) -> StableLmConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "StableLM")
    width, positions = c.size("hidden_size", 2560), c.size("max_position_embeddings", 4096)
    n_head = c.heads(width, "hidden_size", "num_attention_heads", 32)
    c.must_be("qk_layernorm", False)  # every head has a layer norm of its own
    c.must_be("head_dim", width // n_head, None)
    share = c.number("partial_rotary_factor", 0.25)
    rope = read_rope(c, head_dim=width // n_head, max_positions=positions, partial=share)
    config = StableLmConfig(
        hidden_size=width,
        intermediate_size=c.size("intermediate_size", 6912),
        num_hidden_layers=c.size("num_hidden_layers", 32, high=MAX_LAYERS),
        num_attention_heads=n_head,
        num_key_value_heads=key_heads(c, n_head, 32, may_be_null=False),
        hidden_act=c.activation("hidden_act", "silu"),
        max_position_embeddings=positions,
        layer_norm_eps=c.epsilon("layer_norm_eps", 1e-5),
        rope=rope,
        use_qkv_bias=c.flag("use_qkv_bias", False),
        use_parallel_residual=c.flag("use_parallel_residual", False),
        tie_word_embeddings=c.flag("tie_word_embeddings", False),
        **c.common("stablelm", c.size("vocab_size", 50304), bos=0, eos=0),
    )
    c.finish("attention_dropout hidden_dropout rotary_scaling_factor")
    return config


def computed(cfg: StableLmConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the rotary table."""
    return rotary_tables({"rotary": cfg.rope}, cfg.max_positions)


def transformer(cfg: StableLmConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, hidden_size]."""
    eps, beside = cfg.layer_norm_eps, cfg.use_parallel_residual
    h = embedding(w["embed_tokens"], t.ids, cfg.vocab_size, cfg.hidden_size)
    for i in range(cfg.num_hidden_layers):
        b, h = w[f"layers.{i}"], hidden_state(h)
        x = layer_norm(h, b["input_layernorm"], eps)
        h = h + attend(cfg, w, x, i)
        x = x if beside else layer_norm(h, b["post_attention_layernorm"], eps)
        h = h + gated_mlp(x, b["mlp"], cfg.intermediate_size, cfg.hidden_act)
    return hidden_state(layer_norm(h, w["norm"], eps))


def attend(cfg: StableLmConfig, w: Weights, x: Tensor, i: int) -> Tensor:
    """Compute the attention of layer i, [n_tokens, hidden_size]."""
    a, bias, heads, kv_heads = (
        w[f"layers.{i}.self_attn"],
        cfg.use_qkv_bias,
        cfg.num_attention_heads,
        cfg.num_key_value_heads,
    )
    q = linear(x, a["q_proj"], heads * cfg.head_dim, bias=bias)
    k, v = (linear(x, a[f"{name}_proj"], kv_heads * cfg.head_dim, bias=bias) for name in "kv")
    q, k = (rotate(y, w["rotary"], cfg.rope, n, cfg.max_positions) for y, n in ((q, heads), (k, kv_heads)))
    y = attention(q, k, v, layer=i, n_head=heads, n_kv_head=kv_heads, causal=True)
    return linear(y, a["o_proj"], cfg.hidden_size, bias=False)


def build(cfg: StableLmConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task; see `outputs`."""
    head = head_matrix(cfg, w, w["embed_tokens"])
    h = transformer(cfg, w, Tokens())
    return w.tracer.program(outputs(cfg, w, h, task, head), cfg.max_positions)
