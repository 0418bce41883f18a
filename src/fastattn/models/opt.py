"""OPT (Zhang et al. 2022): learned positions; pre-norm layers, or post-norm layers in OPT-350M."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.checkpoint.source import WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, layer_norm, linear
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.causal import UNUSED_HEADS, DecoderConfig, architectures, outputs
from fastattn.models.config import MAX_LAYERS, ConfigReader, unchangeable
from fastattn.models.decoder import decoder_matrix
from fastattn.models.fused import constant
from fastattn.models.names import Layout, ModelNames
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("model.decoder.", "decoder."),
    anchor="embed_positions.weight",
    tied=("embed_tokens.weight", "lm_head.weight"),
    unused=(UNUSED_HEADS,),
)
ARCHITECTURES = architectures("OPT")
OFFSET = 2  # of the rows of the position table
EPS = 1e-5  # torch's default


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class OptConfig(DecoderConfig):
    """The options of an OPT, named as in config.json.

    word_embed_proj_dim: the width of the token embeddings. final_norm: whether there is a norm after the last layer.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    ffn_dim: int
    word_embed_proj_dim: int
    max_position_embeddings: int
    activation_function: Activation
    do_layer_norm_before: bool
    final_norm: bool
    enable_bias: bool
    layer_norm_elementwise_affine: bool


def read_config(raw: Mapping[str, object]) -> OptConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "OPT")
    width, before = c.size("hidden_size", 768), c.flag("do_layer_norm_before", True)
    narrow = c.raw("word_embed_proj_dim")
    config = OptConfig(
        hidden_size=width,
        num_hidden_layers=c.size("num_hidden_layers", 12, high=MAX_LAYERS),
        num_attention_heads=c.heads(width, "hidden_size", "num_attention_heads", 12),
        ffn_dim=c.size("ffn_dim", 3072),
        word_embed_proj_dim=width if narrow is None else c.size("word_embed_proj_dim"),
        max_position_embeddings=c.size("max_position_embeddings", 2048),
        activation_function=c.activation("activation_function", "relu"),
        do_layer_norm_before=before,
        final_norm=not c.flag("_remove_final_layer_norm", False) and before,
        enable_bias=c.flag("enable_bias", True),
        layer_norm_elementwise_affine=c.flag("layer_norm_elementwise_affine", True),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        **c.common("opt", c.size("vocab_size", 50272), bos=2, eos=2, pad=1),
    )
    c.finish("activation_dropout attention_dropout dropout init_std layerdrop")
    return config


def computed(cfg: OptConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return ones and zeros for the weights and biases of norms that have none."""
    if cfg.layer_norm_elementwise_affine:
        return {}
    places = [f"layers.{i}.{name}_layer_norm" for i in range(cfg.num_hidden_layers) for name in ("self_attn", "final")]
    places += ["final_layer_norm"] if cfg.final_norm else []
    ends = (("weight", 1.0), ("bias", 0.0))
    return {f"{place}.{end}": constant(f"{place}.{end}", cfg.hidden_size, x) for place in places for end, x in ends}


def transformer(cfg: OptConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, word_embed_proj_dim]."""
    d, bias, before, narrow = cfg.hidden_size, cfg.enable_bias, cfg.do_layer_norm_before, cfg.word_embed_proj_dim
    h = embedding(w["embed_tokens"], t.ids, cfg.vocab_size, narrow)
    if narrow != d:
        h = linear(h, w["project_in"], d, bias=False)
    h = h + embedding(w["embed_positions"], t.positions, cfg.max_position_embeddings + OFFSET, d, offset=OFFSET)
    for i in range(cfg.num_hidden_layers):
        b, h = w[f"layers.{i}"], hidden_state(h)
        x, a = layer_norm(h, b["self_attn_layer_norm"], EPS) if before else h, b["self_attn"]
        q, k, v = (linear(x, a[f"{name}_proj"], d, bias=bias) for name in "qkv")
        y = attention(q, k, v, layer=i, n_head=cfg.num_attention_heads, causal=True)
        h = h + linear(y, a["out_proj"], d, bias=bias)
        h = h if before else layer_norm(h, b["self_attn_layer_norm"], EPS)
        x = layer_norm(h, b["final_layer_norm"], EPS) if before else h
        m = activate(linear(x, b["fc1"], cfg.ffn_dim, bias=bias), cfg.activation_function)
        h = h + linear(m, b["fc2"], d, bias=bias)
        h = h if before else layer_norm(h, b["final_layer_norm"], EPS)
    h = layer_norm(h, w["final_layer_norm"], EPS) if cfg.final_norm else h
    return hidden_state(linear(h, w["project_out"], narrow, bias=False) if narrow != d else h)


def build(cfg: OptConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task; see `outputs`."""
    own, e, tied = w["lm_head"], w["embed_tokens"], cfg.tie_word_embeddings
    head = decoder_matrix(own, e, cfg.vocab_size, cfg.word_embed_proj_dim, tied=tied)
    h = transformer(cfg, w, Tokens())
    return w.tracer.program(outputs(cfg, w, h, task, head), cfg.max_positions)
