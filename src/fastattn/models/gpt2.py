"""GPT-2 (Radford et al. 2019) in checkpoint names; also distilgpt2, gpt2-medium, -large and -xl."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, gather_rows, layer_norm, linear, split
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.config import MAX_LAYERS, CommonConfig, ConfigReader, add_names, unchangeable
from fastattn.models.names import Layout
from fastattn.models.tasks import Task

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
LAYOUT = Layout(
    prefixes=("transformer.",),
    transposed=CONV1D,
    anchor="wpe.weight",
    tied=("wte.weight", "lm_head.weight"),
    unused=(r"h\.\d+\.attn\.(bias|masked_bias)", r"(lm_head|score|classifier|qa_outputs|multiple_choice_head)\..*"),
)
HEADS = "Model LMHeadModel DoubleHeadsModel ForSequenceClassification ForTokenClassification ForQuestionAnswering"
ARCHITECTURES = tuple(f"GPT2{head}" for head in HEADS.split())


# transformers' common option names.
NAMES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


@add_names(NAMES)
@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class Gpt2Config(CommonConfig):
    """The options of a GPT-2, named as in config.json."""

    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    activation_function: Activation
    layer_norm_epsilon: float
    scale_attn_weights: bool
    tie_word_embeddings: bool

    @property
    def type_vocab_size(self) -> int:
        """The vocabulary size, because token types use the embeddings of tokens."""
        return self.vocab_size


def read_config(raw: Mapping[str, object]) -> Gpt2Config:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "GPT-2", NAMES)
    vocab_size, n_embd = c.size("vocab_size", 50257), c.size("n_embd", 768)
    c.must_be("reorder_and_upcast_attn", False)
    c.must_be("scale_attn_by_inverse_layer_idx", False)
    config = Gpt2Config(
        n_positions=c.size("n_positions", 1024),
        n_embd=n_embd,
        n_layer=c.size("n_layer", 12, high=MAX_LAYERS),
        n_head=c.heads(n_embd, "n_embd", "n_head", 12),
        n_inner=c.size("n_inner", 4 * n_embd),
        activation_function=c.activation("activation_function", "gelu_new"),
        layer_norm_epsilon=c.epsilon("layer_norm_epsilon", 1e-5),
        scale_attn_weights=c.flag("scale_attn_weights", True),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        **c.common("gpt2", vocab_size, bos=50256, eos=50256),
    )
    c.finish(
        "attn_pdrop embd_pdrop n_ctx resid_pdrop summary_activation summary_first_dropout summary_proj_to_labels "
        "summary_type summary_use_proj"
    )
    return config


def transformer(cfg: Gpt2Config, w: Weights, t: Tokens, *, types: bool = False) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, n_embd].

    types: add the embeddings of the token types, which are rows of the same table.
    """
    d, eps = cfg.n_embd, cfg.layer_norm_epsilon
    scale = None if cfg.scale_attn_weights else 1.0
    h = embedding(w["wte"], t.ids, cfg.vocab_size, d) + embedding(w["wpe"], t.positions, cfg.n_positions, d)
    if types:
        h = h + embedding(w["wte"], t.type_ids, cfg.vocab_size, d)
    for i in range(cfg.n_layer):
        b = w[f"h.{i}"]
        h = hidden_state(h)
        q, k, v = split(linear(layer_norm(h, b["ln_1"], eps), b["attn.c_attn"], 3 * d), 3)
        a = attention(q, k, v, layer=i, n_head=cfg.n_head, causal=True, scale=scale)
        h = h + linear(a, b["attn.c_proj"], d)
        m = activate(linear(layer_norm(h, b["ln_2"], eps), b["mlp.c_fc"], cfg.n_inner), cfg.activation_function)
        h = h + linear(m, b["mlp.c_proj"], d)
    return hidden_state(layer_norm(h, w["ln_f"], eps))


def build(cfg: Gpt2Config, w: Weights, task: Task, *, types: bool = False) -> Program:
    """Build the Program of a task: "logits" of the wanted rows or of all tokens, or "last_hidden_state".

    A sequence classifier has one wanted row per sequence. As in transformers, this is the last token that is not
    padding.
    types: whether to add token types.
    """
    head = w["lm_head"]
    if not head.has("weight") and (cfg.tie_word_embeddings or head.repeats("weight")):
        head = w["wte"]
        head.matrix(cfg.vocab_size, cfg.n_embd)  # for every task, so it is rounded the same way in all of them
    h = transformer(cfg, w, Tokens(), types=types)
    if task == "causal-lm":
        outputs = {"logits": linear(gather_rows(h, "wanted"), head, cfg.vocab_size, bias=False)}
    elif task == "sequence-classification":
        outputs = {"logits": linear(gather_rows(h, "wanted"), w["score"], len(cfg.labels), bias=False)}
    elif task == "token-classification":
        outputs = {"logits": linear(h, w["classifier"], len(cfg.labels))}
    elif task == "question-answering":
        outputs = {"logits": linear(h, w["qa_outputs"], 2)}
    else:
        outputs = {"last_hidden_state": h}
    return w.tracer.program(outputs, cfg.max_positions)
