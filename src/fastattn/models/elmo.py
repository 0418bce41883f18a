"""ELMo (Peters et al. 2018): a character CNN with highway layers, and LSTM language models in both directions.

The options are those of allennlp's options.json, the weights those of its HDF5 files, which TensorFlow wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastattn.checkpoint.hdf5 import Float32, Hdf5File
from fastattn.checkpoint.source import ComputedSource, WeightSource
from fastattn.graph.ir import Program
from fastattn.graph.kinds import (
    Activation,
    Projection,
    activate,
    concat,
    embedding,
    features,
    linear,
    lstm,
    pool,
    scale,
    window_rows,
)
from fastattn.graph.rewrites import optimize
from fastattn.graph.tensor import Tensor, Tokens, Tracer, Weights
from fastattn.models.names import Layout, resolve_names
from fastattn.settings import Settings

N_BYTES = 256
BEGIN_SENTENCE, END_SENTENCE, BEGIN_WORD, END_WORD, PAD = range(N_BYTES, N_BYTES + 5)
N_CHARACTERS = PAD + 1  # rows of the table in the file; row 0 of ours is a mask
LONGEST = 2**31 - 1
_HARMLESS = """
    bidirectional dropout n_train_tokens batch_size all_clip_norm_val n_epochs n_gpus unroll_steps
    n_negative_samples_batch n_tokens_vocab
"""


@dataclass(frozen=True, slots=True)
class ElmoConfig:
    """The options of a model.

    filters: width and number of each convolution. word_len: characters of a word, with those around it. cell_clip,
    proj_clip: 0: none.
    """

    char_dim: int
    filters: tuple[tuple[int, int], ...]
    n_highway: int
    activation: Activation
    word_len: int
    dim: int
    projection_dim: int
    n_layers: int
    cell_clip: float
    proj_clip: float
    use_skip_connections: bool

    @property
    def n_filters(self) -> int:
        return sum(count for _, count in self.filters)


def read_options(values: Mapping[str, Any], where: str) -> ElmoConfig:
    """Check the options of options.json. Raises ConfigError."""
    top = Settings(where, values)
    cnn, cell = (Settings(f"{where}: {name}", top.table(name)) for name in ("char_cnn", "lstm"))
    top.ignore(*_HARMLESS.split())
    if top.values.get("bidirectional") not in (None, True):
        raise top.error("bidirectional", "true")
    letters = Settings(f"{cnn.where}: embedding", cnn.table("embedding"))
    cnn.ignore("max_characters_per_token", "n_characters")
    if cnn.values.get("n_characters") not in (None, N_CHARACTERS, N_CHARACTERS + 1):
        raise cnn.error("n_characters", f"{N_CHARACTERS} or {N_CHARACTERS + 1}")
    config = ElmoConfig(
        char_dim=_size(letters, "dim"),
        filters=_filters(cnn),
        n_highway=_size(cnn, "n_highway", low=0),
        activation=_activation(cnn),
        word_len=cnn.count("max_characters_per_token", 50, low=3),
        dim=_size(cell, "dim"),
        projection_dim=_size(cell, "projection_dim"),
        n_layers=_size(cell, "n_layers"),
        cell_clip=_clip(cell, "cell_clip"),
        proj_clip=_clip(cell, "proj_clip"),
        use_skip_connections=cell.flag("use_skip_connections", False),
    )
    if config.word_len < max(width for width, _ in config.filters):
        raise cnn.error("max_characters_per_token", "at least the width of the widest filter")
    for settings in (top, cnn, cell, letters):
        settings.finish()
    return config


def _size(settings: Settings, key: str, *, low: int = 1) -> int:
    value = settings.count(key, None, low=low, high=2**24)
    if value is None:
        raise settings.error(key, f"an integer from {low} to {2**24}")
    return value


def _activation(settings: Settings) -> Activation:
    value = settings.choice("activation", ("relu", "tanh"), None)
    if value is None:
        raise settings.error("activation", "relu or tanh")
    return "relu" if value == "relu" else "tanh"


def _clip(settings: Settings, key: str) -> float:
    value = settings.number(key, None)
    if value is not None and not 0 < value < float("inf"):
        raise settings.error(key, "a number above 0, or null")
    return 0.0 if value is None else value


def _filters(settings: Settings) -> tuple[tuple[int, int], ...]:
    value = settings.raw("filters")
    pairs = value if isinstance(value, list) else []
    good = [
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 1 <= n <= 2**16 for n in pair)
    ]
    if not good or len(good) != len(pairs):
        raise settings.error("filters", "a list of pairs of integers, width and number")
    return tuple(good)


@dataclass(frozen=True, slots=True)
class Traced:
    """A Program and the sources of its weights."""

    program: Program
    sources: Mapping[str, WeightSource]


def word_program(config: ElmoConfig, file: Hdf5File) -> Traced:
    """Trace the character CNN: tokens are the characters of a word, and each sequence is a word.

    Output: "words" [n_sequences, projection_dim].
    """
    sources = _word_sources(config, file)
    w = Weights(Tracer(), resolve_names(sources, Layout()))
    x = embedding(w["char_embed"], Tokens().ids, N_CHARACTERS + 1, config.char_dim)
    parts = []
    for i, (width, count) in enumerate(config.filters):
        found = linear(window_rows(x, width, inside=True), w[f"CNN.{i}"], count)
        parts.append(activate(pool(found, "max"), config.activation))
    words = parts[0]
    for part in parts[1:]:
        words = concat(words, part)
    for i in range(config.n_highway):
        words = _highway(words, w[f"CNN_high_{i}"], w["minus"])
    words = linear(words, w["CNN_proj"], config.projection_dim)
    return Traced(optimize(w.tracer.program({"words": words}, LONGEST)), sources)


def _highway(x: Tensor, w: Weights, minus: Weights) -> Tensor:
    """Compute g f + (1 - g) x as x + g (f - x), f = relu(transform), g = sigmoid(carry) (Srivastava et al. 2015)."""
    new = activate(linear(x, w["transform"], x.width), "relu")
    gate = activate(linear(x, w["carry"], x.width), "sigmoid")
    return x + gate * (new + scale(x, minus))


def sentence_program(config: ElmoConfig, file: Hdf5File) -> Traced:
    """Trace the language models over words, which are rows of features. Outputs: "layers.0" to "layers.<n_layers>"."""
    sources = _cell_sources(config, file)
    w = Weights(Tracer(), resolve_names(sources, Layout()))
    width = config.projection_dim
    words = features(w.tracer, 0, "tokens", width)
    ways, outputs = [words, words], {"layers.0": concat(words, words)}
    for layer in range(config.n_layers):
        for direction, x in enumerate(ways):
            cell = w[f"RNN_{direction}.{layer}"]
            y = lstm(
                linear(x, cell["input"], 4 * config.dim, bias=False),
                cell["state"],
                config.dim,
                reverse=direction == 1,
                cell_clip=config.cell_clip,
                projection=Projection(cell["projection"], width, config.proj_clip),
            )
            ways[direction] = x + y if layer and config.use_skip_connections else y
        outputs[f"layers.{layer + 1}"] = concat(*ways)
    return Traced(optimize(w.tracer.program(outputs, LONGEST)), sources)


def _word_sources(config: ElmoConfig, file: Hdf5File) -> dict[str, WeightSource]:
    sources: dict[str, WeightSource] = {}
    n, d = config.n_filters, config.char_dim

    def add(name: str, shape: tuple[int, ...], stored: str, stored_shape: tuple[int, ...], convert: Any) -> None:
        sources[name] = file.source(name, shape, stored=stored, stored_shape=stored_shape, convert=convert)

    def as_is(values: Float32) -> Float32:
        return values

    table = (N_CHARACTERS, d)
    add("char_embed.weight", (N_CHARACTERS + 1, d), "char_embed", table, lambda x: np.pad(x, ((1, 0), (0, 0))))
    for i, (width, count) in enumerate(config.filters):
        taps = (1, width, d, count)
        add(f"CNN.{i}.weight", (count, width * d), f"CNN/W_cnn_{i}", taps, lambda x: x.reshape(-1, x.shape[-1]).T)
        add(f"CNN.{i}.bias", (count,), f"CNN/b_cnn_{i}", (count,), as_is)
    for i in range(config.n_highway):
        for part in ("transform", "carry"):
            name, stored = f"CNN_high_{i}.{part}", f"CNN_high_{i}"
            add(f"{name}.weight", (n, n), f"{stored}/W_{part}", (n, n), np.transpose)
            add(f"{name}.bias", (n,), f"{stored}/b_{part}", (n,), as_is)
    width = config.projection_dim
    add("CNN_proj.weight", (width, n), "CNN_proj/W_proj", (n, width), np.transpose)
    add("CNN_proj.bias", (width,), "CNN_proj/b_proj", (width,), as_is)
    if config.n_highway:
        sources["minus.weight"] = ComputedSource("minus.weight", (n,), lambda b, e: np.full(e - b, -1, np.float32))
    return sources


def _cell_sources(config: ElmoConfig, file: Hdf5File) -> dict[str, WeightSource]:
    """Return the weights of the cells. TensorFlow has the gates in the order i, g, f, o, and adds 1 to f."""
    sources: dict[str, WeightSource] = {}
    n, width = config.dim, config.projection_dim

    def gates(rows: slice, values: Float32) -> Float32:
        """Transpose some rows to [4 * n, .] and order the gates as torch does."""
        i, g, f, o = np.split(values[rows].T, 4)
        return np.concatenate([i, f, g, o])

    def bias(values: Float32) -> Float32:
        i, g, f, o = np.split(values, 4)
        return np.concatenate([i, f + np.float32(1), g, o])

    for direction in range(2):
        for layer in range(config.n_layers):
            name, stored = f"RNN_{direction}.{layer}", f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            for part, rows in (("input", slice(0, width)), ("state", slice(width, None))):
                sources[f"{name}.{part}.weight"] = file.source(
                    f"{name}.{part}.weight",
                    (4 * n, width),
                    stored=f"{stored}/W_0",
                    stored_shape=(2 * width, 4 * n),
                    convert=partial(gates, rows),
                )
            sources[f"{name}.state.bias"] = file.source(
                f"{name}.state.bias", (4 * n,), stored=f"{stored}/B", stored_shape=(4 * n,), convert=bias
            )
            sources[f"{name}.projection.weight"] = file.source(
                f"{name}.projection.weight",
                (width, n),
                stored=f"{stored}/W_P_0",
                stored_shape=(n, width),
                convert=np.transpose,
            )
    return sources


def characters_of(word: str, config: ElmoConfig) -> list[int]:
    """Return the ids of a word's characters, its UTF-8 bytes, as rows of the table.

    A word is padded to word_len. More padding than the widest filter needs changes no maximum, so it is left out.
    """
    data = word.encode("utf-8", "ignore")[: config.word_len - 2]
    return _padded([BEGIN_WORD, *data, END_WORD], config)


def boundaries(config: ElmoConfig) -> tuple[list[int], list[int]]:
    """Return the characters of the words before and after a sentence."""
    begin, end = ([BEGIN_WORD, mark, END_WORD] for mark in (BEGIN_SENTENCE, END_SENTENCE))
    return _padded(begin, config), _padded(end, config)


def _padded(characters: list[int], config: ElmoConfig) -> list[int]:
    length = min(config.word_len, len(characters) + max(width for width, _ in config.filters))
    return [character + 1 for character in characters + [PAD] * (length - len(characters))]
