"""What decoder families share: how they read heads and layers, the rotary tables, the outputs of every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastattn.checkpoint.source import ComputedSource, WeightSource
from fastattn.errors import ConfigError
from fastattn.graph.kinds import Activation, activate, gather_rows, linear, rotary
from fastattn.graph.rotary_table import RotaryTable
from fastattn.graph.tensor import Tensor, Weights
from fastattn.models.config import CommonConfig, ConfigReader, unchangeable
from fastattn.models.decoder import decoder_matrix
from fastattn.models.rope import Rope
from fastattn.models.tasks import Task

DECODER_TASKS: tuple[Task, ...] = (
    "causal-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "encoder",
)
LABEL_TASKS: tuple[Task, ...] = ("causal-lm", "sequence-classification", "token-classification", "encoder")
SCORE_TASKS: tuple[Task, ...] = ("causal-lm", "sequence-classification", "encoder")
UNTAGGED_TASKS: tuple[Task, ...] = ("causal-lm", "sequence-classification", "question-answering", "encoder")
# The prefixes of classifiers' tensor names: SCORES for families whose token classifier is `score`, CLASSIFIERS for
# those whose token classifier is `classifier`.
SCORES: Mapping[Task, tuple[str, ...]] = {"sequence-classification": ("score.",), "token-classification": ("score.",)}
CLASSIFIERS: Mapping[Task, tuple[str, ...]] = {"sequence-classification": ("score.",)}
HEAD_NAMES = ("lm_head", "score", "qa_outputs")
UNUSED_HEADS = rf"({'|'.join(HEAD_NAMES)})\..*"
FULL, LOCAL = "full_attention", "sliding_attention"


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(CommonConfig):
    """The options of a decoder without token types."""

    tie_word_embeddings: bool

    @property
    def type_vocab_size(self) -> int | None:
        """None, because there are no token types."""
        return None


class _Config(Protocol):
    """The options that this file reads."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def labels(self) -> tuple[str, ...]: ...


def architectures(name: str) -> tuple[str, ...]:
    """Return transformers' class names of a decoder family."""
    heads = "Model ForCausalLM ForSequenceClassification ForTokenClassification ForQuestionAnswering"
    return tuple(f"{name}{head}" for head in heads.split())


def key_heads(c: ConfigReader, n_head: int, default: int | None, *, may_be_null: bool = True) -> int:
    """Read num_key_value_heads, a divisor of the number of heads.

    Null means the number of heads, and so does default=None. may_be_null: whether null is accepted.
    """
    null = may_be_null and "num_key_value_heads" in c.values and c.raw("num_key_value_heads") is None
    count = n_head if null else c.size("num_key_value_heads", default or n_head)
    if n_head % count:
        raise c.error("num_key_value_heads", f"a divisor of the number of heads = {n_head}")
    return count


def size_of_heads(c: ConfigReader, width: int, n_head: int, *, may_be_null: bool = True) -> int:
    """Read head_dim; the default is width / n_head."""
    if (may_be_null and c.raw("head_dim") is None) or "head_dim" not in c.values:
        if width % n_head:
            raise c.error("num_attention_heads", f"a divisor of hidden_size = {width}, because head_dim is missing")
        return width // n_head
    return c.size("head_dim")


def check_rotary(c: ConfigReader, head_dim: int, *ropes: Rope) -> None:
    """Raise ConfigError if the frequencies are not those of whole heads: an odd head_dim, or a part of it."""
    for rope in ropes:
        if 2 * len(rope.frequencies) > head_dim:
            raise c.error("head_dim", "an even number")
        if 2 * len(rope.frequencies) < head_dim:
            raise ConfigError(
                f"{c.where}: partial_rotary_factor: expected 1 for this family, which rotates whole heads"
            )


def layer_types(c: ConfigReader, default: Sequence[str]) -> tuple[str, ...]:
    """Read layer_types, one of full_attention and sliding_attention for every layer."""
    types = c.texts("layer_types") or tuple(default)
    if len(types) != len(default) or not set(types) <= {FULL, LOCAL}:
        raise c.error("layer_types", f"{len(default)} names, each {FULL} or {LOCAL}")
    return types


def rotary_tables(ropes: Mapping[str, Rope], positions: int, *, interleaved: bool = False) -> dict[str, WeightSource]:
    """Return the rotary tables by the names of their weights. ropes: by the name of the table."""
    sources: dict[str, WeightSource] = {}
    for name, rope in ropes.items():
        table = RotaryTable(
            frequencies=rope.frequencies,
            positions=positions,
            factor=rope.attention_factor,
            interleaved=interleaved,
        )
        sources[f"{name}.weight"] = ComputedSource(f"{name}.weight", table.shape, table.rows)
    return sources


def head_matrix(cfg: _Config, w: Weights, embeddings: Weights, name: str = "lm_head") -> Weights:
    """Return the `Weights` of the output matrix: `name`, or the token embeddings if they are tied."""
    return decoder_matrix(w[name], embeddings, cfg.vocab_size, cfg.hidden_size, tied=cfg.tie_word_embeddings)


def rotate(x: Tensor, table: Weights, rope: Rope, n_head: int, positions: int) -> Tensor:
    """Rotate the heads of queries or keys by their positions. table: the `Weights` of a table of `rotary_tables`."""
    return rotary(x, table, n_head=n_head, dimensions=2 * len(rope.frequencies), max_positions=positions)


def gated_mlp(x: Tensor, w: Weights, inner: int, activation: Activation, *, bias: bool = False) -> Tensor:
    """Compute down(activation(gate(x)) * up(x)), with `inner` columns in between."""
    gate, up = (linear(x, w[name], inner, bias=bias) for name in ("gate_proj", "up_proj"))
    return linear(activate(gate, activation) * up, w["down_proj"], x.width, bias=bias)


def outputs(
    cfg: _Config,
    w: Weights,
    h: Tensor,
    task: Task,
    head: Weights,
    *,
    bias: bool | Weights = False,
    token_head: str = "score",
) -> dict[str, Tensor]:
    """Return the outputs of a task: "logits" of the wanted rows or of all tokens, or "last_hidden_state".

    h: the hidden states after the last norm. head: the `Weights` of the output matrix. bias: as in `linear`.
    token_head: the name of the token classifier.

    A sequence classifier has one wanted row per sequence. As in transformers, this is the last token that is not
    padding.
    """
    if task == "causal-lm":
        return {"logits": linear(gather_rows(h, "wanted"), head, cfg.vocab_size, bias=bias)}
    if task == "sequence-classification":
        return {"logits": linear(gather_rows(h, "wanted"), w["score"], len(cfg.labels), bias=False)}
    if task == "token-classification":
        return {"logits": linear(h, w[token_head], len(cfg.labels))}
    if task == "question-answering":
        return {"logits": linear(h, w["qa_outputs"], 2)}
    return {"last_hidden_state": h}
