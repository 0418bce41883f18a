"""ModernBERT (Warner et al. 2024): pre-norm layers, rotary positions, local attention in most layers, GeGLU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.source import ComputedSource, WeightSource
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program
from fastattn.graph.kinds import (
    Activation,
    activate,
    attention,
    embedding,
    gather_rows,
    layer_norm,
    linear,
    pool,
    rotary,
    split,
)
from fastattn.graph.rotary_table import RotaryTable
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.config import MAX_LAYERS, CommonConfig, ConfigReader, unchangeable
from fastattn.models.decoder import decoder_matrix
from fastattn.models.names import Layout, ModelNames
from fastattn.models.rope import Rope, read_rope
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("model.",),
    anchor="embeddings.tok_embeddings.weight",
    tied=("embeddings.tok_embeddings.weight", "decoder.weight"),
    unused=(r"(classifier|decoder|head)\..*",),
)
HEADS = "Model ForSequenceClassification ForMaskedLM ForTokenClassification ForQuestionAnswering ForMultipleChoice"
ARCHITECTURES = tuple(f"ModernBert{head}" for head in HEADS.split())
FULL, LOCAL = "full_attention", "sliding_attention"
THETAS = {FULL: ("global_rope_theta", 160000.0), LOCAL: ("local_rope_theta", 10000.0)}
POOLINGS = ("cls", "mean")


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class ModernBertConfig(CommonConfig):
    """The options of a ModernBERT, named as in config.json. ropes: the frequencies of each type of layer."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_activation: Activation
    max_position_embeddings: int
    norm_eps: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    local_attention: int
    layer_types: tuple[str, ...]
    ropes: Mapping[str, Rope]
    classifier_pooling: str
    classifier_bias: bool
    classifier_activation: Activation
    decoder_bias: bool
    tie_word_embeddings: bool

    @property
    def type_vocab_size(self) -> int | None:
        """None, because there are no token types."""
        return None

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def read_config(raw: Mapping[str, object]) -> ModernBertConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "ModernBERT")
    hidden_size, layers = c.size("hidden_size", 768), c.size("num_hidden_layers", 22, high=MAX_LAYERS)
    heads = c.heads(hidden_size, "hidden_size", "num_attention_heads", 12)
    positions = c.size("max_position_embeddings", 8192)
    local = c.size("local_attention", 128)
    c.must_be("sliding_window", local // 2)
    c.must_be("head_dim", hidden_size // heads, None)
    config = ModernBertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=c.size("intermediate_size", 1152),
        hidden_activation=c.activation("hidden_activation", "gelu"),
        max_position_embeddings=positions,
        norm_eps=c.epsilon("norm_eps", 1e-5),
        norm_bias=c.flag("norm_bias", False),
        attention_bias=c.flag("attention_bias", False),
        mlp_bias=c.flag("mlp_bias", False),
        local_attention=local,
        layer_types=_layer_types(c, layers),
        ropes=_ropes(c, hidden_size // heads, positions),
        classifier_pooling=c.choice("classifier_pooling", POOLINGS, "cls"),
        classifier_bias=c.flag("classifier_bias", False),
        classifier_activation=c.activation("classifier_activation", "gelu"),
        decoder_bias=c.flag("decoder_bias", True),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        **c.common("modernbert", c.size("vocab_size", 50368), bos=50281, eos=50282, pad=50283),
    )
    c.finish(
        "attention_dropout deterministic_flash_attn embedding_dropout initializer_cutoff_factor "
        "layer_norm_eps mlp_dropout reference_compile repad_logits_with_grad sparse_pred_ignore_index sparse_prediction"
    )
    return config


def _layer_types(c: ConfigReader, layers: int) -> tuple[str, ...]:
    """Read the type of each layer. layer_types takes precedence over the older global_attn_every_n_layers."""
    every, types = c.count("global_attn_every_n_layers", 3, low=1), c.texts("layer_types")
    if "layer_types" not in c:
        return tuple(LOCAL if i % every else FULL for i in range(layers))
    if len(types) != layers or not set(types) <= set(THETAS):
        raise c.error("layer_types", f"{layers} names, each {FULL} or {LOCAL}")
    return types


def _ropes(c: ConfigReader, head_dim: int, positions: int) -> dict[str, Rope]:
    """Read the rotary frequencies of both types of layers."""
    for key in ("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        c.must_be(key, None)
    if not set(c.table("rope_parameters")) <= set(THETAS):
        raise c.error("rope_parameters", f"an object with {FULL} and {LOCAL}")
    ropes = {}
    theta = 0.0
    for kind, (key, default) in THETAS.items():
        read = c.number(key, default)
        if not (kind == LOCAL and key in c.values and key not in c):  # null: the global theta, as in transformers 4
            theta = read
        if not 1 < theta < math.inf:
            raise c.error(key, "a number above 1")
        ropes[kind] = read_rope(c, head_dim=head_dim, max_positions=positions, theta=theta, layer_type=kind)
        if 2 * len(ropes[kind].frequencies) != head_dim:
            raise c.error("rope_parameters", f"frequencies for all of head_dim {head_dim}, which must be even")
    return ropes


def computed(cfg: ModernBertConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the rotary tables, and zeros for the biases of norms if they have none."""
    sources: dict[str, WeightSource] = {}
    for kind in set(cfg.layer_types):
        rope, name = cfg.ropes[kind], f"rotary.{kind}.weight"
        table = RotaryTable(frequencies=rope.frequencies, positions=cfg.max_positions, factor=rope.attention_factor)
        sources[name] = ComputedSource(name, table.shape, table.rows)
    if not cfg.norm_bias:
        norms = [f"layers.{i}.{norm}" for i in range(cfg.num_hidden_layers) for norm in ("attn_norm", "mlp_norm")]
        for norm in ("embeddings.norm", *norms[1:], "final_norm", "head.norm"):
            sources[f"{norm}.bias"] = ComputedSource(f"{norm}.bias", (cfg.hidden_size,), _zeros)
    return sources


def _zeros(begin: int, end: int) -> NDArray[np.float32]:
    return np.zeros(end - begin, np.float32)


def encoder(cfg: ModernBertConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, hidden_size]."""
    d, inner, eps = cfg.hidden_size, cfg.intermediate_size, cfg.norm_eps
    h = embedding(w["embeddings.tok_embeddings"], t.ids, cfg.vocab_size, d)
    h = layer_norm(h, w["embeddings.norm"], eps)
    for i, kind in enumerate(cfg.layer_types):
        b, h = w[f"layers.{i}"], hidden_state(h)
        x = layer_norm(h, b["attn_norm"], eps) if i else h  # the embeddings are already normalized
        a = attend(cfg, w, x, i, kind)
        h = h + linear(a, b["attn.Wo"], d, bias=cfg.attention_bias)
        m, gate = split(linear(layer_norm(h, b["mlp_norm"], eps), b["mlp.Wi"], 2 * inner, bias=cfg.mlp_bias), 2)
        h = h + linear(activate(m, cfg.hidden_activation) * gate, b["mlp.Wo"], d, bias=cfg.mlp_bias)
    return hidden_state(layer_norm(h, w["final_norm"], eps))


def attend(cfg: ModernBertConfig, w: Weights, x: Tensor, i: int, kind: str) -> Tensor:
    """Compute the attention of layer i; local layers see local_attention // 2 positions on each side."""
    heads = cfg.num_attention_heads
    q, k, v = split(linear(x, w[f"layers.{i}.attn.Wqkv"], 3 * cfg.hidden_size, bias=cfg.attention_bias), 3)
    turn: dict[str, Any] = {"n_head": heads, "dimensions": cfg.head_dim, "max_positions": cfg.max_positions}
    q, k = (rotary(y, w[f"rotary.{kind}"], **turn) for y in (q, k))
    window = cfg.local_attention // 2 + 1 if kind == LOCAL else 0
    return attention(q, k, v, layer=i, n_head=heads, causal=False, window=window)


def head(cfg: ModernBertConfig, w: Weights, x: Tensor) -> Tensor:
    """Compute norm(activation(dense(x))), which all heads have."""
    x = linear(x, w["head.dense"], cfg.hidden_size, bias=cfg.classifier_bias)
    return layer_norm(activate(x, cfg.classifier_activation), w["head.norm"], cfg.norm_eps)


def head_matrix(cfg: ModernBertConfig, w: Weights, task: Task) -> Weights:
    """Return the `Weights` of the masked language model's output matrix. Raises ConfigError for a classifier's head.

    Without a bias in the decoder, a masked language model has no tensor of its own that a classifier lacks.
    """
    decoder, e, classifies = w["decoder"], w["embeddings.tok_embeddings"], w["classifier"].has("weight")
    if task == "masked-lm" and classifies and not (decoder.has("weight") or decoder.has("bias")):
        raise ConfigError(
            "this checkpoint has no masked-language-model head (it has a classifier, and decoder.* is missing)"
        )
    if not w["head.dense"].has("weight") or classifies:
        return decoder  # there is no such head
    return decoder_matrix(decoder, e, cfg.vocab_size, cfg.hidden_size, tied=cfg.tie_word_embeddings)


def build(cfg: ModernBertConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state", or the "logits" of a head, as in BERT.

    Heads for tokens also have the matrix and the norm of the other heads.
    """
    matrix = head_matrix(cfg, w, task)
    h = encoder(cfg, w, Tokens())
    if task in ("sequence-classification", "multiple-choice"):
        pooled = gather_rows(h, "first") if cfg.classifier_pooling == "cls" else pool(h, "mean")
        n_classes = len(cfg.labels) if task == "sequence-classification" else 1
        outputs = {"logits": linear(head(cfg, w, pooled), w["classifier"], n_classes)}
    elif task == "masked-lm":
        x = head(cfg, w, gather_rows(h, "wanted"))
        outputs = {"logits": linear(x, matrix, cfg.vocab_size, bias=w["decoder"] if cfg.decoder_bias else False)}
    elif task in ("token-classification", "question-answering"):
        n_classes = len(cfg.labels) if task == "token-classification" else 2
        outputs = {"logits": linear(head(cfg, w, h), w["classifier"], n_classes)}
    else:
        outputs = {"last_hidden_state": h}
    return w.tracer.program(outputs, cfg.max_positions)
