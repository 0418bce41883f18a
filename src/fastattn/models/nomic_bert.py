"""NomicBERT (Nussbaum et al. 2024): BERT with rotary positions, gated MLPs and no biases in its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.checkpoint.source import ComputedSource, WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, layer_norm, linear, rotary, split
from fastattn.graph.rotary_table import RotaryTable
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.bert import HARMLESS, pooler, token_outputs
from fastattn.models.config import MAX_LAYERS, CommonConfig, ConfigReader, unchangeable
from fastattn.models.names import Layout, ModelNames
from fastattn.models.rope import Rope, read_rope
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("nomic_bert.",),
    anchor="embeddings.word_embeddings.weight",
    tied=("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    unused=(r"embeddings\.(position_ids|token_type_ids)", r"(classifier|cls|pooler)\..*"),
)
HEADS = "Model ForSequenceClassification ForMaskedLM ForTokenClassification"
ARCHITECTURES = tuple(f"NomicBert{head}" for head in HEADS.split())
TABLE = "rotary"
# Names of options in the older files, which come with code of their own.
OLDER = "n_embd n_head n_inner n_layer n_positions rotary_emb_base rotary_emb_fraction rotary_emb_interleaved"


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class NomicBertConfig(CommonConfig):
    """The options of a NomicBERT, named as in config.json. rope: the frequencies."""

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


def read_config(raw: Mapping[str, object]) -> NomicBertConfig:
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
        **c.common("nomic_bert", c.size("vocab_size", 30528), pad=0),
    )
    c.finish(HARMLESS)
    return config


def computed(cfg: NomicBertConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the table of rotary."""
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
        q, k, v = split(linear(h, b["attn.Wqkv"], 3 * width, bias=False), 3)
        q, k = (
            rotary(x, w[TABLE], n_head=heads, dimensions=cfg.head_dim, max_positions=cfg.max_positions) for x in (q, k)
        )
        a = attention(q, k, v, layer=i, n_head=heads, causal=False)
        h = layer_norm(h + linear(a, b["attn.out_proj"], d, bias=False), b["norm1"], eps)
        up, gate = (linear(h, b[f"mlp.{name}"], cfg.intermediate_size, bias=False) for name in ("fc11", "fc12"))
        m = linear(activate(gate, cfg.hidden_act) * up, b["mlp.fc2"], d, bias=False)
        h = hidden_state(layer_norm(h + m, b["norm2"], eps))
    return h


def build(cfg: NomicBertConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state" and "pooler_output", or "logits" of every sequence."""
    h = encoder(cfg, w, Tokens())
    if task == "sequence-classification":
        outputs = {"logits": linear(pooler(cfg, w, h), w["classifier"], len(cfg.labels))}
    else:
        outputs = token_outputs(cfg, w, h, task)
    return w.tracer.program(outputs, cfg.max_positions)
