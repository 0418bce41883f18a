"""BERT (Devlin et al. 2018) in checkpoint names; also MiniLM and most sentence encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, gather_rows, layer_norm, linear
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.config import MAX_LAYERS, MAX_SIZE, CommonConfig, ConfigReader, unchangeable
from fastattn.models.decoder import decode, decoder_matrix, transform
from fastattn.models.names import Layout
from fastattn.models.tasks import Task

# Other tensors that a checkpoint may have: buffers, and the heads of other tasks.
UNUSED = (r"embeddings\.(position_ids|token_type_ids)", r"(cls|classifier|lm_head|pooler|qa_outputs)\..*")
LAYOUT = Layout(
    prefixes=("bert.",),
    anchor="embeddings.position_embeddings.weight",
    tied=("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    unused=UNUSED,
)
# Options of BERT and its relatives that do not affect the result.
HARMLESS = (
    "attention_probs_dropout_prob directionality hidden_dropout_prob pooler_fc_size pooler_num_attention_heads "
    "pooler_num_fc_layers pooler_size_per_head pooler_type"
)
HEADS = (
    "Model ForSequenceClassification ForMaskedLM ForPreTraining ForNextSentencePrediction ForTokenClassification "
    "ForQuestionAnswering ForMultipleChoice ForCausalLM LMHeadModel"
)
ARCHITECTURES = tuple(f"Bert{head}" for head in HEADS.split())


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig(CommonConfig):
    """The options of a BERT, RoBERTa or CamemBERT, named as in config.json."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: Activation
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    tie_word_embeddings: bool


_Config = TypeVar("_Config", bound=BertConfig)


def read_config(raw: Mapping[str, object]) -> BertConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "BERT")
    return read_bert_config(c, c.common("bert", c.size("vocab_size", 30522), pad=0))


def read_bert_config(c: ConfigReader, common: Mapping[str, Any], position_offset: int = 0) -> BertConfig:
    """Read the config of a BERT, RoBERTa or CamemBERT."""
    config = BertConfig(**read_layers(c, position_offset=position_offset), **read_tables(c), **common)
    c.finish(HARMLESS)
    return config


def read_layers(
    c: ConfigReader,
    *,
    width: int = 768,
    heads: int = 12,
    inner: int = 3072,
    act: str = "gelu",
    layers: int = 12,
    eps: float = 1e-12,
    position_offset: int = 0,
    most_positions: int = MAX_SIZE,
) -> dict[str, Any]:
    """Read the options of embeddings and layers, which BERT's relatives share.

    position_offset, most_positions: the limits of max_position_embeddings. The other keywords are the defaults.
    """
    hidden_size = c.size("hidden_size", width)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": c.size("num_hidden_layers", layers, high=MAX_LAYERS),
        "num_attention_heads": c.heads(hidden_size, "hidden_size", "num_attention_heads", heads),
        "intermediate_size": c.size("intermediate_size", inner),
        "hidden_act": c.activation("hidden_act", act),
        "max_position_embeddings": c.size("max_position_embeddings", 512, low=position_offset + 1, high=most_positions),
        "layer_norm_eps": c.epsilon("layer_norm_eps", eps),
        "position_offset": position_offset,
    }


def read_tables(c: ConfigReader) -> dict[str, Any]:
    """Read the number of token types, and whether a masked language model's matrix is that of the embeddings."""
    return {
        "type_vocab_size": c.size("type_vocab_size", 2),
        "tie_word_embeddings": c.flag("tie_word_embeddings", True),
    }


def encoder(cfg: BertConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens, [n_tokens, hidden_size]."""
    return layers(cfg, w, embeddings(cfg, w, t, cfg.hidden_size))


def embeddings(cfg: BertConfig, w: Weights, t: Tokens, width: int) -> Tensor:
    """Compute the normalized sums of the embeddings of words, token types and positions, [n_tokens, width]."""
    e = w["embeddings"]
    h = embedding(e["word_embeddings"], t.ids, cfg.vocab_size, width)
    h = h + embedding(e["token_type_embeddings"], t.type_ids, cfg.type_vocab_size, width)
    positions = cfg.max_position_embeddings
    h = h + embedding(e["position_embeddings"], t.positions, positions, width, offset=cfg.position_offset)
    return layer_norm(h, e["LayerNorm"], cfg.layer_norm_eps)


def layers(cfg: BertConfig, w: Weights, h: Tensor) -> Tensor:
    """Compute all layers from the first hidden state, [n_tokens, hidden_size]."""
    d, eps = cfg.hidden_size, cfg.layer_norm_eps
    h = hidden_state(h)
    for i in range(cfg.num_hidden_layers):
        b = w[f"encoder.layer.{i}"]
        q, k, v = (linear(h, b[f"attention.self.{name}"], d) for name in ("query", "key", "value"))
        a = attention(q, k, v, layer=i, n_head=cfg.num_attention_heads, causal=False)
        h = layer_norm(h + linear(a, b["attention.output.dense"], d), b["attention.output.LayerNorm"], eps)
        m = activate(linear(h, b["intermediate.dense"], cfg.intermediate_size), cfg.hidden_act)
        h = hidden_state(layer_norm(h + linear(m, b["output.dense"], d), b["output.LayerNorm"], eps))
    return h


def pooler(cfg: Any, w: Weights, h: Tensor) -> Tensor:
    """Compute tanh of a linear over the first token ([CLS]), [n_sequences, hidden_size]."""
    return activate(linear(gather_rows(h, "first"), w["pooler.dense"], cfg.hidden_size), "tanh")


def predictions(cfg: BertConfig, w: Weights, h: Tensor, matrix: Weights) -> Tensor:
    """Compute the logits of the masked language model at the wanted rows, [n_wanted, vocab_size]."""
    head = w["cls.predictions"]
    dense, norm = head["transform.dense"], head["transform.LayerNorm"]
    x = transform(h, dense, norm, cfg.hidden_size, cfg.hidden_act, cfg.layer_norm_eps)
    return decode(x, matrix, head["decoder"], head, cfg.vocab_size)


def head_matrix(cfg: Any, w: Weights, head: Weights, first: str) -> Weights:
    """Return the `Weights` of the masked language model's output matrix. first: the name of the head's first matrix."""
    if not head[first].has("weight"):
        return head["decoder"]  # there is no such head
    e = w["embeddings.word_embeddings"]
    return decoder_matrix(head["decoder"], e, cfg.vocab_size, cfg.hidden_size, tied=cfg.tie_word_embeddings)


def token_outputs(cfg: Any, w: Weights, h: Tensor, task: Task) -> dict[str, Tensor]:
    """Compute the outputs of the tasks whose heads are the same in BERT and RoBERTa."""
    if task == "token-classification":
        return {"logits": linear(h, w["classifier"], len(cfg.labels))}
    if task == "question-answering":
        return {"logits": linear(h, w["qa_outputs"], 2)}
    if task == "multiple-choice":
        return {"logits": linear(pooler(cfg, w, h), w["classifier"], 1)}
    outputs = {"last_hidden_state": h}
    if w["pooler.dense"].has("weight"):
        outputs["pooler_output"] = pooler(cfg, w, h)
    return outputs


def build(cfg: BertConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state" and "pooler_output", or the "logits" of a head.

    Depending on the task, there is one row of logits per sequence, per token, or (masked language model) per wanted
    row. A model for pre-training also has "seq_relationship_logits" of every sequence.
    """
    return build_heads(cfg, w, task, encoder)


def build_heads(cfg: _Config, w: Weights, task: Task, encoder: Callable[[_Config, Weights, Tokens], Tensor]) -> Program:
    """Build the Program of a task with BERT's heads. encoder: computes the hidden states of all tokens."""
    matrix = head_matrix(cfg, w, w["cls.predictions"], "transform.dense")
    h = encoder(cfg, w, Tokens())
    if task == "sequence-classification":
        outputs = {"logits": linear(pooler(cfg, w, h), w["classifier"], len(cfg.labels))}
    elif task == "masked-lm":
        outputs = {"logits": predictions(cfg, w, h, matrix)}
    elif task == "next-sentence-prediction":
        outputs = {"logits": linear(pooler(cfg, w, h), w["cls.seq_relationship"], 2)}
    elif task == "pre-training":
        next_sentence = linear(pooler(cfg, w, h), w["cls.seq_relationship"], 2)
        outputs = {"logits": predictions(cfg, w, h, matrix), "seq_relationship_logits": next_sentence}
    else:
        outputs = token_outputs(cfg, w, h, task)
    return w.tracer.program(outputs, cfg.max_positions)
