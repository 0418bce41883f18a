"""BLOOM (Le Scao et al. 2022): ALiBi in place of positions, and a norm after the embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastattn.checkpoint.source import ComputedSource, WeightSource
from fastattn.graph.attention_bias import AlibiBias, alibi_slopes
from fastattn.graph.ir import Program
from fastattn.graph.kinds import activate, attention, embedding, layer_norm, linear
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.causal import DecoderConfig, architectures, head_matrix, outputs
from fastattn.models.config import (
    MAX_LAYERS,
    MAX_TABLE_POSITIONS,
    ConfigReader,
    add_names,
    unchangeable,
)
from fastattn.models.fused import QKV, InterleavedQkv
from fastattn.models.names import Layout, ModelNames
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("transformer.",),
    anchor="word_embeddings.weight",
    tied=("word_embeddings.weight", "lm_head.weight"),
    unused=(r"(lm_head|score|classifier|qa_outputs)\..*",),
)
ARCHITECTURES = architectures("Bloom")
NAMES = {"num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}  # transformers' common option names
ALIBI = "alibi"


@add_names(NAMES)
@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class BloomConfig(DecoderConfig):
    """The options of a BLOOM, named as in config.json. seq_length: the longest text, which ALiBi does not need."""

    hidden_size: int
    n_layer: int
    n_head: int
    seq_length: int
    layer_norm_epsilon: float
    apply_residual_connection_post_layernorm: bool

    @property
    def max_position_embeddings(self) -> int:
        return self.seq_length


def read_config(raw: Mapping[str, object]) -> BloomConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "BLOOM", NAMES)
    width = c.size("hidden_size", 64)
    width = width if c.raw("n_embed") is None else c.size("n_embed")
    config = BloomConfig(
        hidden_size=width,
        n_layer=c.size("n_layer", 2, high=MAX_LAYERS),
        n_head=c.heads(width, "hidden_size", "n_head", 8),
        seq_length=2048 if c.raw("seq_length") is None else c.size("seq_length", high=MAX_TABLE_POSITIONS),
        layer_norm_epsilon=c.epsilon("layer_norm_epsilon", 1e-5),
        apply_residual_connection_post_layernorm=c.flag("apply_residual_connection_post_layernorm", False),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        **c.common("bloom", c.size("vocab_size", 250880), bos=1, eos=2),
    )
    c.finish(
        "attention_dropout attention_softmax_in_fp32 bias_dropout_fusion hidden_dropout masked_softmax_fusion n_inner "
        "offset_alibi pretraining_tp skip_bias_add skip_bias_add_qkv slow_but_exact unk_token_id"
    )
    return config


def _fused(cfg: BloomConfig) -> Iterator[InterleavedQkv]:
    """Yield the fused linear of each layer."""
    for i in range(cfg.n_layer):
        place = f"h.{i}.self_attention"
        yield InterleavedQkv(
            place=place,
            fused=f"{place}.query_key_value",
            n_head=cfg.n_head,
            head_dim=cfg.hidden_size // cfg.n_head,
            in_features=cfg.hidden_size,
            bias=True,
        )


def computed(cfg: BloomConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the table of ALiBi, and the linears of q, k and v of every layer."""
    found = {source.name: source for fused in _fused(cfg) for source in fused.sources(names)}
    alibi = AlibiBias(slopes=alibi_slopes(cfg.n_head), positions=cfg.max_positions)
    return {**found, f"{ALIBI}.weight": ComputedSource(f"{ALIBI}.weight", alibi.shape, alibi.rows)}


def hidden_tensors(cfg: BloomConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that only `computed` reads, by name."""
    return {name: shape for fused in _fused(cfg) for name, shape in fused.shapes().items()}


def transformer(cfg: BloomConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, hidden_size]."""
    d, eps, after = cfg.hidden_size, cfg.layer_norm_epsilon, cfg.apply_residual_connection_post_layernorm
    h = embedding(w["word_embeddings"], t.ids, cfg.vocab_size, d)
    h = layer_norm(h, w["word_embeddings_layernorm"], eps)
    for i in range(cfg.n_layer):
        b, h = w[f"h.{i}"], hidden_state(h)
        x = layer_norm(h, b["input_layernorm"], eps)
        h = (x if after else h) + attend(cfg, w, x, i)
        x = layer_norm(h, b["post_attention_layernorm"], eps)
        m = activate(linear(x, b["mlp.dense_h_to_4h"], 4 * d), "gelu_tanh")
        h = (x if after else h) + linear(m, b["mlp.dense_4h_to_h"], d)
    return hidden_state(layer_norm(h, w["ln_f"], eps))


def attend(cfg: BloomConfig, w: Weights, x: Tensor, i: int) -> Tensor:
    """Compute the attention of layer i, [n_tokens, hidden_size]."""
    a, d = w[f"h.{i}.self_attention"], cfg.hidden_size
    q, k, v = (linear(x, a[name], d) for name in QKV)
    y = attention(q, k, v, layer=i, n_head=cfg.n_head, causal=True, bias=w[ALIBI], bias_positions=cfg.max_positions)
    return linear(y, a["dense"], d)


def build(cfg: BloomConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task; see `outputs`."""
    head = head_matrix(cfg, w, w["word_embeddings"])
    h = transformer(cfg, w, Tokens())
    return w.tracer.program(outputs(cfg, w, h, task, head, token_head="classifier"), cfg.max_positions)
