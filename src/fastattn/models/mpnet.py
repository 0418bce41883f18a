"""MPNet (Song et al. 2020): RoBERTa without token types, with an attention bias by relative position in all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.checkpoint.source import ComputedSource, WeightSource, place_of, require_weight_dtype
from fastattn.errors import ConfigError
from fastattn.graph.attention_bias import RelativeBias, T5Buckets
from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, layer_norm, linear
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.bert import HARMLESS, head_matrix, read_layers
from fastattn.models.config import MAX_TABLE_POSITIONS, CommonConfig, ConfigReader, unchangeable
from fastattn.models.names import Layout, ModelNames
from fastattn.models.roberta import outputs, predictions
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("mpnet.",),
    anchor="embeddings.position_embeddings.weight",
    tied=("embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    unused=(
        r"embeddings\.position_ids",
        r"encoder\.relative_attention_bias\.weight",  # `computed` reads it
        r"(classifier|lm_head|pooler|qa_outputs)\..*",
    ),
)
HEADS = "Model ForSequenceClassification ForMaskedLM ForTokenClassification ForQuestionAnswering ForMultipleChoice"
ARCHITECTURES = tuple(f"MPNet{head}" for head in HEADS.split())
BUCKETS = T5Buckets(num_buckets=32, max_distance=128)
PADDING_ID = 1  # for positions, whatever pad_token_id is
BIAS = "encoder.relative_attention_bias"
TABLE = f"{BIAS}.table"


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class MPNetConfig(CommonConfig):
    """The options of an MPNet, named as in config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: Activation
    max_position_embeddings: int
    layer_norm_eps: float
    tie_word_embeddings: bool

    @property
    def type_vocab_size(self) -> int | None:
        """None, because there are no token types."""
        return None


def read_config(raw: Mapping[str, object]) -> MPNetConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "MPNet")
    # transformers computes 32 buckets whatever the option says.
    c.must_be("relative_attention_num_buckets", BUCKETS.num_buckets)
    config = MPNetConfig(
        **read_layers(c, position_offset=PADDING_ID + 1, most_positions=MAX_TABLE_POSITIONS),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        **c.common("mpnet", c.size("vocab_size", 30527), bos=0, eos=2, pad=1),
    )
    c.finish(HARMLESS)
    return config


def computed(cfg: MPNetConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the table of attention biases, computed from the bias of each bucket."""
    name = f"{TABLE}.weight"
    if names.has(name):  # a quantized folder has it
        return {}
    weight, shape = names.get(f"{BIAS}.weight"), (BUCKETS.num_buckets, cfg.num_attention_heads)
    if weight.shape != shape:
        raise ConfigError(
            f"{BIAS}.weight: expected shape {list(shape)} from config.json, got {list(weight.shape)} in "
            f"{place_of(weight)}"
        )
    require_weight_dtype(weight)
    bias = RelativeBias(weight=weight, buckets=BUCKETS, positions=cfg.max_positions)
    return {name: ComputedSource(name, bias.shape, bias.rows)}


def n_hidden_weights(cfg: MPNetConfig) -> int:
    """Return the number of biases from which the table is computed."""
    return BUCKETS.num_buckets * cfg.num_attention_heads


def encoder(cfg: MPNetConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens, [n_tokens, hidden_size]."""
    d, eps, e = cfg.hidden_size, cfg.layer_norm_eps, w["embeddings"]
    h = embedding(e["word_embeddings"], t.ids, cfg.vocab_size, d)
    positions = cfg.max_position_embeddings
    h = h + embedding(e["position_embeddings"], t.positions, positions, d, offset=cfg.position_offset)
    h = hidden_state(layer_norm(h, e["LayerNorm"], eps))
    for i in range(cfg.num_hidden_layers):
        b = w[f"encoder.layer.{i}"]
        q, k, v = (linear(h, b[f"attention.attn.{name}"], d) for name in "qkv")
        a = attention(
            q,
            k,
            v,
            layer=i,
            n_head=cfg.num_attention_heads,
            causal=False,
            bias=w[TABLE],
            bias_positions=cfg.max_positions,
        )
        h = layer_norm(h + linear(a, b["attention.attn.o"], d), b["attention.LayerNorm"], eps)
        m = activate(linear(h, b["intermediate.dense"], cfg.intermediate_size), cfg.hidden_act)
        h = hidden_state(layer_norm(h + linear(m, b["output.dense"], d), b["output.LayerNorm"], eps))
    return h


def build(cfg: MPNetConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state" and "pooler_output", or the "logits" of a head, as in BERT."""
    matrix = head_matrix(cfg, w, w["lm_head"], "dense")
    h = encoder(cfg, w, Tokens())
    found = {"logits": predictions(cfg, w, h, matrix)} if task == "masked-lm" else outputs(cfg, w, h, task)
    return w.tracer.program(found, cfg.max_positions)
