"""T5 (Raffel et al. 2020), T5 1.1, Flan-T5 and mT5: biases by relative position, unscaled scores, norms without mean.

transformers has no limit of positions. Here it is POSITIONS, because the biases are tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.checkpoint.source import ComputedSource, WeightSource, place_of, require_weight_dtype
from fastattn.errors import ConfigError
from fastattn.graph.attention_bias import RelativeBias, T5Buckets
from fastattn.graph.ir import Program
from fastattn.graph.kinds import (
    Activation,
    activate,
    attention,
    cross_attention,
    embedding,
    gather_rows,
    linear,
    rms_norm,
    scale,
    store_memory,
)
from fastattn.graph.tensor import Tensor, Tokens, Weights
from fastattn.models.config import ACTIVATION_NAMES, MAX_LAYERS, CommonConfig, ConfigReader, add_names, unchangeable
from fastattn.models.decoder import decoder_matrix
from fastattn.models.fused import constant
from fastattn.models.names import Layout, ModelNames
from fastattn.models.tasks import Task

NAMES = {"hidden_size": "d_model", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}
LAYOUT = Layout(
    tied=("shared.weight", "lm_head.weight"),
    unused=(
        r"(encoder|decoder)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",  # `computed` reads it
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",  # of old files, never used
    ),
)
ARCHITECTURES = ("T5ForConditionalGeneration", "T5Model", "T5WithLMHeadModel")
MT5_ARCHITECTURES = ("MT5ForConditionalGeneration", "MT5Model")
POSITIONS = 4096
EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # other names of `shared.weight`
SIDES = ("encoder", "decoder")


@add_names(NAMES)
@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class T5Config(CommonConfig):
    """The options of a T5, named as in config.json.

    activation, gated: what feed_forward_proj names. scales_head: whether the input of the output matrix is divided by
    the root of d_model.
    """

    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    activation: Activation
    gated: bool
    scales_head: bool
    decoder_start_token_id: int | None

    @property
    def max_position_embeddings(self) -> int:
        """The most tokens of a text."""
        return POSITIONS

    @property
    def type_vocab_size(self) -> int | None:
        """None, because there are no token types."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Defaults:
    vocab_size: int = 32128
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    projection: str = "relu"
    start: int | None = 0


def read_config(raw: Mapping[str, object]) -> T5Config:
    """Read config.json of a T5. Raises ConfigError."""
    c = ConfigReader(raw, "T5", NAMES)
    # transformers takes tie_word_embeddings for the version of the model; its version 5 writes the other option.
    tied = c.raw("tie_word_embeddings") is not False
    return _read(c, "t5", _Defaults(), scales_head=c.flag("scale_decoder_outputs", tied))


def read_mt5_config(raw: Mapping[str, object]) -> T5Config:
    """Read config.json of an mT5. Raises ConfigError."""
    defaults = _Defaults(vocab_size=250112, d_ff=1024, num_layers=8, num_heads=6, projection="gated-gelu")
    return _read(ConfigReader(raw, "mT5", NAMES), "mt5", defaults, scales_head=False)


def _read(c: ConfigReader, model_type: str, defaults: _Defaults, *, scales_head: bool) -> T5Config:
    layers, vocab_size = (
        c.size("num_layers", defaults.num_layers, high=MAX_LAYERS),
        c.size("vocab_size", defaults.vocab_size),
    )
    deep = c.raw("num_decoder_layers")
    activation, gated = _projection(c, defaults.projection)
    config = T5Config(
        d_model=c.size("d_model", 512),
        d_kv=c.size("d_kv", 64),
        d_ff=c.size("d_ff", defaults.d_ff),
        num_layers=layers,
        num_decoder_layers=layers if deep is None else c.size("num_decoder_layers", high=MAX_LAYERS),
        num_heads=c.size("num_heads", defaults.num_heads),
        relative_attention_num_buckets=c.size("relative_attention_num_buckets", 32),
        relative_attention_max_distance=c.size("relative_attention_max_distance", 128),
        layer_norm_epsilon=c.epsilon("layer_norm_epsilon", 1e-6),
        activation=activation,
        gated=gated,
        scales_head=scales_head,
        decoder_start_token_id=c.token_id("decoder_start_token_id", vocab_size, defaults.start),
        **c.common(model_type, vocab_size, bos=None, eos=1, pad=0),
    )
    c.must_be("is_encoder_decoder", True)
    c.finish(
        "classifier_dropout dense_act_fn dropout_rate is_gated_act n_positions head_dim d_inner",
        own=("is_encoder_decoder",),
    )
    return config


def _projection(c: ConfigReader, default: str) -> tuple[Activation, bool]:
    """Read feed_forward_proj: an activation, or "gated-" and an activation."""
    name = c.text("feed_forward_proj", default) or ""
    plain = name.removeprefix("gated-")
    gated = plain != name
    if plain not in ACTIVATION_NAMES:
        raise c.error("feed_forward_proj", f"an activation, maybe after gated-: {', '.join(sorted(ACTIVATION_NAMES))}")
    return ACTIVATION_NAMES["gelu_new" if name == "gated-gelu" else plain], gated


def computed(cfg: T5Config, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the tables of biases, computed from the bias of each bucket, and the factor before the output matrix."""
    found: dict[str, WeightSource] = {}
    for side in SIDES:
        own, name = f"{side}.bias.weight", _bias_of(side)
        if names.has(own):  # a quantized folder has it
            continue
        weight, shape = names.get(name), (cfg.relative_attention_num_buckets, cfg.num_heads)
        if weight.shape != shape:
            raise ConfigError(
                f"{name}: expected shape {list(shape)} from config.json, got {list(weight.shape)} in {place_of(weight)}"
            )
        require_weight_dtype(weight)
        buckets = T5Buckets(
            num_buckets=cfg.relative_attention_num_buckets,
            max_distance=cfg.relative_attention_max_distance,
            bidirectional=side == "encoder",
        )
        bias = RelativeBias(weight=weight, buckets=buckets, positions=POSITIONS, causal=side == "decoder")
        found[own] = ComputedSource(own, bias.shape, bias.rows)
    if cfg.scales_head:
        found["head_scale.weight"] = constant("head_scale.weight", cfg.d_model, cfg.d_model**-0.5)
    return found


def _bias_of(side: str) -> str:
    return f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def n_hidden_weights(cfg: T5Config) -> int:
    """Return the number of biases from which the tables are computed."""
    return 2 * cfg.relative_attention_num_buckets * cfg.num_heads


def hidden_tensors(cfg: T5Config) -> tuple[str, ...]:
    """Return the names of the tensors that repeat the embeddings."""
    return EMBEDDINGS


def _attend(cfg: T5Config, h: Tensor, b: Weights, w: Weights, layer: int, *, causal: bool) -> Tensor:
    """Add the self-attention of a layer."""
    a, inner = b["SelfAttention"], cfg.num_heads * cfg.d_kv
    x = rms_norm(h, b["layer_norm"], cfg.layer_norm_epsilon)
    q, k, v = (linear(x, a[name], inner, bias=False) for name in "qkv")
    y = attention(
        q,
        k,
        v,
        layer=layer,
        n_head=cfg.num_heads,
        causal=causal,
        scale=1.0,
        bias=w["bias"],
        bias_positions=POSITIONS,
    )
    return h + linear(y, a["o"], cfg.d_model, bias=False)


def _inner(cfg: T5Config, h: Tensor, b: Weights) -> Tensor:
    """Add the inner layers."""
    m, x = b["DenseReluDense"], rms_norm(h, b["layer_norm"], cfg.layer_norm_epsilon)
    if cfg.gated:
        gate, up = (linear(x, m[name], cfg.d_ff, bias=False) for name in ("wi_0", "wi_1"))
        x = activate(gate, cfg.activation) * up
    else:
        x = activate(linear(x, m["wi"], cfg.d_ff, bias=False), cfg.activation)
    return h + linear(x, m["wo"], cfg.d_model, bias=False)


def build_encoder(cfg: T5Config, w: Weights) -> Program:
    """Build the Program of the encoder: it stores the memory and returns "encoder_last_hidden_state"."""
    e, h = w["encoder"], embedding(w["shared"], Tokens().ids, cfg.vocab_size, cfg.d_model)
    for i in range(cfg.num_layers):
        b = e[f"block.{i}.layer"]
        h = _inner(cfg, _attend(cfg, h, b["0"], e, i, causal=False), b["1"])
    h = rms_norm(h, e["final_layer_norm"], cfg.layer_norm_epsilon)
    outputs = {"encoder_last_hidden_state": h}
    for i in range(cfg.num_decoder_layers):
        a = w[f"decoder.block.{i}.layer.1.EncDecAttention"]
        k, v = (linear(h, a[name], cfg.num_heads * cfg.d_kv, bias=False) for name in "kv")
        outputs[f"memory.{i}"] = store_memory(k, v, layer=i, n_kv_head=cfg.num_heads)
    return w.tracer.program(outputs, cfg.max_positions)


def build(cfg: T5Config, w: Weights, task: Task) -> Program:
    """Build the Program of the decoder."""
    d, eps, e = cfg.d_model, cfg.layer_norm_epsilon, w["decoder"]
    head = decoder_matrix(w["lm_head"], w["shared"], cfg.vocab_size, d, tied=True)
    h = embedding(w["shared"], Tokens().ids, cfg.vocab_size, d)
    for i in range(cfg.num_decoder_layers):
        b = e[f"block.{i}.layer"]
        h = _attend(cfg, h, b["0"], e, i, causal=True)
        a, x = b["1"]["EncDecAttention"], rms_norm(h, b["1"]["layer_norm"], eps)
        y = cross_attention(
            linear(x, a["q"], cfg.num_heads * cfg.d_kv, bias=False), layer=i, n_head=cfg.num_heads, scale=1.0
        )
        h = _inner(cfg, h + linear(y, a["o"], d, bias=False), b["2"])
    h = gather_rows(rms_norm(h, e["final_layer_norm"], eps), "wanted")
    h = scale(h, w["head_scale"]) if cfg.scales_head else h
    return w.tracer.program({"logits": linear(h, head, cfg.vocab_size, bias=False)}, cfg.max_positions)
