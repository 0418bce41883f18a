"""ELECTRA (Clark et al. 2020): BERT's layers with narrower embeddings. There is no pooler.

Discriminators and generators have the same encoder; the heads of their pretraining are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.graph.ir import Program
from fastattn.graph.kinds import linear
from fastattn.graph.tensor import Tensor, Tokens, Weights
from fastattn.models.bert import HARMLESS, HEADS, BertConfig, embeddings, layers, read_layers, read_tables
from fastattn.models.config import ConfigReader, unchangeable
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
ARCHITECTURES = tuple(f"Electra{head}" for head in HEADS.split())


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class ElectraConfig(BertConfig):
    """The options of an ELECTRA, named as in config.json."""

    embedding_size: int


def read_config(raw: Mapping[str, object]) -> ElectraConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "ELECTRA")
    config = ElectraConfig(
        embedding_size=c.size("embedding_size", 128),
        **read_layers(c, width=256, heads=4, inner=1024),
        **read_tables(c),
        **c.common("electra", c.size("vocab_size", 30522), pad=0),
    )
    c.finish(f"{HARMLESS} summary_activation summary_last_dropout summary_type summary_use_proj")
    return config


def encoder(cfg: ElectraConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens, [n_tokens, hidden_size]."""
    h = embeddings(cfg, w, t, cfg.embedding_size)
    if cfg.embedding_size != cfg.hidden_size:
        h = linear(h, w["embeddings_project"], cfg.hidden_size)
    return layers(cfg, w, h)


def build(cfg: ElectraConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state", or "logits" of every sequence."""
    h = encoder(cfg, w, Tokens())
    # The head has this gelu whatever hidden_act is.
    found = {"last_hidden_state": h} if task == "encoder" else outputs(cfg, w, h, task, activation="gelu_erf")
    return w.tracer.program(found, cfg.max_positions)
