"""What BART and the families after it share: an encoder that stores a memory, and a decoder that reads it.

They differ in the positions and in the places of the norms. The encoder also computes the keys and values of the
decoder's cross-attention, which depend on its output only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.source import ComputedSource, WeightSource, read_tensor, require_weight_dtype
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program
from fastattn.graph.kinds import (
    Activation,
    activate,
    attention,
    cross_attention,
    embedding,
    gather_rows,
    layer_norm,
    linear,
    scale,
    store_memory,
)
from fastattn.graph.tensor import Tensor, Tokens, Weights
from fastattn.models.config import MAX_LAYERS, CommonConfig, ConfigReader, add_names, unchangeable
from fastattn.models.decoder import decoder_matrix
from fastattn.models.fused import constant
from fastattn.models.names import Layout, ModelNames
from fastattn.models.tasks import Task

EPS = 1e-5  # torch's default
NAMES = {
    "num_attention_heads": "encoder_attention_heads",
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
}
LAYOUT = Layout(
    prefixes=("model.",),
    tied=("shared.weight", "lm_head.weight"),
    unused=(r"final_logits_bias", r"(encoder|decoder)\.embed_positions\.weights?", r"(encoder|decoder)\.version"),
)
TASKS: tuple[Task, ...] = ("seq2seq-lm",)
EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # other names of `shared.weight`
SIDES = ("encoder", "decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a family differs from BART.

    learned: whether positions are learned. interpolated: whether sines have the frequencies of M2M100, else those of
    Marian. offset: the row of position 0 in the table of positions. norm_first: norms come before attention and the
    inner layers, with another one at the end. norm_embedding: whether the embeddings have a norm.
    logits_bias: whether the logits have a bias.
    """

    learned: bool = True
    interpolated: bool = False
    offset: int = 2
    norm_first: bool = False
    norm_embedding: bool = True
    logits_bias: bool = True


@add_names(NAMES)
@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class Seq2SeqConfig(CommonConfig):
    """The options of BART and similar models, named as in config.json. style: what its family is."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    encoder_attention_heads: int
    max_position_embeddings: int
    activation_function: Activation
    scale_embedding: bool
    tie_word_embeddings: bool
    decoder_start_token_id: int | None
    style: Style

    @property
    def type_vocab_size(self) -> int | None:
        """None, because there are no token types."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The defaults of a family's config class in transformers."""

    vocab_size: int = 50265
    bos: int | None = 0
    eos: int | None = 2
    pad: int | None = 1
    start: int | None = 2
    activation: str = "gelu"
    scale_embedding: bool = False


def read_options(c: ConfigReader, model_type: str, style: Style, defaults: Defaults) -> Seq2SeqConfig:
    """Read config.json. Raises ConfigError."""
    width, vocab_size = c.size("d_model", 1024), c.size("vocab_size", defaults.vocab_size)
    heads = c.heads(width, "d_model", "encoder_attention_heads", 16)
    if c.size("decoder_attention_heads", 16) != heads:
        raise c.error("decoder_attention_heads", f"encoder_attention_heads = {heads}")
    if not style.learned and (width % 2 or width < 4):
        raise c.error("d_model", "an even number of at least 4, because positions are sines and cosines")
    common = c.common(model_type, vocab_size, bos=defaults.bos, eos=defaults.eos, pad=defaults.pad)
    config = Seq2SeqConfig(
        d_model=width,
        encoder_layers=c.size("encoder_layers", 12, high=MAX_LAYERS),
        decoder_layers=c.size("decoder_layers", 12, high=MAX_LAYERS),
        encoder_ffn_dim=c.size("encoder_ffn_dim", 4096),
        decoder_ffn_dim=c.size("decoder_ffn_dim", 4096),
        encoder_attention_heads=heads,
        max_position_embeddings=c.size("max_position_embeddings", 1024),
        activation_function=c.activation("activation_function", defaults.activation),
        scale_embedding=c.flag("scale_embedding", defaults.scale_embedding),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        decoder_start_token_id=c.token_id("decoder_start_token_id", vocab_size, defaults.start),
        style=style,
        **common,
    )
    c.must_be("is_encoder_decoder", True)
    c.finish(
        "activation_dropout attention_dropout classif_dropout decoder_layerdrop dropout encoder_layerdrop init_std "
        "normalize_before normalize_embedding add_final_layer_norm add_bias_logits static_position_embeddings "
        "extra_pos_embeddings num_hidden_layers force_bos_token_to_be_generated save_step gradient_checkpointing "
        "forced_bos_token_id",
        own=("is_encoder_decoder",),
    )
    return config


def marian_positions(begin: int, end: int, width: int) -> NDArray[np.float32]:
    """Return rows of the table of Marian and Pegasus: sines in the first half of a row, cosines in the second."""
    angles = np.arange(begin, end)[:, None] / np.power(10000, 2 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def m2m100_positions(begin: int, end: int, width: int) -> NDArray[np.float32]:
    """Return rows of the table of M2M100, with angles rounded to float32 as in transformers."""
    half = width // 2
    step = np.float32(math.log(10000) / (half - 1))
    frequencies = np.exp((np.arange(half, dtype=np.float32) * -step).astype(np.float64)).astype(np.float32)
    angles = (np.arange(begin, end, dtype=np.float32)[:, None] * frequencies).astype(np.float64)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def computed(cfg: Seq2SeqConfig, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the positions that a checkpoint lacks, the factor of the embeddings, and the bias of the logits."""
    found: dict[str, WeightSource] = {}
    width, rows = cfg.d_model, cfg.max_position_embeddings + cfg.style.offset
    table = m2m100_positions if cfg.style.interpolated else marian_positions
    if not cfg.style.learned:
        for name in (f"{side}.embed_positions.weight" for side in SIDES):
            if not names.has(name):
                found[name] = ComputedSource(name, (rows, width), lambda a, b: table(a, b, width))
    if cfg.scale_embedding:
        found["embed_scale.weight"] = constant("embed_scale.weight", width, math.sqrt(width))
    if cfg.style.logits_bias:
        found["logits.bias"] = _logits_bias(cfg.vocab_size, names)
    if not names.has("shared.weight"):
        source = next((names.get(name) for name in EMBEDDINGS if names.has(name)), None)
        if source is not None:
            found["shared.weight"] = source
    return found


def _logits_bias(vocab_size: int, names: ModelNames) -> WeightSource:
    if not names.has("final_logits_bias"):
        return constant("logits.bias", vocab_size, 0.0)
    stored = names.get("final_logits_bias")
    require_weight_dtype(stored)
    if stored.shape != (1, vocab_size):
        raise ConfigError(f"final_logits_bias: expected shape [1, {vocab_size}], got {list(stored.shape)}")
    return ComputedSource("logits.bias", (vocab_size,), lambda begin, end: read_tensor(stored)[0, begin:end])


def hidden_tensors(cfg: Seq2SeqConfig) -> tuple[str, ...]:
    """Return the names of the tensors that only `computed` reads, or that repeat the embeddings."""
    return ("final_logits_bias", *EMBEDDINGS)


def _embed(cfg: Seq2SeqConfig, w: Weights, side: Weights) -> Tensor:
    style, d = cfg.style, cfg.d_model
    x = embedding(w["shared"], Tokens().ids, cfg.vocab_size, d)
    if cfg.scale_embedding:
        x = scale(x, w["embed_scale"])
    rows = cfg.max_position_embeddings + style.offset
    x = x + embedding(side["embed_positions"], Tokens().positions, rows, d, offset=style.offset)
    return layer_norm(x, side["layernorm_embedding"], EPS) if style.norm_embedding else x


def _after(cfg: Seq2SeqConfig, h: Tensor, y: Tensor, norm: Weights) -> Tensor:
    """Add y to the residual stream h; in post-norm models the norm follows."""
    return h + y if cfg.style.norm_first else layer_norm(h + y, norm, EPS)


def _before(cfg: Seq2SeqConfig, h: Tensor, norm: Weights) -> Tensor:
    return layer_norm(h, norm, EPS) if cfg.style.norm_first else h


def _attend(cfg: Seq2SeqConfig, h: Tensor, b: Weights, layer: int, *, causal: bool) -> Tensor:
    """Compute the self-attention of a layer and its norm."""
    a, d = b["self_attn"], cfg.d_model
    x = _before(cfg, h, b["self_attn_layer_norm"])
    q, k, v = (linear(x, a[f"{name}_proj"], d) for name in "qkv")
    y = attention(q, k, v, layer=layer, n_head=cfg.encoder_attention_heads, causal=causal)
    return _after(cfg, h, linear(y, a["out_proj"], d), b["self_attn_layer_norm"])


def _inner(cfg: Seq2SeqConfig, h: Tensor, b: Weights, width: int) -> Tensor:
    """Compute the inner layers and their norm."""
    x = _before(cfg, h, b["final_layer_norm"])
    x = activate(linear(x, b["fc1"], width), cfg.activation_function)
    return _after(cfg, h, linear(x, b["fc2"], cfg.d_model), b["final_layer_norm"])


def build_encoder(cfg: Seq2SeqConfig, w: Weights) -> Program:
    """Build the Program of the encoder: it stores the memory and returns "encoder_last_hidden_state"."""
    e = w["encoder"]
    h = _embed(cfg, w, e)
    for i in range(cfg.encoder_layers):
        b = e[f"layers.{i}"]
        h = _inner(cfg, _attend(cfg, h, b, i, causal=False), b, cfg.encoder_ffn_dim)
    h = layer_norm(h, e["layer_norm"], EPS) if cfg.style.norm_first else h
    outputs = {"encoder_last_hidden_state": h}
    for i in range(cfg.decoder_layers):
        a = w["decoder"][f"layers.{i}"]["encoder_attn"]
        k, v = (linear(h, a[f"{name}_proj"], cfg.d_model) for name in "kv")
        outputs[f"memory.{i}"] = store_memory(k, v, layer=i, n_kv_head=cfg.encoder_attention_heads)
    return w.tracer.program(outputs, cfg.max_positions)


def build(cfg: Seq2SeqConfig, w: Weights, task: Task) -> Program:
    """Build the Program of the decoder."""
    style, d, heads, e = cfg.style, cfg.d_model, cfg.encoder_attention_heads, w["decoder"]
    head = decoder_matrix(w["lm_head"], w["shared"], cfg.vocab_size, d, tied=cfg.tie_word_embeddings)
    h = _embed(cfg, w, e)
    for i in range(cfg.decoder_layers):
        b = e[f"layers.{i}"]
        a, h = b["encoder_attn"], _attend(cfg, h, b, i, causal=True)
        x = _before(cfg, h, b["encoder_attn_layer_norm"])
        y = cross_attention(linear(x, a["q_proj"], d), layer=i, n_head=heads)
        h = _after(cfg, h, linear(y, a["out_proj"], d), b["encoder_attn_layer_norm"])
        h = _inner(cfg, h, b, cfg.decoder_ffn_dim)
    h = layer_norm(h, e["layer_norm"], EPS) if style.norm_first else h
    bias = w["logits"] if style.logits_bias else False
    logits = linear(gather_rows(h, "wanted"), head, cfg.vocab_size, bias=bias)
    return w.tracer.program({"logits": logits}, cfg.max_positions)


def joined(encoder: Program, decoder: Program) -> tuple[Program, Program]:
    """Return both Programs with caches of one shape, and the decoder's with all weights, so that one load has them."""
    n_layer = max(encoder.n_layer, decoder.n_layer)
    return (
        replace(encoder, n_layer=n_layer),
        replace(decoder, n_layer=n_layer, weights={**encoder.weights, **decoder.weights}),
    )
