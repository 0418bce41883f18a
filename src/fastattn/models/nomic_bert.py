"""NomicBERT (Nussbaum et al. 2024): BERT with rotary positions, gated layers and usually no biases in them.

Older checkpoints have a config.json with the option names of GPT-2, and come with code of their own, which is not used.
Their tensors have the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastattn.checkpoint.source import ComputedSource, WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, layer_norm, linear, rotary, split
from fastattn.graph.rotary_table import RotaryTable
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.bert import HARMLESS, head_matrix, pooler, token_outputs
from fastattn.models.config import MAX_LAYERS, CommonConfig, ConfigReader, unchangeable
from fastattn.models.decoder import decode, transform
from fastattn.models.names import Layout, ModelNames
from fastattn.models.rope import Rope, read_rope
from fastattn.models.tasks import Task
from fastattn.settings import Settings

LAYOUT = Layout(
    prefixes=("nomic_bert.", "bert."),
    anchor="embeddings.word_embeddings.weight",
    tied=("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    unused=(r"embeddings\.(position_ids|token_type_ids)", r"(classifier|cls|pooler)\..*"),
)
HEADS = "Model ForSequenceClassification ForMaskedLM ForTokenClassification ForPreTraining"
ARCHITECTURES = tuple(f"NomicBert{head}" for head in HEADS.split())
TABLE = "rotary"
# Names of options in the older files.
OLDER = (
    "n_embd n_head n_inner n_layer n_positions activation_function layer_norm_epsilon mlp_fc1_bias mlp_fc2_bias "
    "qkv_proj_bias rotary_emb_base rotary_emb_fraction rotary_emb_interleaved rotary_scaling_factor"
)
# The common names of older options, as in GPT-2.
NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
GATES = {"swiglu": "silu", "geglu": "gelu"}
INNER_MULTIPLE = 256  # the older code rounds n_inner up to a multiple of it


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class NomicBertConfig(CommonConfig):
    """The options of a NomicBERT, named as in config.json. rope: the frequencies.

    qkv_proj_bias, mlp_fc1_bias, mlp_fc2_bias: of the older files; False in the others. head_bias: whether the head of a
    masked language model has biases.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    intermediate_size: int
    hidden_act: Activation
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    rope: Rope
    tie_word_embeddings: bool
    qkv_proj_bias: bool = False
    mlp_fc1_bias: bool = False
    mlp_fc2_bias: bool = False
    head_bias: bool = True


def read_config(raw: Mapping[str, object]) -> NomicBertConfig:
    """Read config.json in transformers' own format, or with the older names. Raises ConfigError."""
    return read_older(raw) if is_older(raw) else read_current(raw)


def is_older(raw: Mapping[str, object]) -> bool:
    """Return whether a config.json has the option names of GPT-2."""
    return raw.get("n_embd") is not None and raw.get("intermediate_size") is None


def read_current(raw: Mapping[str, object]) -> NomicBertConfig:
    """Read config.json in transformers' own format. Raises ConfigError."""
    c = ConfigReader(raw, "NomicBERT")
    for key in (*OLDER.split(), "partial_rotary_factor"):
        c.must_be(key, None)
    hidden_size, positions = c.size("hidden_size", 768), c.size("max_position_embeddings", 2048)
    if "head_dim" in c:
        heads, head_dim = c.size("num_attention_heads", 12), c.size("head_dim")
    else:
        heads = c.heads(hidden_size, "hidden_size", "num_attention_heads", 12)
        head_dim = hidden_size // heads
        c.ignore("head_dim")
    rope = read_rope(c, head_dim=head_dim, max_positions=positions, theta=1000.0)
    if 2 * len(rope.frequencies) != head_dim:
        raise c.error("rope_parameters", f"frequencies for all of head_dim {head_dim}, which must be even")
    config = NomicBertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=c.size("num_hidden_layers", 12, high=MAX_LAYERS),
        num_attention_heads=heads,
        head_dim=head_dim,
        intermediate_size=c.size("intermediate_size", 3072),
        hidden_act=c.activation("hidden_act", "silu"),
        max_position_embeddings=positions,
        type_vocab_size=c.size("type_vocab_size", 2),
        layer_norm_eps=c.epsilon("layer_norm_eps", 1e-12),
        rope=rope,
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        **c.common("nomic_bert", c.size("vocab_size", 30528), pad=0),
    )
    c.finish(HARMLESS)
    return config


def read_older(raw: Mapping[str, object]) -> NomicBertConfig:
    """Read config.json with the option names of GPT-2. Options without a safe default must be there.

    Raises ConfigError.
    """
    c = ConfigReader(raw, "NomicBERT", NAMES)
    hidden_size, positions = c.size("n_embd"), c.size("n_positions")
    heads = c.heads(hidden_size, "n_embd", "n_head", 12)
    _check_older(c, heads)
    if c.number("rotary_emb_fraction", 0.0) != 1:
        raise c.error("rotary_emb_fraction", "1.0")
    rope_settings = Settings(f"{c.where}: rotary_emb_base", {"rope_theta": c.number("rotary_emb_base", 0.0)})
    rope = read_rope(rope_settings, head_dim=hidden_size // heads, max_positions=positions)
    if 2 * len(rope.frequencies) != hidden_size // heads:
        raise c.error("n_head", f"heads of an even width, got {heads} for n_embd = {hidden_size}")
    biases: dict[str, Any] = {key: _required(c, key) for key in ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")}
    gate = c.choice("activation_function", GATES, "")
    if not gate:
        raise c.error("activation_function", f"one of {', '.join(GATES)}")
    config = NomicBertConfig(
        hidden_size=hidden_size,
        num_hidden_layers=c.size("n_layer", high=MAX_LAYERS),
        num_attention_heads=heads,
        head_dim=hidden_size // heads,
        intermediate_size=_round_up(c.size("n_inner"), INNER_MULTIPLE),
        hidden_act="silu" if GATES[gate] == "silu" else "gelu_erf",
        max_position_embeddings=positions,
        type_vocab_size=c.size("type_vocab_size"),
        layer_norm_eps=c.epsilon("layer_norm_epsilon", None),
        rope=rope,
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        head_bias=biases["mlp_fc1_bias"],
        **biases,
        **c.common("nomic_bert", _round_up(c.size("vocab_size"), c.size("pad_vocab_size_multiple", 1)), pad=0),
    )
    c.finish(
        f"{HARMLESS} add_pooling_layer attn_pdrop dense_seq_output embd_pdrop fused_bias_fc fused_dropout_add_ln "
        "initializer_range max_trained_positions n_ctx resid_pdrop summary_activation summary_first_dropout "
        "summary_proj_to_labels summary_type summary_use_proj use_flash_attn use_xentropy"
    )
    return config


def _check_older(c: ConfigReader, heads: int) -> None:
    """Refuse values of older options that change the result and are not supported."""
    for key in ("prenorm", "parallel_block", "parallel_block_tied_norm", "use_rms_norm", "causal", "norm_mlp",
                "rotary_emb_interleaved", "rotary_head_dim", "reorder_and_upcast_attn",
                "scale_attn_by_inverse_layer_idx"):  # fmt: skip
        c.must_be(key, False, None)
    for key in ("rotary_scaling_factor", "rotary_emb_scale_base", "num_experts", "moe_top_k", "head_dim",
                "rope_parameters", "rope_scaling"):  # fmt: skip
        c.must_be(key, None)
    c.must_be("moe_every_n_layers", None, 0)
    c.must_be("num_heads_kv", None, heads)
    c.must_be("scale_attn_weights", True, None)


def _required(c: ConfigReader, key: str) -> bool:
    """Read true or false. Raises ConfigError if it is missing."""
    value = c.flag(key, None)
    if value is None:
        raise c.error(key, "true or false")
    return value


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def computed(cfg: NomicBertConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the rotary table."""
    name, rope = f"{TABLE}.weight", cfg.rope
    table = RotaryTable(frequencies=rope.frequencies, positions=cfg.max_positions, factor=rope.attention_factor)
    return {name: ComputedSource(name, table.shape, table.rows)}


def encoder(cfg: NomicBertConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens, [n_tokens, hidden_size]."""
    d, eps, e = cfg.hidden_size, cfg.layer_norm_eps, w["embeddings"]
    h = embedding(e["word_embeddings"], t.ids, cfg.vocab_size, d)
    h = h + embedding(e["token_type_embeddings"], t.type_ids, cfg.type_vocab_size, d)
    h = hidden_state(layer_norm(h, w["emb_ln"], eps))
    heads, width = cfg.num_attention_heads, cfg.num_attention_heads * cfg.head_dim
    for i in range(cfg.num_hidden_layers):
        b = w[f"encoder.layers.{i}"]
        q, k, v = split(linear(h, b["attn.Wqkv"], 3 * width, bias=cfg.qkv_proj_bias), 3)
        q, k = (
            rotary(x, w[TABLE], n_head=heads, dimensions=cfg.head_dim, max_positions=cfg.max_positions) for x in (q, k)
        )
        a = attention(q, k, v, layer=i, n_head=heads, causal=False)
        h = layer_norm(h + linear(a, b["attn.out_proj"], d, bias=cfg.qkv_proj_bias), b["norm1"], eps)
        first = (b["mlp"][name] for name in ("fc11", "fc12"))
        up, gate = (linear(h, place, cfg.intermediate_size, bias=cfg.mlp_fc1_bias) for place in first)
        m = linear(activate(gate, cfg.hidden_act) * up, b["mlp.fc2"], d, bias=cfg.mlp_fc2_bias)
        h = hidden_state(layer_norm(h + m, b["norm2"], eps))
    return h


def build(cfg: NomicBertConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state" and "pooler_output", or the "logits" of a head, as in BERT."""
    predictions = w["cls.predictions"]
    matrix = head_matrix(cfg, w, predictions, "transform.dense")
    h = encoder(cfg, w, Tokens())
    if task == "sequence-classification":
        outputs = {"logits": linear(pooler(cfg, w, h), w["classifier"], len(cfg.labels))}
    elif task == "masked-lm":
        head, eps = predictions["transform"], cfg.layer_norm_eps
        dense, norm = head["dense"], head["layer_norm"]
        x = transform(h, dense, norm, cfg.hidden_size, cfg.hidden_act, eps, bias=cfg.head_bias)
        if cfg.head_bias:
            outputs = {"logits": decode(x, matrix, predictions["decoder"], predictions, cfg.vocab_size)}
        else:
            outputs = {"logits": linear(x, matrix, cfg.vocab_size, bias=False)}
    else:
        outputs = token_outputs(cfg, w, h, task)
    return w.tracer.program(outputs, cfg.max_positions)
