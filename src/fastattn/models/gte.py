"""GTE (Zhang et al. 2024): BERT with rotary positions and gated feed-forward layers.

Checkpoints with the model type "new" have the options of the code that comes with them, which is not used. Those with
"gte" have transformers' options. The tensors of both have the same names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastattn.checkpoint.source import ComputedSource, WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.kinds import (
    Activation,
    activate,
    attention,
    embedding,
    layer_norm,
    linear,
    rms_norm,
    rotary,
    split,
)
from fastattn.graph.rotary_table import RotaryTable
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.bert import HARMLESS, head_matrix, pooler, token_outputs
from fastattn.models.config import MAX_LAYERS, CommonConfig, ConfigReader, unchangeable
from fastattn.models.decoder import decode, transform
from fastattn.models.names import Layout, ModelNames
from fastattn.models.rope import Rope, ntk_frequencies, read_rope
from fastattn.models.tasks import Task
from fastattn.settings import Settings

LAYOUT = Layout(
    prefixes=("new.", "gte."),
    anchor="embeddings.word_embeddings.weight",
    tied=("embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    unused=(r"embeddings\.(position_ids|token_type_ids)", r"(classifier|lm_head|pooler|qa_outputs)\..*"),
)
HEADS = "Model ForMaskedLM ForSequenceClassification ForTokenClassification"
ARCHITECTURES = tuple(f"Gte{head}" for head in HEADS.split())
NEW_ARCHITECTURES = tuple(f"New{head}" for head in f"{HEADS} ForQuestionAnswering ForMultipleChoice".split())
NORMS = ("layer_norm", "rms_norm")
TABLE = "rotary"


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class GteConfig(CommonConfig):
    """The options of a GTE, named as in config.json.

    type_vocab_size: None if there are no token types. rope: the frequencies; None for a table of positions.
    prediction_act: the activation in the head of a masked language model.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: Activation
    max_position_embeddings: int
    type_vocab_size: int | None
    layer_norm_eps: float
    layer_norm_type: str
    pack_qkv: bool
    rope: Rope | None
    prediction_act: Activation
    tie_word_embeddings: bool


def read_config(raw: Mapping[str, object]) -> GteConfig:
    """Read config.json in transformers' own format. Raises ConfigError."""
    c = ConfigReader(raw, "GTE")
    for key, *values in (("position_embedding_type", "rope", None), ("layer_norm_type", "layer_norm", None),
                         ("pack_qkv", True, None)):  # fmt: skip
        c.must_be(key, *values)
    sizes = _read_sizes(c, positions=8192)
    head_dim = sizes["hidden_size"] // sizes["num_attention_heads"]
    c.must_be("head_dim", head_dim)
    rope = read_rope(c, head_dim=head_dim, max_positions=sizes["max_position_embeddings"], theta=160000.0)
    return _read(
        c,
        sizes,
        c.common("gte", c.size("vocab_size", 250048), pad=1),
        rope=_whole_heads(c, rope, head_dim),
        layer_norm_type="layer_norm",
        pack_qkv=True,
        prediction_act="gelu_erf",  # whatever hidden_act is
    )


def read_new_config(raw: Mapping[str, object]) -> GteConfig:
    """Read config.json with the options of the code that comes with the checkpoints. Raises ConfigError."""
    c = ConfigReader(raw, "GTE")
    c.must_be("logn_attention_scale", False, None)  # it needs the length of the text in every attention
    sizes = _read_sizes(c, positions=2048)
    rotates = c.choice("position_embedding_type", ("rope", "absolute"), "rope") == "rope"
    rope = None
    if rotates:
        head_dim = sizes["hidden_size"] // sizes["num_attention_heads"]
        rope = _read_new_rope(c, head_dim, sizes["max_position_embeddings"])
    c.ignore("rope_theta", "rope_scaling")
    return _read(
        c,
        sizes,
        c.common("new", c.size("vocab_size", 30528)),
        rope=rope,
        layer_norm_type=c.choice("layer_norm_type", NORMS, "layer_norm"),
        pack_qkv=c.flag("pack_qkv", True),
        prediction_act=sizes["hidden_act"],
    )


def _read_sizes(c: ConfigReader, *, positions: int) -> dict[str, Any]:
    """Read the options that both formats share. positions: the default of max_position_embeddings."""
    hidden_size = c.size("hidden_size", 768)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": c.size("num_hidden_layers", 12, high=MAX_LAYERS),
        "num_attention_heads": c.heads(hidden_size, "hidden_size", "num_attention_heads", 12),
        "intermediate_size": c.size("intermediate_size", 3072),
        "hidden_act": c.activation("hidden_act", "gelu"),
        "max_position_embeddings": c.size("max_position_embeddings", positions),
        "type_vocab_size": c.count("type_vocab_size", 1) or None,
        "layer_norm_eps": c.epsilon("layer_norm_eps", 1e-12),
        "tie_word_embeddings": c.flag("tie_word_embeddings", True),
    }


def _read(c: ConfigReader, sizes: Mapping[str, Any], common: Mapping[str, Any], **others: Any) -> GteConfig:
    config = GteConfig(**sizes, **common, **others)
    c.finish(
        f"{HARMLESS} logn_attention_clip1 unpad_inputs use_memory_efficient_attention",
        own=("position_embedding_type",),
    )
    return config


def _read_new_rope(c: ConfigReader, head_dim: int, positions: int) -> Rope:
    """Read rope_theta and rope_scaling, which has the type "ntk" or is null."""
    for key in ("rope_parameters", "partial_rotary_factor", "original_max_position_embeddings", "head_dim"):
        c.must_be(key, None)
    theta, table = c.number("rope_theta", 10000.0), c.table("rope_scaling")
    if not 1 < theta < math.inf:
        raise c.error("rope_theta", "a number above 1")
    if not table:
        plain = Settings(c.where, {"rope_theta": theta})
        return _whole_heads(c, read_rope(plain, head_dim=head_dim, max_positions=positions), head_dim)
    scaling = Settings(f"{c.where}: rope_scaling", table)
    factor, mixed_b = scaling.number("factor", 0.0), scaling.number("mixed_b", None)
    if scaling.choice("type", ("ntk",), "") != "ntk":
        raise scaling.error("type", "ntk")
    if not 1 <= factor < math.inf:
        raise scaling.error("factor", "a number of at least 1")
    if mixed_b is not None and not 0 < mixed_b < 100:
        raise scaling.error("mixed_b", "a number above 0 and below 100")
    scaling.ignore("rope_type")
    if scaling.raw("rope_type") not in (None, "ntk"):
        raise scaling.error("rope_type", "ntk")
    scaling.finish()
    # The code scales the frequencies only if the factor is above 1; both formulas then give the same for 1.
    return _whole_heads(c, Rope(ntk_frequencies(theta, factor, mixed_b, head_dim)), head_dim)


def _whole_heads(c: ConfigReader, rope: Rope, head_dim: int) -> Rope:
    """Require frequencies for whole heads. Raises ConfigError."""
    if head_dim % 2:
        raise c.error("num_attention_heads", f"heads of an even width, which is {head_dim}")
    if 2 * len(rope.frequencies) != head_dim:
        raise c.error("rope_parameters", f"frequencies for whole heads, whose width is {head_dim}")
    return rope


def computed(cfg: GteConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the rotary table, if there is one."""
    if cfg.rope is None:
        return {}
    name, rope = f"{TABLE}.weight", cfg.rope
    table = RotaryTable(frequencies=rope.frequencies, positions=cfg.max_positions, factor=rope.attention_factor)
    return {name: ComputedSource(name, table.shape, table.rows)}


def encoder(cfg: GteConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens, [n_tokens, hidden_size]."""
    d = cfg.hidden_size
    h = embeddings(cfg, w["embeddings"], t)
    for i in range(cfg.num_hidden_layers):
        b = w[f"encoder.layer.{i}"]
        q, k, v = project(cfg, b["attention"], h)
        if cfg.rope is not None:
            q, k = (turn(cfg, w, x) for x in (q, k))
        a = attention(q, k, v, layer=i, n_head=cfg.num_attention_heads, causal=False)
        h = norm(cfg, h + linear(a, b["attention.o_proj"], d), b["attn_ln"])
        up, gate = split(linear(h, b["mlp.up_gate_proj"], 2 * cfg.intermediate_size, bias=False), 2)
        m = linear(activate(gate, cfg.hidden_act) * up, b["mlp.down_proj"], d)
        h = hidden_state(norm(cfg, h + m, b["mlp_ln"]))
    return h


def embeddings(cfg: GteConfig, e: Weights, t: Tokens) -> Tensor:
    """Compute the normalized sums of the embeddings, [n_tokens, hidden_size]."""
    d = cfg.hidden_size
    h = embedding(e["word_embeddings"], t.ids, cfg.vocab_size, d)
    if cfg.type_vocab_size is not None:
        h = h + embedding(e["token_type_embeddings"], t.type_ids, cfg.type_vocab_size, d)
    if cfg.rope is None:
        h = h + embedding(e["position_embeddings"], t.positions, cfg.max_position_embeddings, d)
    return hidden_state(layer_norm(h, e["LayerNorm"], cfg.layer_norm_eps))


def project(cfg: GteConfig, b: Weights, h: Tensor) -> tuple[Tensor, ...]:
    """Compute queries, keys and values, each [n_tokens, hidden_size]. b: the weights of the attention."""
    if cfg.pack_qkv:
        return split(linear(h, b["qkv_proj"], 3 * cfg.hidden_size), 3)
    return tuple(linear(h, b[f"{name}_proj"], cfg.hidden_size) for name in "qkv")


def turn(cfg: GteConfig, w: Weights, x: Tensor) -> Tensor:
    """Rotate queries or keys by their positions."""
    heads = cfg.num_attention_heads
    return rotary(x, w[TABLE], n_head=heads, dimensions=cfg.hidden_size // heads, max_positions=cfg.max_positions)


def norm(cfg: GteConfig, x: Tensor, w: Weights) -> Tensor:
    """Apply the norm of the layers; the one of the embeddings is always a layer norm."""
    apply = layer_norm if cfg.layer_norm_type == "layer_norm" else rms_norm
    return apply(x, w, cfg.layer_norm_eps)


def build(cfg: GteConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state" and "pooler_output", or the "logits" of a head, as in BERT."""
    lm = w["lm_head"]
    matrix = head_matrix(cfg, w, lm, "dense")
    h = encoder(cfg, w, Tokens())
    if task == "sequence-classification":
        outputs = {"logits": linear(pooler(cfg, w, h), w["classifier"], len(cfg.labels))}
    elif task == "masked-lm":
        x = transform(h, lm["dense"], lm["norm"], cfg.hidden_size, cfg.prediction_act, cfg.layer_norm_eps)
        outputs = {"logits": decode(x, matrix, lm["decoder"], lm, cfg.vocab_size)}
    else:
        outputs = token_outputs(cfg, w, h, task)
    return w.tracer.program(outputs, cfg.max_positions)
