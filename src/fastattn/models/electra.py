"""ELECTRA (Clark et al. 2020): BERT's layers with narrower embeddings. There is no pooler.

Discriminators and generators have the same encoder. A generator is a masked language model; a discriminator finds the
tokens that a generator replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, gather_rows, linear, pool
from fastattn.graph.tensor import Tensor, Tokens, Weights
from fastattn.models.bert import HARMLESS, HEADS, BertConfig, embeddings, layers, read_layers, read_tables
from fastattn.models.config import ConfigReader, unchangeable
from fastattn.models.decoder import decode, decoder_matrix, transform
from fastattn.models.names import Layout
from fastattn.models.roberta import outputs
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("electra.",),
    anchor="embeddings.position_embeddings.weight",
    tied=("embeddings.word_embeddings.weight", "generator_lm_head.weight"),
    unused=(
        r"embeddings\.(position_ids|token_type_ids)",
        r"(classifier|discriminator_predictions|generator_lm_head|generator_predictions|qa_outputs)\..*",
        r"sequence_summary\..*",
    ),
)
SUMMARIES = ("first", "last", "mean", "cls_index")  # without an index, cls_index is the last token
ARCHITECTURES = tuple(f"Electra{head}" for head in HEADS.split())


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class ElectraConfig(BertConfig):
    """The options of an ELECTRA, named as in config.json. The summary is a part of the head for multiple choice."""

    embedding_size: int
    summary_type: str
    summary_use_proj: bool
    summary_activation: Activation


def read_config(raw: Mapping[str, object]) -> ElectraConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "ELECTRA")
    c.must_be("summary_proj_to_labels", False, None)
    config = ElectraConfig(
        embedding_size=c.size("embedding_size", 128),
        summary_type=c.choice("summary_type", SUMMARIES, "first"),
        summary_use_proj=c.flag("summary_use_proj", True),
        summary_activation=_summary_activation(c),
        **read_layers(c, width=256, heads=4, inner=1024),
        **read_tables(c),
        **c.common("electra", c.size("vocab_size", 30522), pad=0),
    )
    c.finish(f"{HARMLESS} summary_first_dropout summary_last_dropout")
    return config


def _summary_activation(c: ConfigReader) -> Activation:
    """Read the activation of the summary; null means none."""
    if "summary_activation" in c.values and "summary_activation" not in c:
        c.ignore("summary_activation")
        return "none"
    return c.activation("summary_activation", "gelu")


def encoder(cfg: ElectraConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens, [n_tokens, hidden_size]."""
    h = embeddings(cfg, w, t, cfg.embedding_size)
    if cfg.embedding_size != cfg.hidden_size:
        h = linear(h, w["embeddings_project"], cfg.hidden_size)
    return layers(cfg, w, h)


def build(cfg: ElectraConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state", or the "logits" of a head, as in BERT.

    Pre-training is the discriminator: one logit per token.
    """
    head, generator, width = w["generator_lm_head"], w["generator_predictions"], cfg.embedding_size
    matrix = head
    if generator["dense"].has("weight"):
        e = w["embeddings.word_embeddings"]
        matrix = decoder_matrix(head, e, cfg.vocab_size, width, tied=cfg.tie_word_embeddings)
    h = encoder(cfg, w, Tokens())
    if task == "encoder":
        found = {"last_hidden_state": h}
    elif task == "masked-lm":
        # This head and the sequence classifier use this gelu, whatever hidden_act is.
        x = transform(h, generator["dense"], generator["LayerNorm"], width, "gelu_erf", cfg.layer_norm_eps)
        found = {"logits": decode(x, matrix, head, head, cfg.vocab_size)}
    elif task == "pre-training":
        discriminator = w["discriminator_predictions"]
        x = activate(linear(h, discriminator["dense"], cfg.hidden_size), cfg.hidden_act)
        found = {"logits": linear(x, discriminator["dense_prediction"], 1)}
    elif task == "multiple-choice":
        found = {"logits": linear(summary(cfg, w, h), w["classifier"], 1)}
    else:
        found = outputs(cfg, w, h, task, activation="gelu_erf")
    return w.tracer.program(found, cfg.max_positions)


def summary(cfg: ElectraConfig, w: Weights, h: Tensor) -> Tensor:
    """Compute one row per sequence for multiple choice, [n_sequences, hidden_size]."""
    if cfg.summary_type == "mean":
        x = pool(h, "mean")
    else:
        x = gather_rows(h, "first" if cfg.summary_type == "first" else "last")
    if cfg.summary_use_proj:
        x = linear(x, w["sequence_summary.summary"], cfg.hidden_size)
    return activate(x, cfg.summary_activation)
