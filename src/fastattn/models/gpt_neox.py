"""GPT-NeoX (Black et al. 2022), also Pythia: rotary positions in a part of each head, attention and MLP in parallel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastattn.checkpoint.source import WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.kinds import Activation, activate, attention, embedding, layer_norm, linear
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.causal import DecoderConfig, architectures, head_matrix, outputs, rotary_tables, rotate
from fastattn.models.config import MAX_LAYERS, ConfigReader, unchangeable
from fastattn.models.fused import QKV, InterleavedQkv
from fastattn.models.names import Layout, ModelNames
from fastattn.models.rope import Rope, read_rope
from fastattn.models.tasks import Task
from fastattn.settings import Settings

LAYOUT = Layout(
    prefixes=("gpt_neox.",),
    anchor="embed_in.weight",
    tied=("embed_in.weight", "embed_out.weight"),
    unused=(
        r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
        r"(embed_out|score|classifier|qa_outputs)\..*",
    ),
)
ARCHITECTURES = architectures("GPTNeoX")


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class GptNeoXConfig(DecoderConfig):
    """The options of a GPT-NeoX, named as in config.json. attention_bias: of all linears of the attention."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: Activation
    max_position_embeddings: int
    layer_norm_eps: float
    use_parallel_residual: bool
    attention_bias: bool
    rope: Rope

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


def read_config(raw: Mapping[str, object]) -> GptNeoXConfig:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "GPT-NeoX")
    hidden_size, positions = c.size("hidden_size", 6144), c.size("max_position_embeddings", 2048)
    heads = c.heads(hidden_size, "hidden_size", "num_attention_heads", 64)
    for key in ("rope_theta", "partial_rotary_factor", "head_dim"):  # transformers reads others instead
        c.must_be(key, None)
    theta, share = c.number("rotary_emb_base", 10000.0), c.number("rotary_pct", 0.25)
    own = Settings(c.where, {key: c.table(key) for key in ("rope_scaling", "rope_parameters")})
    config = GptNeoXConfig(
        hidden_size=hidden_size,
        num_hidden_layers=c.size("num_hidden_layers", 44, high=MAX_LAYERS),
        num_attention_heads=heads,
        intermediate_size=c.size("intermediate_size", 24576),
        hidden_act=c.activation("hidden_act", "gelu"),
        max_position_embeddings=positions,
        layer_norm_eps=c.epsilon("layer_norm_eps", 1e-5),
        use_parallel_residual=c.flag("use_parallel_residual", True),
        attention_bias=c.flag("attention_bias", True),
        rope=read_rope(own, head_dim=hidden_size // heads, max_positions=positions, theta=theta, partial=share),
        tie_word_embeddings=c.flag("tie_word_embeddings", False),
        **c.common("gpt_neox", c.size("vocab_size", 50432), bos=0, eos=2),
    )
    c.finish("attention_dropout hidden_dropout")
    return config


def _fused(cfg: GptNeoXConfig) -> Iterator[InterleavedQkv]:
    """Yield the fused linear of each layer."""
    for i in range(cfg.num_hidden_layers):
        place = f"layers.{i}.attention"
        yield InterleavedQkv(
            place=place,
            fused=f"{place}.query_key_value",
            n_head=cfg.num_attention_heads,
            head_dim=cfg.head_dim,
            in_features=cfg.hidden_size,
            bias=cfg.attention_bias,
        )


def computed(cfg: GptNeoXConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the rotary table, and the linears of q, k and v of every layer."""
    found = {source.name: source for fused in _fused(cfg) for source in fused.sources(names)}
    return {**found, **rotary_tables({"rotary": cfg.rope}, cfg.max_positions)}


def hidden_tensors(cfg: GptNeoXConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that only `computed` reads, by name."""
    return {name: shape for fused in _fused(cfg) for name, shape in fused.shapes().items()}


def transformer(cfg: GptNeoXConfig, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens after the last norm, [n_tokens, hidden_size]."""
    d, eps = cfg.hidden_size, cfg.layer_norm_eps
    h = embedding(w["embed_in"], t.ids, cfg.vocab_size, d)
    for i in range(cfg.num_hidden_layers):
        b, h = w[f"layers.{i}"], hidden_state(h)
        a = attend(cfg, w, layer_norm(h, b["input_layernorm"], eps), i)
        x = h if cfg.use_parallel_residual else h + a
        m = linear(layer_norm(x, b["post_attention_layernorm"], eps), b["mlp.dense_h_to_4h"], cfg.intermediate_size)
        m = linear(activate(m, cfg.hidden_act), b["mlp.dense_4h_to_h"], d)
        h = (h + a) + m if cfg.use_parallel_residual else x + m
    return hidden_state(layer_norm(h, w["final_layer_norm"], eps))


def attend(cfg: GptNeoXConfig, w: Weights, x: Tensor, i: int) -> Tensor:
    """Compute the attention of layer i, [n_tokens, hidden_size]."""
    a, heads, width = w[f"layers.{i}.attention"], cfg.num_attention_heads, cfg.hidden_size
    q, k, v = (linear(x, a[name], width, bias=cfg.attention_bias) for name in QKV)
    q, k = (rotate(y, w["rotary"], cfg.rope, heads, cfg.max_positions) for y in (q, k))
    y = attention(q, k, v, layer=i, n_head=heads, causal=True)
    return linear(y, a["dense"], width, bias=cfg.attention_bias)


def build(cfg: GptNeoXConfig, w: Weights, task: Task) -> Program:
    """Build the Program of a task; see `outputs`."""
    head = head_matrix(cfg, w, w["embed_in"], "embed_out")
    h = transformer(cfg, w, Tokens())
    return w.tracer.program(outputs(cfg, w, h, task, head, token_head="classifier"), cfg.max_positions)
