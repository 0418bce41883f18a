"""GPT-Neo (Black et al. 2021): a GPT-2 without scaled scores, with local attention in every second layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, layer_norm, linear
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.causal import architectures, head_matrix, outputs
from fastattn.models.config import MAX_LAYERS, CommonConfig, ConfigReader, add_names, unchangeable
from fastattn.models.names import Layout
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("transformer.",),
    anchor="wpe.weight",
    tied=("wte.weight", "lm_head.weight"),
    unused=(r"h\.\d+\.attn\.attention\.(bias|masked_bias)", r"(lm_head|score|classifier|qa_outputs)\..*"),
)
ARCHITECTURES = architectures("GPTNeo")
NAMES = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}  # transformers' common option names


@add_names(NAMES)
@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class GptNeoConfig(CommonConfig):
    """The options of a GPT-Neo, named as in config.json. attention_layers: "global" or "local" for each layer."""

    max_position_embeddings: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    window_size: int
    attention_layers: tuple[str, ...]
    activation_function: Activation
    layer_norm_epsilon: float
    tie_word_embeddings: bool

    @property
    def type_vocab_size(self) -> int:
        """The vocabulary size, because token types use the embeddings of tokens."""
        return self.vocab_size


def read_config(raw: Mapping[str, object]) -> GptNeoConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "GPT-Neo", NAMES)
    width, layers = c.size("hidden_size", 2048), c.size("num_layers", 24, high=MAX_LAYERS)
    inner = c.raw("intermediate_size")
    config = GptNeoConfig(
        max_position_embeddings=c.size("max_position_embeddings", 2048),
        hidden_size=width,
        num_layers=layers,
        num_heads=c.heads(width, "hidden_size", "num_heads", 16),
        intermediate_size=4 * width if inner is None else c.size("intermediate_size"),
        window_size=c.size("window_size", 256),
        attention_layers=_attention_layers(c, layers),
        activation_function=c.activation("activation_function", "gelu_new"),
        layer_norm_epsilon=c.epsilon("layer_norm_epsilon", 1e-5),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        **c.common("gpt_neo", c.size("vocab_size", 50257), bos=50256, eos=50256),
    )
    c.finish(
        "attention_dropout embed_dropout resid_dropout gradient_checkpointing summary_activation "
        "summary_first_dropout summary_proj_to_labels summary_type summary_use_proj"
    )
    return config


def _attention_layers(c: ConfigReader, layers: int) -> tuple[str, ...]:
    """Read attention_types, [[["global", "local"], 12]]: names, and how often they repeat. Check attention_layers."""
    given = c.raw("attention_types")
    given = [[["global", "local"], 12]] if given is None else given
    error = c.error("attention_types", f'pairs of a list of "global" and "local" and a count, for {layers} layers')
    found: list[Any] = []
    for item in given if isinstance(given, list) else [None]:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], list) or type(item[1]) is not int:
            raise error
        if not 0 <= item[1] <= MAX_LAYERS or len(item[0]) > MAX_LAYERS:
            raise error
        found += item[0] * item[1]
    if len(found) != layers or any(name not in ("global", "local") for name in found):
        raise error
    c.must_be("attention_layers", found)
    return tuple(found)


def transformer(cfg: GptNeoConfig, w: Weights, t: Tokens, *, types: bool = False) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, hidden_size].

    types: add the embeddings of the token types, which are rows of the same table.
    """
    d, eps = cfg.hidden_size, cfg.layer_norm_epsilon
    h = embedding(w["wte"], t.ids, cfg.vocab_size, d)
    h = h + embedding(w["wpe"], t.positions, cfg.max_position_embeddings, d)
    if types:
        h = h + embedding(w["wte"], t.type_ids, cfg.vocab_size, d)
    for i, kind in enumerate(cfg.attention_layers):
        b, h = w[f"h.{i}"], hidden_state(h)
        x, a = layer_norm(h, b["ln_1"], eps), b["attn.attention"]
        q, k, v = (linear(x, a[f"{name}_proj"], d, bias=False) for name in "qkv")
        window = cfg.window_size if kind == "local" else 0
        y = attention(q, k, v, layer=i, n_head=cfg.num_heads, causal=True, scale=1.0, window=window)
        h = h + linear(y, a["out_proj"], d)
        m = linear(layer_norm(h, b["ln_2"], eps), b["mlp.c_fc"], cfg.intermediate_size)
        h = h + linear(activate(m, cfg.activation_function), b["mlp.c_proj"], d)
    return hidden_state(layer_norm(h, w["ln_f"], eps))


def build(cfg: GptNeoConfig, w: Weights, task: Task, *, types: bool = False) -> Program:
    """Build the Program of a task; see `outputs`. types: whether to add token types."""
    head = head_matrix(cfg, w, w["wte"])
    h = transformer(cfg, w, Tokens(), types=types)
    return w.tracer.program(outputs(cfg, w, h, task, head, token_head="classifier"), cfg.max_positions)
