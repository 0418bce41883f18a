"""Llama 1 to 3 (Touvron et al. 2023) and the families of its form: Mistral, Qwen2, Qwen3, SmolLM3.

Each of these reads its own config.json into a `LlamaConfig`, in a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastattn.checkpoint.source import WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, attention, embedding, linear, rms_norm
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.causal import (
    FULL,
    LOCAL,
    UNUSED_HEADS,
    DecoderConfig,
    architectures,
    check_rotary,
    gated_mlp,
    head_matrix,
    key_heads,
    outputs,
    rotary_tables,
    rotate,
    size_of_heads,
)
from fastattn.models.config import MAX_LAYERS, ConfigReader, unchangeable
from fastattn.models.names import Layout, ModelNames
from fastattn.models.rope import Rope, read_rope
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("model.", "transformer."),  # "transformer." only in LlamaForQuestionAnswering and its like
    anchor="embed_tokens.weight",
    tied=("embed_tokens.weight", "lm_head.weight"),
    unused=(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", UNUSED_HEADS),
)
ARCHITECTURES = (*architectures("Llama"), "LLaMAForCausalLM")
HARMLESS = "attention_dropout is_llama_config pretraining_tp"


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSizes(DecoderConfig):
    """The options that Llama, Gemma and Phi-3 share, named as in config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: Activation
    max_position_embeddings: int
    rms_norm_eps: float


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig(LlamaSizes):
    """The options of a Llama, named as in config.json.

    attention_bias: of q, k and v. output_bias: of the linear after attention. qk_norm: whether queries and keys are
    normalized, by head or by row. windows: the sliding window of each layer, 0 for none. rotates: whether each layer
    has rotary positions.
    """

    rope: Rope
    windows: tuple[int, ...]
    rotates: tuple[bool, ...]
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["", "head", "row"] = ""


def read_config(raw: Mapping[str, object]) -> LlamaConfig:
    """Read config.json of a Llama. Raises ConfigError."""
    c = ConfigReader(raw, "Llama")
    bias = c.flag("attention_bias", False)
    sizes = read_sizes(c, intermediate_size=11008, positions=2048)
    config = LlamaConfig(
        **sizes,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=c.flag("mlp_bias", False),
        windows=(0,) * sizes["num_hidden_layers"],
        rotates=(True,) * sizes["num_hidden_layers"],
        **c.common("llama", c.size("vocab_size", 32000), bos=1, eos=2),
    )
    c.finish(HARMLESS)
    return config


def read_sizes(
    c: ConfigReader,
    *,
    intermediate_size: int,
    positions: int,
    hidden_size: int = 4096,
    layers: int = 32,
    heads: int = 32,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    theta: float = 10000.0,
    tied: bool = False,
    eps: float = 1e-6,
    null_head_dim: bool = True,
    null_kv_heads: bool = True,
) -> dict[str, Any]:
    """Read the options that all these families share. The arguments are the defaults of transformers' config class.

    kv_heads, head_dim: None means `heads`, and hidden_size / heads. null_head_dim, null_kv_heads: whether head_dim
    and num_key_value_heads may be null.
    """
    width, n_head = c.size("hidden_size", hidden_size), c.size("num_attention_heads", heads)
    if head_dim is not None and "head_dim" not in c.values:
        dim = head_dim
    else:
        dim = size_of_heads(c, width, n_head, may_be_null=null_head_dim)
    max_positions = c.size("max_position_embeddings", positions)
    c.must_be("rope_interleaved", False, None)
    rope = read_rope(c, head_dim=dim, max_positions=max_positions, theta=theta)
    check_rotary(c, dim, rope)
    return {
        "hidden_size": width,
        "intermediate_size": c.size("intermediate_size", intermediate_size),
        "num_hidden_layers": c.size("num_hidden_layers", layers, high=MAX_LAYERS),
        "num_attention_heads": n_head,
        "num_key_value_heads": key_heads(c, n_head, kv_heads, may_be_null=null_kv_heads),
        "head_dim": dim,
        "hidden_act": c.activation("hidden_act", "silu"),
        "max_position_embeddings": max_positions,
        "rms_norm_eps": c.epsilon("rms_norm_eps", eps),
        "rope": rope,
        "tie_word_embeddings": c.flag("tie_word_embeddings", tied),
    }


def windows_of(c: ConfigReader, types: tuple[str, ...], window: int | None) -> tuple[int, ...]:
    """Return the window of each layer. Raises ConfigError if there is a layer with a window but no window."""
    if window is None and LOCAL in types:
        raise c.error("sliding_window", f"the window of the layers of type {LOCAL}; set use_sliding_window to use it")
    return tuple(0 if kind == FULL or window is None else window for kind in types)


def computed(cfg: LlamaConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the rotary table."""
    return rotary_tables({"rotary": cfg.rope}, cfg.max_positions) if any(cfg.rotates) else {}


def transformer(cfg: LlamaConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, hidden_size]."""
    eps = cfg.rms_norm_eps
    h = embedding(w["embed_tokens"], t.ids, cfg.vocab_size, cfg.hidden_size)
    for i in range(cfg.num_hidden_layers):
        b, h = w[f"layers.{i}"], hidden_state(h)
        h = h + attend(cfg, w, rms_norm(h, b["input_layernorm"], eps), i)
        x = rms_norm(h, b["post_attention_layernorm"], eps)
        h = h + gated_mlp(x, b["mlp"], cfg.intermediate_size, cfg.hidden_act, bias=cfg.mlp_bias)
    return hidden_state(rms_norm(h, w["norm"], eps))


def attend(cfg: LlamaConfig, w: Weights, x: Tensor, i: int) -> Tensor:
    """Compute the attention of layer i, [n_tokens, hidden_size]."""
    a, eps = w[f"layers.{i}.self_attn"], cfg.rms_norm_eps
    heads, kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
    q = linear(x, a["q_proj"], heads * cfg.head_dim, bias=cfg.attention_bias)
    k, v = (linear(x, a[f"{name}_proj"], kv_heads * cfg.head_dim, bias=cfg.attention_bias) for name in "kv")
    if cfg.qk_norm:
        parts = (heads, kv_heads) if cfg.qk_norm == "head" else (1, 1)
        q, k = (rms_norm(y, a[f"{n}_norm"], eps, groups=g) for y, n, g in zip((q, k), "qk", parts, strict=True))
    if cfg.rotates[i]:
        q, k = (rotate(y, w["rotary"], cfg.rope, n, cfg.max_positions) for y, n in ((q, heads), (k, kv_heads)))
    y = attention(q, k, v, layer=i, n_head=heads, n_kv_head=kv_heads, causal=True, window=cfg.windows[i])
    return linear(y, a["o_proj"], cfg.hidden_size, bias=cfg.output_bias)


def build(cfg: LlamaConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task; see `outputs`."""
    head = head_matrix(cfg, w, w["embed_tokens"])
    h = transformer(cfg, w, Tokens())
    return w.tracer.program(outputs(cfg, w, h, task, head), cfg.max_positions)
