"""ALBERT (Lan et al. 2020): BERT with narrower embeddings, and layers that share their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.graph.ir import Program
from fastattn.graph.kinds import activate, attention, gather_rows, layer_norm, linear
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.bert import HARMLESS, HEADS, BertConfig, embeddings, read_layers, read_tables
from fastattn.models.config import MAX_LAYERS, ConfigReader, unchangeable
from fastattn.models.decoder import decode, decoder_matrix, transform
from fastattn.models.names import Layout
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("albert.",),
    anchor="embeddings.position_embeddings.weight",
    tied=("embeddings.word_embeddings.weight", "predictions.decoder.weight"),
    unused=(
        r"embeddings\.(position_ids|token_type_ids)",
        r"(classifier|pooler|predictions|qa_outputs|sop_classifier)\..*",
    ),
)
ARCHITECTURES = tuple(f"Albert{head}" for head in HEADS.split())
# Options of the original code, which transformers ignores. With other values, config.json describes another model than
# the one that transformers computes.
STRUCTURE = {"down_scale_factor": 1, "gap_size": 0, "net_structure_type": 0, "num_memory_blocks": 0}


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class AlbertConfig(BertConfig):
    """The options of an ALBERT, named as in config.json."""

    embedding_size: int
    num_hidden_groups: int
    inner_group_num: int


def read_config(raw: Mapping[str, object]) -> AlbertConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "ALBERT")
    for key, value in STRUCTURE.items():
        c.must_be(key, value, None)
    config = AlbertConfig(
        embedding_size=c.size("embedding_size", 128),
        num_hidden_groups=c.size("num_hidden_groups", 1, high=MAX_LAYERS),
        inner_group_num=c.size("inner_group_num", 1, high=MAX_LAYERS),
        **read_layers(c, width=4096, heads=64, inner=16384, act="gelu_new"),
        **read_tables(c),
        **c.common("albert", c.size("vocab_size", 30000), bos=2, eos=3, pad=0),
    )
    if config.num_hidden_layers * config.inner_group_num > MAX_LAYERS:
        most = MAX_LAYERS // config.num_hidden_layers
        raise c.error("inner_group_num", f"at most {most} with num_hidden_layers = {config.num_hidden_layers}")
    c.finish(f"{HARMLESS} classifier_dropout_prob")
    return config


def encoder(cfg: AlbertConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens, [n_tokens, hidden_size].

    Every layer runs the inner layers of its group; the layers of a group have the same weights.
    """
    h = embeddings(cfg, w, t, cfg.embedding_size)
    h = hidden_state(linear(h, w["encoder.embedding_hidden_mapping_in"], cfg.hidden_size))
    for i in range(cfg.num_hidden_layers):
        group = int(i / (cfg.num_hidden_layers / cfg.num_hidden_groups))  # transformers' formula, with its rounding
        for j in range(cfg.inner_group_num):
            b = w[f"encoder.albert_layer_groups.{group}.albert_layers.{j}"]
            h = layer(cfg, b, h, i * cfg.inner_group_num + j)
    return h


def layer(cfg: AlbertConfig, b: Weights, h: Tensor, number: int) -> Tensor:
    """Compute one layer; b: its weights."""
    d, eps = cfg.hidden_size, cfg.layer_norm_eps
    q, k, v = (linear(h, b[f"attention.{name}"], d) for name in ("query", "key", "value"))
    a = attention(q, k, v, layer=number, n_head=cfg.num_attention_heads, causal=False)
    h = layer_norm(h + linear(a, b["attention.dense"], d), b["attention.LayerNorm"], eps)
    m = linear(activate(linear(h, b["ffn"], cfg.intermediate_size), cfg.hidden_act), b["ffn_output"], d)
    return hidden_state(layer_norm(h + m, b["full_layer_layer_norm"], eps))


def pooler(cfg: AlbertConfig, w: Weights, h: Tensor) -> Tensor:
    """Compute tanh of a linear over the first token ([CLS]), [n_sequences, hidden_size]."""
    return activate(linear(gather_rows(h, "first"), w["pooler"], cfg.hidden_size), "tanh")


def head_matrix(cfg: AlbertConfig, w: Weights) -> Weights:
    """Return the `Weights` of the masked language model's output matrix."""
    head = w["predictions"]
    if not head["dense"].has("weight"):
        return head["decoder"]  # there is no such head
    e, width = w["embeddings.word_embeddings"], cfg.embedding_size
    return decoder_matrix(head["decoder"], e, cfg.vocab_size, width, tied=cfg.tie_word_embeddings)


def predictions(cfg: AlbertConfig, w: Weights, h: Tensor, matrix: Weights) -> Tensor:
    """Compute the logits of the masked language model at the wanted rows, [n_wanted, vocab_size]."""
    head = w["predictions"]
    x = transform(h, head["dense"], head["LayerNorm"], cfg.embedding_size, cfg.hidden_act, cfg.layer_norm_eps)
    return decode(x, matrix, head["decoder"], head, cfg.vocab_size)


def build(cfg: AlbertConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state" and "pooler_output", or the "logits" of a head, as in BERT.

    A model for pre-training also has "sop_logits" of every sequence: of the order of its two texts.
    """
    matrix = head_matrix(cfg, w)
    h = encoder(cfg, w, Tokens())
    if task == "sequence-classification":
        outputs = {"logits": linear(pooler(cfg, w, h), w["classifier"], len(cfg.labels))}
    elif task == "masked-lm":
        outputs = {"logits": predictions(cfg, w, h, matrix)}
    elif task == "pre-training":
        order = linear(pooler(cfg, w, h), w["sop_classifier.classifier"], len(cfg.labels))
        outputs = {"logits": predictions(cfg, w, h, matrix), "sop_logits": order}
    elif task == "token-classification":
        outputs = {"logits": linear(h, w["classifier"], len(cfg.labels))}
    elif task == "question-answering":
        outputs = {"logits": linear(h, w["qa_outputs"], 2)}
    elif task == "multiple-choice":
        outputs = {"logits": linear(pooler(cfg, w, h), w["classifier"], 1)}
    else:
        outputs = {"last_hidden_state": h}
        if w["pooler"].has("weight"):
            outputs["pooler_output"] = pooler(cfg, w, h)
    return w.tracer.program(outputs, cfg.max_positions)
