"""RoBERTa (Liu et al. 2019): BERT with positions that start after the padding id, and a different head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, gather_rows, linear
from fastattn.graph.tensor import Tensor, Tokens, Weights
from fastattn.models.bert import HEADS, UNUSED, BertConfig, encoder, head_matrix, read_bert_config, token_outputs
from fastattn.models.config import ConfigReader
from fastattn.models.decoder import decode, transform
from fastattn.models.names import Layout
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("roberta.",),
    anchor="embeddings.position_embeddings.weight",
    tied=("embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    unused=UNUSED,
)
ARCHITECTURES = tuple(f"{family}{head}" for family in ("Roberta", "XLMRoberta") for head in HEADS.split())


def read_config(raw: Mapping[str, object]) -> BertConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "RoBERTa")
    model_type = "xlm-roberta" if raw.get("model_type") == "xlm-roberta" else "roberta"
    vocab_size = c.size("vocab_size", 50265 if model_type == "roberta" else 30522)
    padding = c.count("pad_token_id", 1)
    return read_bert_config(c, c.common(model_type, vocab_size, bos=0, eos=2, pad=1), padding + 1)


def build(cfg: BertConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state" and "pooler_output", or the "logits" of a head, as in BERT."""
    matrix = head_matrix(cfg, w, w["lm_head"], "dense")
    h = encoder(cfg, w, Tokens())
    found = {"logits": predictions(cfg, w, h, matrix)} if task == "masked-lm" else outputs(cfg, w, h, task)
    return w.tracer.program(found, cfg.max_positions)


def predictions(cfg: Any, w: Weights, h: Tensor, matrix: Weights) -> Tensor:
    """Compute the logits of the masked language model at the wanted rows, [n_wanted, vocab_size].

    cfg: the config of a family that has this head. The head has this gelu whatever hidden_act is.
    """
    lm = w["lm_head"]
    x = transform(h, lm["dense"], lm["layer_norm"], cfg.hidden_size, "gelu_erf", cfg.layer_norm_eps)
    return decode(x, matrix, lm["decoder"], lm, cfg.vocab_size)


def outputs(cfg: Any, w: Weights, h: Tensor, task: Task, *, activation: Activation = "tanh") -> dict[str, Tensor]:
    """Compute the outputs of a task from the last hidden state.

    cfg: the config of a family that has this head. activation: the function between its two matrices.
    """
    if task == "sequence-classification":
        head = w["classifier"]
        x = activate(linear(gather_rows(h, "first"), head["dense"], cfg.hidden_size), activation)
        return {"logits": linear(x, head["out_proj"], len(cfg.labels))}
    return token_outputs(cfg, w, h, task)
