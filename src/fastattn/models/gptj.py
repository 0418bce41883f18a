"""GPT-J (Wang and Komatsuzaki 2021): interleaved rotary positions, attention and MLP in parallel after one norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastattn.checkpoint.source import WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, layer_norm, linear, rotary
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.causal import UNUSED_HEADS, architectures, head_matrix, outputs, rotary_tables
from fastattn.models.config import MAX_LAYERS, CommonConfig, ConfigReader, add_names, unchangeable
from fastattn.models.gpt2 import NAMES
from fastattn.models.names import Layout, ModelNames
from fastattn.models.rope import Rope, plain_rope
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("transformer.",),
    anchor="wte.weight",
    tied=("wte.weight", "lm_head.weight"),
    unused=(r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)", r"rotary_emb\.embed_positions", UNUSED_HEADS),
)
ARCHITECTURES = architectures("GPTJ")


@add_names(NAMES)
@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class GptJConfig(CommonConfig):
    """The options of a GPT-J, named as in config.json. rotary_dim: how many elements of each head rotate."""

    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    rotary_dim: int
    activation_function: Activation
    layer_norm_epsilon: float
    tie_word_embeddings: bool

    @property
    def type_vocab_size(self) -> int:
        """The vocabulary size, because token types use the embeddings of tokens."""
        return self.vocab_size

    @property
    def rope(self) -> Rope:
        return plain_rope(self.rotary_dim)


def read_config(raw: Mapping[str, object]) -> GptJConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "GPT-J", NAMES)
    n_embd = c.size("n_embd", 4096)
    n_head = c.heads(n_embd, "n_embd", "n_head", 16)
    rotary_dim = c.size("rotary_dim", 64, low=2)
    if rotary_dim % 2 or rotary_dim > n_embd // n_head:
        raise c.error("rotary_dim", f"an even number of at most n_embd / n_head = {n_embd // n_head}")
    for key in ("rope_theta", "rope_scaling", "rope_parameters", "rotary"):
        c.must_be(key, None, *((True,) if key == "rotary" else ()))
    c.must_be("scale_attn_weights", True, None)
    config = GptJConfig(
        n_positions=c.size("n_positions", 2048),
        n_embd=n_embd,
        n_layer=c.size("n_layer", 28, high=MAX_LAYERS),
        n_head=n_head,
        n_inner=c.size("n_inner", 4 * n_embd),
        rotary_dim=rotary_dim,
        activation_function=c.activation("activation_function", "gelu_new"),
        layer_norm_epsilon=c.epsilon("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=c.flag("tie_word_embeddings", False),
        **c.common("gptj", c.size("vocab_size", 50400), bos=50256, eos=50256),
    )
    c.finish(
        "attn_pdrop embd_pdrop resid_pdrop n_ctx summary_activation summary_first_dropout summary_proj_to_labels "
        "summary_type summary_use_proj"
    )
    return config


def computed(cfg: GptJConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the rotary table."""
    return rotary_tables({"rotary": cfg.rope}, cfg.max_positions, interleaved=True)


def transformer(cfg: GptJConfig, w: Weights, t: Tokens, *, types: bool = False) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, n_embd].

    types: add the embeddings of the token types, which are rows of the same table.
    """
    d, eps = cfg.n_embd, cfg.layer_norm_epsilon
    h = embedding(w["wte"], t.ids, cfg.vocab_size, d)
    if types:
        h = h + embedding(w["wte"], t.type_ids, cfg.vocab_size, d)
    turn: dict[str, Any] = {"n_head": cfg.n_head, "dimensions": cfg.rotary_dim, "max_positions": cfg.max_positions}
    for i in range(cfg.n_layer):
        b, h = w[f"h.{i}"], hidden_state(h)
        x = layer_norm(h, b["ln_1"], eps)
        q, k, v = (linear(x, b[f"attn.{name}_proj"], d, bias=False) for name in "qkv")
        q, k = (rotary(y, w["rotary"], interleaved=True, **turn) for y in (q, k))
        a = linear(attention(q, k, v, layer=i, n_head=cfg.n_head, causal=True), b["attn.out_proj"], d, bias=False)
        m = activate(linear(x, b["mlp.fc_in"], cfg.n_inner), cfg.activation_function)
        h = (h + a) + linear(m, b["mlp.fc_out"], d)
    return hidden_state(layer_norm(h, w["ln_f"], eps))


def build(cfg: GptJConfig, w: Weights, task: Task, *, types: bool = False) -> Program:
    """Build the Program of a task; see `outputs`. types: whether to add token types."""
    head = head_matrix(cfg, w, w["wte"])
    h = transformer(cfg, w, Tokens(), types=types)
    return w.tracer.program(outputs(cfg, w, h, task, head, bias=w["lm_head"]), cfg.max_positions)
