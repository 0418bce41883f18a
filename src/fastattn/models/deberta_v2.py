"""DeBERTa-v2 and v3 (He et al. 2020, 2021): attention that also scores relative positions against the content."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fastattn import ops
from fastattn.checkpoint.source import (
    ComputedSource,
    WeightSource,
    place_of,
    read_rows,
    read_tensor,
    require_weight_dtype,
)
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program
from fastattn.graph.kinds import (
    Activation,
    activate,
    attention,
    embedding,
    gather_rows,
    layer_norm,
    linear,
    window_rows,
)
from fastattn.graph.position_tables import Columns, PositionTables
from fastattn.graph.tensor import Tensor, Tokens, Weights, hidden_state
from fastattn.models.bert import HARMLESS, read_layers, token_outputs
from fastattn.models.config import MAX_TABLE_POSITIONS, CommonConfig, ConfigReader, unchangeable
from fastattn.models.decoder import decode, decoder_matrix
from fastattn.models.names import Layout, ModelNames
from fastattn.models.tasks import Task

LAYOUT = Layout(
    prefixes=("deberta.",),
    anchor="embeddings.LayerNorm.weight",
    tied=("embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    unused=(
        r"embeddings\.(position_ids|position_embeddings\.weight)",
        r"(classifier|cls|lm_predictions|mask_predictions|pooler|qa_outputs)\..*",
    ),
)
HEADS = "Model ForSequenceClassification ForMaskedLM ForTokenClassification ForQuestionAnswering ForMultipleChoice"
ARCHITECTURES = tuple(f"DebertaV2{head}" for head in HEADS.split())
COLUMNS = "encoder.position_columns"
CONVOLUTION, TAPS = "encoder.conv.conv", "encoder.conv.taps"  # in the checkpoint; as a linear
TYPES = ("c2p", "p2c")  # content to position, position to content

MOST_BUCKETS = 1024  # the limits of buckets are computed with powers of integers, which get large

Float32 = NDArray[np.float32]
Ints = NDArray[np.intp]


@unchangeable
@dataclass(frozen=True, slots=True, kw_only=True)
class DebertaV2Config(CommonConfig):
    """The options of a DeBERTa, named as in config.json.

    type_vocab_size: None without token types. max_relative_positions, position_buckets: resolved; position_buckets is
    0 without buckets. norm_rel_ebd: whether the embeddings of relative positions are normalized. conv_kernel_size: of
    the convolution over tokens beside the first layer, 0 if there is none.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: Activation
    max_position_embeddings: int
    layer_norm_eps: float
    type_vocab_size: int | None
    embedding_size: int
    position_biased_input: bool
    relative_attention: bool
    pos_att_type: tuple[str, ...]
    max_relative_positions: int
    position_buckets: int
    share_att_key: bool
    norm_rel_ebd: bool
    pooler_hidden_act: Activation
    legacy: bool
    tie_word_embeddings: bool
    conv_kernel_size: int
    conv_act: Activation

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def span(self) -> int:
        """Half of the number of embeddings of relative positions."""
        return self.position_buckets or self.max_relative_positions


def read_config(raw: Mapping[str, object]) -> DebertaV2Config:
    """Read config.json. Raises ConfigError."""
    c = ConfigReader(raw, "DeBERTa-v2")
    layers = read_layers(c, width=1536, heads=24, inner=6144, layers=24, eps=1e-7, most_positions=MAX_TABLE_POSITIONS)
    width, positions = layers["hidden_size"], layers["max_position_embeddings"]
    c.must_be("attention_head_size", width // layers["num_attention_heads"])
    c.must_be("pooler_hidden_size", width)
    legacy = c.flag("legacy", True)
    if not legacy:
        c.must_be("embedding_size", width)
    kernel = c.count("conv_kernel_size", 0)
    if kernel:
        if kernel % 2 == 0:
            raise c.error("conv_kernel_size", "0 or an odd integer")
        c.must_be("conv_groups", 1)
    most = c.count("max_relative_positions", -1, low=-1)
    config = DebertaV2Config(
        **layers,
        type_vocab_size=c.count("type_vocab_size", 0) or None,
        embedding_size=c.size("embedding_size", width),
        position_biased_input=c.flag("position_biased_input", True),
        relative_attention=c.flag("relative_attention", False),
        pos_att_type=_types(c),
        max_relative_positions=most if most > 0 else positions,
        position_buckets=_buckets(c, most if most > 0 else positions),
        share_att_key=c.flag("share_att_key", False),
        norm_rel_ebd="layer_norm" in _words(c, "norm_rel_ebd", ("none", "layer_norm")),
        pooler_hidden_act=c.activation("pooler_hidden_act", "gelu"),
        legacy=legacy,
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
        conv_kernel_size=kernel,
        conv_act=c.activation("conv_act", "tanh") if kernel else "none",
        **c.common("deberta-v2", c.size("vocab_size", 128100), pad=0),
    )
    c.finish(f"{HARMLESS} cls_dropout conv_act conv_groups pooler_dropout summary_activation summary_last_dropout")
    return config


def _words(c: ConfigReader, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Read words of a string with "|" between them, in lower case."""
    words = tuple(word.strip() for word in c.text(key, known[0]).lower().split("|"))
    if not set(words) <= set(known):
        raise c.error(key, f"{' or '.join(known)}, or both with | between them")
    return words


def _types(c: ConfigReader) -> tuple[str, ...]:
    """Read pos_att_type: a list, or a string with "|" between its words."""
    if "pos_att_type" not in c:
        return ()
    words = _words(c, "pos_att_type", TYPES) if isinstance(c.raw("pos_att_type"), str) else c.texts("pos_att_type")
    if not set(words) <= set(TYPES):
        raise c.error("pos_att_type", "a list of c2p and p2c")
    return tuple(word for word in TYPES if word in words)


def _buckets(c: ConfigReader, max_relative_positions: int) -> int:
    buckets = c.count("position_buckets", -1, low=-1)
    most = min(2 * max_relative_positions - 3, MOST_BUCKETS)
    if buckets > 0 and not 2 <= buckets <= most:
        raise c.error("position_buckets", f"an integer from 2 to {most}, or -1 for none")
    return max(buckets, 0)


def buckets_of(distances: Ints, buckets: int, max_positions: int) -> Ints:
    """Return the bucket of each distance, at most `buckets`: half of them have one distance, the others several.

    transformers computes ceil(log(distance / middle) / log((max_positions - 1) / middle) * (middle - 1)) + middle with
    logarithms of float32. This is the same in integers, so it is never off by one.
    """
    middle, last = buckets // 2, _last_distances(buckets, max_positions, int(distances.max(initial=0)))
    found: Ints = np.where(distances <= middle, distances, middle + np.searchsorted(last, distances))
    return np.minimum(found, buckets)


def _last_distances(buckets: int, max_positions: int, most: int) -> Ints:
    """Return the largest distance of bucket `buckets` // 2 and of each one after it, up to `most`.

    That of bucket middle + k is the largest d with (d / middle)^(middle - 1) <= ((max_positions - 1) / middle)^k.
    """
    middle, steps = buckets // 2, buckets // 2 - 1
    found: list[int] = []
    while steps and len(found) <= buckets - middle and (not found or found[-1] < most):
        k = len(found)
        limit = (max_positions - 1) ** k * middle**steps
        d = int(middle * ((max_positions - 1) / middle) ** (k / steps))  # within rounding
        while d**steps * middle**k > limit:
            d -= 1
        while (d + 1) ** steps * middle**k <= limit:
            d += 1
        found.append(d)
    return np.array(found, np.intp)


def columns_of(cfg: DebertaV2Config) -> Columns:
    """Return the columns of attention's scores, by relative position: the key's minus the query's.

    Each column belongs to one embedding. The embeddings are numbered in the other direction, by the query's position
    minus the key's; both parts of a score use the same one.
    """
    distances = np.arange(cfg.max_positions)
    if cfg.position_buckets:
        distances = buckets_of(distances, cfg.position_buckets, cfg.max_relative_positions)
    before = np.minimum(cfg.span + distances, 2 * cfg.span - 1)  # the key is before the query
    after = np.maximum(cfg.span - distances, 0)
    return Columns(index=tuple(np.concatenate([before[:0:-1], after]).tolist()))


def computed(cfg: DebertaV2Config, names: ModelNames) -> Mapping[str, WeightSource]:
    """Return the tables of columns, each layer's position keys and queries (projected embeddings of positions), and the
    convolution as weights of a linear.
    """
    sources = _taps(cfg, names) if cfg.conv_kernel_size else {}
    if not (cfg.relative_attention and cfg.pos_att_type):
        return sources
    columns = columns_of(cfg)
    shape = (cfg.num_attention_heads * columns.n_columns, cfg.head_dim)
    for i in range(cfg.num_hidden_layers):
        place = f"encoder.layer.{i}.attention.self"
        for kind in cfg.pos_att_type:
            table, projection = ("position_keys", "key_proj") if kind == "c2p" else ("position_queries", "query_proj")
            projected = _Projected(cfg, names, columns, f"{place}.{'' if cfg.share_att_key else 'pos_'}{projection}")
            name = f"{place}.{table}.weight"
            if not names.has(name):  # a quantized folder has the table instead of the tensors
                projected.check()
            sources[name] = ComputedSource(name, shape, projected.rows)
    name = f"{COLUMNS}.weight"
    return {**sources, name: ComputedSource(name, columns.shape, columns.rows)}


def _taps(cfg: DebertaV2Config, names: ModelNames) -> dict[str, WeightSource]:
    """Return the weights [d, d, kernel] of the convolution as those of a linear over `window_rows`, [d, kernel * d]."""
    width, kernel = cfg.hidden_size, cfg.conv_kernel_size
    shapes = {f"{CONVOLUTION}.weight": (width, width, kernel), f"{CONVOLUTION}.bias": (width,)}
    if not names.has(f"{TAPS}.weight"):  # a quantized folder has these instead
        check_shapes(names, shapes)

    def weight(begin: int, end: int) -> Float32:
        rows = read_rows(names.get(f"{CONVOLUTION}.weight"), begin, end)
        return np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(end - begin, kernel * width)

    def bias(begin: int, end: int) -> Float32:
        return read_rows(names.get(f"{CONVOLUTION}.bias"), begin, end)

    return {
        f"{TAPS}.weight": ComputedSource(f"{TAPS}.weight", (width, kernel * width), weight),
        f"{TAPS}.bias": ComputedSource(f"{TAPS}.bias", (width,), bias),
    }


def check_shapes(names: ModelNames, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ConfigError if a tensor is missing or has another shape, ModelFormatError for its dtype."""
    for name, shape in shapes.items():
        found = names.get(name)
        if found.shape != shape:
            raise ConfigError(
                f"{name}: expected shape {list(shape)} from config.json, got {list(found.shape)} in {place_of(found)}"
            )
        require_weight_dtype(found)


def n_hidden_weights(cfg: DebertaV2Config) -> int:
    """Return the number of weights that only `computed` reads: convolution, embeddings of positions, their norm and own
    projections.
    """
    width = cfg.hidden_size
    convolution = width * (width * cfg.conv_kernel_size + 1) if cfg.conv_kernel_size else 0
    if not (cfg.relative_attention and cfg.pos_att_type):
        return convolution
    own = 0 if cfg.share_att_key else cfg.num_hidden_layers * len(cfg.pos_att_type) * width * (width + 1)
    return (2 * cfg.span + 2 * cfg.norm_rel_ebd) * width + own + convolution


def hidden_tensors(cfg: DebertaV2Config) -> list[str]:
    """Return the names of the tensors that only `computed` reads."""
    convolution = [f"{CONVOLUTION}.{part}" for part in ("weight", "bias")] if cfg.conv_kernel_size else []
    if not (cfg.relative_attention and cfg.pos_att_type):
        return convolution
    places = ["encoder.LayerNorm"] if cfg.norm_rel_ebd else []
    if not cfg.share_att_key:
        projections = [{"c2p": "pos_key_proj", "p2c": "pos_query_proj"}[kind] for kind in cfg.pos_att_type]
        layers = range(cfg.num_hidden_layers)
        places += [f"encoder.layer.{i}.attention.self.{name}" for i in layers for name in projections]
    parts = (f"{place}.{part}" for place in places for part in ("weight", "bias"))
    return ["encoder.rel_embeddings.weight", *parts, *convolution]


@dataclass(frozen=True, slots=True)
class _Projected:
    """The embeddings of relative positions, projected for one layer, by head and column.

    They do not depend on the text, so they are computed once, in float32, when the model is loaded.
    """

    cfg: DebertaV2Config
    names: ModelNames
    columns: Columns
    projection: str

    def check(self) -> None:
        """Raise ConfigError if a tensor is missing or has another shape, ModelFormatError for its dtype."""
        check_shapes(self.names, self._shapes())

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        width = self.cfg.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"encoder.rel_embeddings.weight": (2 * self.cfg.span, width)}
        if self.cfg.norm_rel_ebd:
            shapes |= {f"encoder.LayerNorm.{part}": (width,) for part in ("weight", "bias")}
        return shapes | {f"{self.projection}.weight": (width, width), f"{self.projection}.bias": (width,)}

    def rows(self, begin: int, end: int) -> Float32:
        """Return rows [begin, end); those of unused columns are 0. Raises what `read_tensor` raises."""
        n, head_dim = self.columns.n_columns, self.cfg.head_dim
        first, last = begin // n, -(-end // n)  # heads
        weight, bias = (self.names.get(f"{self.projection}.{part}") for part in ("weight", "bias"))
        part = read_rows(weight, first * head_dim, last * head_dim), read_rows(bias, first * head_dim, last * head_dim)
        used = self.columns.indices >= 0
        found = np.zeros((last - first, n, head_dim), np.float32)
        projected = ops.linear(self._embeddings()[self.columns.indices[used]], *part)
        found[:, used] = projected.reshape(-1, last - first, head_dim).transpose(1, 0, 2)
        return found.reshape(-1, head_dim)[begin - first * n : end - first * n]

    def _embeddings(self) -> Float32:
        table = read_tensor(self.names.get("encoder.rel_embeddings.weight"))
        if not self.cfg.norm_rel_ebd:
            return table
        weight, bias = (read_tensor(self.names.get(f"encoder.LayerNorm.{part}")) for part in ("weight", "bias"))
        return ops.layer_norm(table, (self.cfg.hidden_size,), weight, bias, eps=self.cfg.layer_norm_eps)


def embeddings(cfg: DebertaV2Config, w: Weights, t: Tokens) -> Tensor:
    """Compute the normalized embeddings, [n_tokens, hidden_size]."""
    width, e = cfg.embedding_size, w["embeddings"]
    h = embedding(e["word_embeddings"], t.ids, cfg.vocab_size, width)
    if cfg.position_biased_input:
        h = h + embedding(e["position_embeddings"], t.positions, cfg.max_position_embeddings, width)
    if cfg.type_vocab_size is not None:
        h = h + embedding(e["token_type_embeddings"], t.type_ids, cfg.type_vocab_size, width)
    if width != cfg.hidden_size:
        h = linear(h, e["embed_proj"], cfg.hidden_size, bias=False)
    return layer_norm(h, e["LayerNorm"], cfg.layer_norm_eps)


def encoder(cfg: DebertaV2Config, w: Weights, t: Tokens) -> Tensor:
    """Compute the hidden states of all tokens, [n_tokens, hidden_size]."""
    d, eps = cfg.hidden_size, cfg.layer_norm_eps
    # As in transformers, the scale counts the parts of a score even if relative_attention is false.
    scale = 1 / math.sqrt(cfg.head_dim * (1 + len(cfg.pos_att_type)))
    attend = partial(attention, n_head=cfg.num_attention_heads, causal=False, scale=scale)
    n_columns = columns_of(cfg).n_columns if cfg.relative_attention else 0
    first = h = hidden_state(embeddings(cfg, w, t))
    for i in range(cfg.num_hidden_layers):
        b = w[f"encoder.layer.{i}"]
        q, k, v = (linear(h, b[f"attention.self.{name}_proj"], d) for name in ("query", "key", "value"))
        a = attend(q, k, v, layer=i, tables=position_tables(cfg, w, b["attention.self"], n_columns))
        h = layer_norm(h + linear(a, b["attention.output.dense"], d), b["attention.output.LayerNorm"], eps)
        m = activate(linear(h, b["intermediate.dense"], cfg.intermediate_size), cfg.hidden_act)
        h = layer_norm(h + linear(m, b["output.dense"], d), b["output.LayerNorm"], eps)
        if i == 0 and cfg.conv_kernel_size:
            c = activate(linear(window_rows(first, cfg.conv_kernel_size), w[TAPS], d), cfg.conv_act)
            h = layer_norm(h + c, w["encoder.conv.LayerNorm"], eps)
        hidden_state(h)
    return h


def position_tables(cfg: DebertaV2Config, w: Weights, place: Weights, n_columns: int) -> PositionTables | None:
    """Return the tables that `computed` makes for the attention at `place`."""
    if not (cfg.relative_attention and cfg.pos_att_type):
        return None
    return PositionTables(
        columns=w[COLUMNS],
        keys=place["position_keys"] if "c2p" in cfg.pos_att_type else None,
        queries=place["position_queries"] if "p2c" in cfg.pos_att_type else None,
        n_columns=n_columns,
        positions=cfg.max_positions,
    )


def pooler(cfg: DebertaV2Config, w: Weights, h: Tensor) -> Tensor:
    """Compute a linear over the first token and its activation, [n_sequences, hidden_size]."""
    return activate(linear(gather_rows(h, "first"), w["pooler.dense"], cfg.hidden_size), cfg.pooler_hidden_act)


def predictions(cfg: DebertaV2Config, w: Weights, h: Tensor, matrix: Weights) -> Tensor:
    """Compute the logits of the masked language model at the wanted rows, [n_wanted, vocab_size]."""
    x, eps = gather_rows(h, "wanted"), cfg.layer_norm_eps
    if not cfg.legacy:
        head = w["lm_predictions.lm_head"]
        x = activate(linear(x, head["dense"], cfg.hidden_size), cfg.hidden_act)
        return decode(layer_norm(x, head["LayerNorm"], eps), matrix, w["no"], head, cfg.vocab_size)
    head = w["cls.predictions"]
    x = activate(linear(x, head["transform.dense"], cfg.embedding_size), cfg.hidden_act)
    return decode(layer_norm(x, head["transform.LayerNorm"], eps), matrix, head["decoder"], head, cfg.vocab_size)


def head_matrix(cfg: DebertaV2Config, w: Weights) -> Weights:
    """Return the `Weights` of the masked language model's output matrix; a head that is not legacy always ties it."""
    own, e = w["cls.predictions.decoder"], w["embeddings.word_embeddings"]
    if not cfg.legacy:
        if w["lm_predictions.lm_head.dense"].has("weight"):
            e.matrix(cfg.vocab_size, cfg.embedding_size)
        return e
    if not w["cls.predictions.transform.dense"].has("weight"):
        return own  # there is no such head
    return decoder_matrix(own, e, cfg.vocab_size, cfg.embedding_size, tied=cfg.tie_word_embeddings)


def check_head(cfg: DebertaV2Config, w: Weights) -> None:
    """Raise ConfigError if `legacy` of config.json does not match the checkpoint's masked-language-model head."""
    ours, other = w["cls.predictions.transform.dense"], w["lm_predictions.lm_head.dense"]
    if not cfg.legacy:
        ours, other = other, ours
    if other.has("weight") and not ours.has("weight"):
        raise ConfigError(
            f"config.json: legacy: expected {str(not cfg.legacy).lower()} for the head {other.prefix} of this "
            f"checkpoint, got {str(cfg.legacy).lower()} (true if it is missing); change it in config.json"
        )


def build(cfg: DebertaV2Config, w: Weights, task: Task) -> Program:
    """Build the Program of a task: "last_hidden_state", or the "logits" of a head."""
    matrix = head_matrix(cfg, w)
    h = encoder(cfg, w, Tokens())
    if task == "sequence-classification":
        found = {"logits": linear(pooler(cfg, w, h), w["classifier"], len(cfg.labels))}
    elif task == "multiple-choice":
        found = {"logits": linear(pooler(cfg, w, h), w["classifier"], 1)}
    elif task == "masked-lm":
        check_head(cfg, w)
        found = {"logits": predictions(cfg, w, h, matrix)}
    else:
        found = {"last_hidden_state": h} if task == "encoder" else token_outputs(cfg, w, h, task)
    return w.tracer.program(found, cfg.max_positions)
