"""JinaBERT v2 (Günther et al. 2023): BERT with ALiBi in place of position embeddings and gated feed-forward layers.

Its checkpoints have the model type "bert", and come with code of their own, which is not used. The variant of
jina-embeddings-v2-base-code normalizes queries and keys, and has one more norm per layer. The tensors say which variant
a checkpoint is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.checkpoint.source import ComputedSource, WeightSource
from fastattn.graph.attention_bias import AlibiBias, alibi_slopes
from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, layer_norm, linear, split
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.bert import (
    HARMLESS,
    HEADS,
    UNUSED,
    BertConfig,
    build_heads,
    read_layers,
    read_tables,
)
from fastattn.models.config import MAX_TABLE_POSITIONS, ConfigReader, unchangeable
from fastattn.models.names import Layout, ModelNames
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("bert.",),
    anchor="embeddings.word_embeddings.weight",
    tied=("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    unused=UNUSED,
)
ARCHITECTURES = tuple(f"JinaBert{head}" for head in HEADS.split())
GATES: Mapping[str, Activation] = {"geglu": "gelu_erf", "reglu": "relu"}
BIAS = "attention_bias"


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class JinaBertConfig(BertConfig):
    """The options of a JinaBERT, named as in config.json."""

    feed_forward_type: str


def read_config(raw: Mapping[str, object]) -> JinaBertConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "JinaBERT")
    if c.choice("position_embedding_type", ("alibi",), "") != "alibi":
        raise c.error("position_embedding_type", "alibi")
    # The variants have different defaults.
    gate = c.choice("feed_forward_type", GATES, "")
    if not gate:
        raise c.error("feed_forward_type", f"one of {', '.join(GATES)}")
    config = JinaBertConfig(
        feed_forward_type=gate,
        **read_layers(c, most_positions=MAX_TABLE_POSITIONS),
        **read_tables(c),
        **c.common("jina_bert", c.size("vocab_size", 30522), pad=0),
    )
    c.finish(f"{HARMLESS} attn_implementation emb_pooler model_max_length", own=("position_embedding_type",))
    return config


def computed(cfg: JinaBertConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the table of attention biases."""
    name, slopes = f"{BIAS}.weight", alibi_slopes(cfg.num_attention_heads)
    bias = AlibiBias(slopes=slopes, positions=cfg.max_positions, causal=False)
    return {name: ComputedSource(name, bias.shape, bias.rows)}


def encoder(cfg: JinaBertConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens, [n_tokens, hidden_size]."""
    d, eps, e = cfg.hidden_size, cfg.layer_norm_eps, w["embeddings"]
    h = embedding(e["word_embeddings"], t.ids, cfg.vocab_size, d)
    h = h + embedding(e["token_type_embeddings"], t.type_ids, cfg.type_vocab_size, d)
    h = hidden_state(layer_norm(h, e["LayerNorm"], eps))
    for i in range(cfg.num_hidden_layers):
        b = w[f"encoder.layer.{i}"]
        a = h + linear(attend(cfg, w, h, i), b["attention.output.dense"], d)
        a = layer_norm(a, b["attention.output.LayerNorm"], eps)
        mlp = b["mlp"]
        if normalizes(w):
            h = layer_norm(h + a, b["layer_norm_1"], eps)
            up, gate = split(linear(h, mlp["up_gated_layer"], 2 * cfg.intermediate_size, bias=False), 2)
            last, norm = mlp["down_layer"], b["layer_norm_2"]
        else:
            h = a
            gate, up = split(linear(h, mlp["gated_layers"], 2 * cfg.intermediate_size, bias=False), 2)
            last, norm = mlp["wo"], mlp["layernorm"]
        m = linear(activate(gate, GATES[cfg.feed_forward_type]) * up, last, d)
        h = hidden_state(layer_norm(h + m, norm, eps))
    return h


def normalizes(w: Weights) -> bool:
    """Return whether the checkpoint is the variant that normalizes queries and keys."""
    return w["encoder.layer.0.attention.self.layer_norm_q"].has("weight")


def attend(cfg: JinaBertConfig, w: Weights, h: Tensor, i: int) -> Tensor:
    """Compute the attention of layer i, [n_tokens, hidden_size]."""
    b = w[f"encoder.layer.{i}.attention.self"]
    q, k, v = (linear(h, b[name], cfg.hidden_size) for name in ("query", "key", "value"))
    if normalizes(w):
        q, k = (layer_norm(x, b[f"layer_norm_{name}"], cfg.layer_norm_eps) for x, name in ((q, "q"), (k, "k")))
    heads, positions = cfg.num_attention_heads, cfg.max_positions
    return attention(q, k, v, layer=i, n_head=heads, causal=False, bias=w[BIAS], bias_positions=positions)


def build(cfg: JinaBertConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task, with the heads of BERT."""
    return build_heads(cfg, w, task, encoder)
