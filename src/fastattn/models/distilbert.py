"""DistilBERT (Sanh et al. 2019) in checkpoint names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, gather_rows, layer_norm, linear
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.config import MAX_LAYERS, CommonConfig, ConfigReader, add_names, unchangeable
from fastattn.models.decoder import decode, decoder_matrix, transform
from fastattn.models.names import Layout
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("distilbert.",),
    anchor="embeddings.position_embeddings.weight",
    tied=("embeddings.word_embeddings.weight", "vocab_projector.weight"),
    unused=(
        r"embeddings\.position_ids",
        r"(classifier|pre_classifier|qa_outputs|vocab_layer_norm|vocab_projector|vocab_transform)\..*",
    ),
)
HEADS = "Model ForSequenceClassification ForMaskedLM ForTokenClassification ForQuestionAnswering ForMultipleChoice"
ARCHITECTURES = tuple(f"DistilBert{head}" for head in HEADS.split())
LAYER_NORM_EPS = 1e-12  # constant in this family


# transformers' common option names.
NAMES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}


@add_names(NAMES)
@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class DistilBertConfig(CommonConfig):
    """The options of a DistilBERT, named as in config.json."""

    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int
    activation: Activation
    max_position_embeddings: int
    tie_word_embeddings: bool

    @property
    def type_vocab_size(self) -> int | None:
        """None, because there are no token types."""
        return None


def read_config(raw: Mapping[str, object]) -> DistilBertConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "DistilBERT", NAMES)
    dim, vocab_size = c.size("dim", 768), c.size("vocab_size", 30522)
    config = DistilBertConfig(
        dim=dim,
        n_layers=c.size("n_layers", 6, high=MAX_LAYERS),
        n_heads=c.heads(dim, "dim", "n_heads", 12),
        hidden_dim=c.size("hidden_dim", 3072),
        activation=c.activation("activation", "gelu"),
        max_position_embeddings=c.size("max_position_embeddings", 512),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        **c.common("distilbert", vocab_size, pad=0),
    )
    c.finish("attention_dropout dropout qa_dropout seq_classif_dropout sinusoidal_pos_embds tie_weights_")
    return config


def transformer(cfg: DistilBertConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens, [n_tokens, dim]."""
    d, e = cfg.dim, w["embeddings"]
    h = embedding(e["word_embeddings"], t.ids, cfg.vocab_size, d)
    h = h + embedding(e["position_embeddings"], t.positions, cfg.max_position_embeddings, d)
    h = hidden_state(layer_norm(h, e["LayerNorm"], LAYER_NORM_EPS))
    for i in range(cfg.n_layers):
        b = w[f"transformer.layer.{i}"]
        q, k, v = (linear(h, b[f"attention.{name}"], d) for name in ("q_lin", "k_lin", "v_lin"))
        a = attention(q, k, v, layer=i, n_head=cfg.n_heads, causal=False)
        h = layer_norm(h + linear(a, b["attention.out_lin"], d), b["sa_layer_norm"], LAYER_NORM_EPS)
        m = linear(activate(linear(h, b["ffn.lin1"], cfg.hidden_dim), cfg.activation), b["ffn.lin2"], d)
        h = hidden_state(layer_norm(h + m, b["output_layer_norm"], LAYER_NORM_EPS))
    return h


def pooled(cfg: DistilBertConfig, w: Weights, h: Tensor) -> Tensor:
    """Compute relu of a linear over the first token, [n_sequences, dim]."""
    return activate(linear(gather_rows(h, "first"), w["pre_classifier"], cfg.dim), "relu")


def predictions(cfg: DistilBertConfig, w: Weights, h: Tensor, matrix: Weights) -> Tensor:
    """Compute the logits of the masked language model at the wanted rows, [n_wanted, vocab_size]."""
    x = transform(h, w["vocab_transform"], w["vocab_layer_norm"], cfg.dim, cfg.activation, LAYER_NORM_EPS)
    return decode(x, matrix, w["vocab_projector"], w["vocab_projector"], cfg.vocab_size)


def build(cfg: DistilBertConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state", or the "logits" of a head, as in BERT."""
    matrix = w["vocab_projector"]
    if w["vocab_transform"].has("weight"):
        e = w["embeddings.word_embeddings"]
        matrix = decoder_matrix(matrix, e, cfg.vocab_size, cfg.dim, tied=cfg.tie_word_embeddings)
    h = transformer(cfg, w, Tokens())
    if task == "sequence-classification":
        outputs = {"logits": linear(pooled(cfg, w, h), w["classifier"], len(cfg.labels))}
    elif task == "masked-lm":
        outputs = {"logits": predictions(cfg, w, h, matrix)}
    elif task == "token-classification":
        outputs = {"logits": linear(h, w["classifier"], len(cfg.labels))}
    elif task == "question-answering":
        outputs = {"logits": linear(h, w["qa_outputs"], 2)}
    elif task == "multiple-choice":
        outputs = {"logits": linear(pooled(cfg, w, h), w["classifier"], 1)}
    else:
        outputs = {"last_hidden_state": h}
    return w.tracer.program(outputs, cfg.max_positions)
