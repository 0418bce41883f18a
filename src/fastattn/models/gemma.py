"""Gemma (Gemma Team 2024): a Llama with scaled embeddings and norms that multiply by 1 + weight. Gemma 2 and 3 have
files of their own for their config.json; what they add is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastattn.checkpoint.source import WeightSource
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program
from fastattn.graph.kinds import (
    activate,
    attention,
    embedding,
    gather_rows,
    linear,
    rms_norm,
    scale,
)
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.causal import (
    architectures,
    check_rotary,
    gated_mlp,
    head_matrix,
    key_heads,
    outputs,
    rotary_tables,
    rotate,
)
from fastattn.models.config import MAX_LAYERS, ConfigReader, unchangeable
from fastattn.models.fused import constant, plus_one
from fastattn.models.llama import LAYOUT as LAYOUT
from fastattn.models.llama import LlamaSizes
from fastattn.models.names import ModelNames
from fastattn.models.rope import Rope, read_rope
from fastattn.models.tasks import Task

ARCHITECTURES = architectures("Gemma")
NORMALIZER = "embed_tokens.normalizer"
CAP, UNCAP = "logits.softcap", "logits.inverse_softcap"
HARMLESS = "attention_dropout cache_implementation"


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class GemmaConfig(LlamaSizes):
    """The options of a Gemma 1 to 3, named as in config.json.

    attention_scale: the factor of the scores. windows: the sliding window of each layer, 0 for none. ropes: the
    frequencies by name; rope_of: the name of those of each layer. outer_norms: whether there are norms after attention
    and MLP too (Gemma 2 and 3). qk_norm: whether queries and keys are normalized by head (Gemma 3). causal: False if
    tokens attend to those after them too (EmbeddingGemma). The softcaps are 0 if there is none.
    """

    attention_bias: bool
    attention_scale: float
    windows: tuple[int, ...]
    ropes: Mapping[str, Rope]
    rope_of: tuple[str, ...]
    outer_norms: bool = False
    qk_norm: bool = False
    causal: bool = True
    attn_logit_softcapping: float = 0.0
    final_logit_softcapping: float = 0.0


def read_config(raw: Mapping[str, object]) -> GemmaConfig:
    """Read config.json of a Gemma 1. Raises ConfigError."""
    c = ConfigReader(raw, "Gemma")
    sizes = read_sizes(c, hidden_size=3072, intermediate_size=24576, layers=28, heads=16, kv_heads=16)
    layers, act = sizes["num_hidden_layers"], c.activation("hidden_act", "gelu_pytorch_tanh")
    if c.values.get("hidden_act") == "gelu":  # of the first checkpoints, which were trained with the other one
        act = "gelu_tanh"
    c.must_be("hidden_activation", None, "gelu_pytorch_tanh")
    c.must_be("use_bidirectional_attention", None, False)
    rope = read_rope(c, head_dim=sizes["head_dim"], max_positions=c.size("max_position_embeddings", 8192))
    check_rotary(c, sizes["head_dim"], rope)
    config = GemmaConfig(
        **sizes,
        hidden_act=act,
        max_position_embeddings=c.size("max_position_embeddings", 8192),
        attention_scale=sizes["head_dim"] ** -0.5,
        windows=(0,) * layers,
        ropes={"rotary": rope},
        rope_of=("rotary",) * layers,
        **c.common("gemma", c.size("vocab_size", 256000), bos=2, eos=1, pad=0),
    )
    c.finish(HARMLESS)
    return config


def read_sizes(
    c: ConfigReader, *, hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int
) -> dict[str, Any]:
    """Read the options that all Gemmas share. The arguments are the defaults of transformers' config class."""
    width, n_head = c.size("hidden_size", hidden_size), c.size("num_attention_heads", heads)
    return {
        "hidden_size": width,
        "intermediate_size": c.size("intermediate_size", intermediate_size),
        "num_hidden_layers": c.size("num_hidden_layers", layers, high=MAX_LAYERS),
        "num_attention_heads": n_head,
        "num_key_value_heads": key_heads(c, n_head, kv_heads, may_be_null=False),
        "head_dim": c.size("head_dim", 256),
        "rms_norm_eps": c.epsilon("rms_norm_eps", 1e-6),
        "attention_bias": c.flag("attention_bias", False),
        "tie_word_embeddings": c.flag("tie_word_embeddings", True),
    }


def read_softcap(c: ConfigReader, key: str, default: float | None) -> float:
    """Read a number above 0; 0 for null, which means that there is no cap."""
    value = c.number(key, default) if c.values.get(key, default) is not None else c.raw(key)
    if value is not None and not 0 < value < 2.0**60:
        raise c.error(key, "a number above 0, or null")
    return 0.0 if value is None else value


def norms(cfg: GemmaConfig) -> dict[str, int]:
    """Return the widths of all norms by their names."""
    layer = ["input_layernorm", "post_attention_layernorm"]
    layer += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if cfg.outer_norms else []
    found = {f"layers.{i}.{name}": cfg.hidden_size for i in range(cfg.num_hidden_layers) for name in layer}
    if cfg.qk_norm:
        found |= {f"layers.{i}.self_attn.{q}_norm": cfg.head_dim for i in range(cfg.num_hidden_layers) for q in "qk"}
    return {**found, "norm": cfg.hidden_size}


def hidden_tensors(cfg: GemmaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that only `computed` reads, by name."""
    return {f"{name}.weight": (width,) for name, width in norms(cfg).items()}


def computed(cfg: GemmaConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the rotary tables, the weights of the norms plus one, and the factors of embeddings and logits."""
    found: dict[str, WeightSource] = {}
    for name, width in norms(cfg).items():
        source = plus_one(names, name, width)
        found[source.name] = source
    found |= rotary_tables({name: cfg.ropes[name] for name in sorted(set(cfg.rope_of))}, cfg.max_positions)
    factors = {NORMALIZER: (cfg.hidden_size, cfg.hidden_size**0.5)}
    if cap := cfg.final_logit_softcapping:
        factors |= {UNCAP: (cfg.hidden_size, 1 / cap), CAP: (cfg.vocab_size, cap)}
    found |= {f"{name}.weight": constant(f"{name}.weight", *factor) for name, factor in factors.items()}
    return found


def norm(cfg: GemmaConfig, x: Tensor, w: Weights, *, groups: int = 1) -> Tensor:
    return rms_norm(x, w["plus_one"], cfg.rms_norm_eps, groups=groups)


def transformer(cfg: GemmaConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, hidden_size]."""
    h = scale(embedding(w["embed_tokens"], t.ids, cfg.vocab_size, cfg.hidden_size), w[NORMALIZER])
    before = "pre_feedforward_layernorm" if cfg.outer_norms else "post_attention_layernorm"
    for i in range(cfg.num_hidden_layers):
        b, h = w[f"layers.{i}"], hidden_state(h)
        a = attend(cfg, w, norm(cfg, h, b["input_layernorm"]), i)
        h = h + (norm(cfg, a, b["post_attention_layernorm"]) if cfg.outer_norms else a)
        x = norm(cfg, h, b[before])
        m = gated_mlp(x, b["mlp"], cfg.intermediate_size, cfg.hidden_act)
        h = h + (norm(cfg, m, b["post_feedforward_layernorm"]) if cfg.outer_norms else m)
    return hidden_state(norm(cfg, h, w["norm"]))


def attend(cfg: GemmaConfig, w: Weights, x: Tensor, i: int) -> Tensor:
    """Compute the attention of layer i, [n_tokens, hidden_size]."""
    a, bias, rope = w[f"layers.{i}.self_attn"], cfg.attention_bias, cfg.ropes[cfg.rope_of[i]]
    heads, kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
    q = linear(x, a["q_proj"], heads * cfg.head_dim, bias=bias)
    k, v = (linear(x, a[f"{name}_proj"], kv_heads * cfg.head_dim, bias=bias) for name in "kv")
    if cfg.qk_norm:
        q, k = norm(cfg, q, a["q_norm"], groups=heads), norm(cfg, k, a["k_norm"], groups=kv_heads)
    q, k = (rotate(y, w[cfg.rope_of[i]], rope, n, cfg.max_positions) for y, n in ((q, heads), (k, kv_heads)))
    y = attention(
        q,
        k,
        v,
        layer=i,
        n_head=heads,
        n_kv_head=kv_heads,
        causal=cfg.causal,
        scale=cfg.attention_scale,
        window=cfg.windows[i],
        softcap=cfg.attn_logit_softcapping,
    )
    return linear(y, a["o_proj"], cfg.hidden_size, bias=bias)


def build(cfg: GemmaConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task; see `outputs`. Capped logits are softcap * tanh(logits / softcap)."""
    head = head_matrix(cfg, w, w["embed_tokens"])
    h = transformer(cfg, w, Tokens())
    if task == "causal-lm" and not cfg.causal:
        raise ConfigError(
            "config.json of Gemma: use_bidirectional_attention = True is unsupported for language models; use AutoModel"
        )
    if task == "causal-lm" and cfg.final_logit_softcapping:
        x = scale(gather_rows(h, "wanted"), w[UNCAP])
        logits = activate(linear(x, head, cfg.vocab_size, bias=False), "tanh")
        return w.tracer.program({"logits": scale(logits, w[CAP])}, cfg.max_positions)
    return w.tracer.program(outputs(cfg, w, h, task, head), cfg.max_positions)
