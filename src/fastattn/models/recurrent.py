"""Recurrent sequence-to-sequence models: an encoder of GRUs or LSTMs, a decoder with attention over its outputs.

The attention is that of Bahdanau et al. (2015) or Luong et al. (2015). Tensors have the names of torch's nn.GRU,
nn.LSTM, nn.Embedding and nn.Linear; docs/how-to/recurrent.md lists them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastattn.checkpoint.source import ComputedSource, WeightSource, read_rows, require_weight_dtype
from fastattn.checks import quote, shown_names
from fastattn.errors import ConfigError
from fastattn.graph.ir import Program
from fastattn.graph.kinds import (
    activate,
    concat,
    embedding,
    features,
    gather_rows,
    gru,
    linear,
    lstm,
    sequence_probs,
    split,
    weighted_sum,
)
from fastattn.graph.rewrites import optimize
from fastattn.graph.tensor import Tensor, Tokens, Tracer, Weights
from fastattn.models.names import Layout, resolve_names
from fastattn.settings import Settings

MODEL_TYPE = "recurrent-seq2seq"
ATTENTIONS = ("bahdanau", "luong_dot", "luong_general", "luong_concat")
LONGEST = 2**31 - 1
_log = logging.getLogger("fastattn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentConfig:
    """The options of config.json.

    cell: "gru" or "lstm". hidden_size: of each direction of the encoder; decoder_hidden_size: of the decoder, which has
    one layer. attention_size: width in which Bahdanau and luong_concat add query and key. input_feeding: whether the
    decoder also reads its last attentional vector (Luong et al. 2015, section 3.3). tokens: what a token of a text is.
    append_eos: whether texts end with eos_token_id.
    """

    cell: str
    attention: str
    source_vocab_size: int
    target_vocab_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    decoder_hidden_size: int
    attention_size: int
    input_feeding: bool
    bos_token_id: int
    eos_token_id: int
    unk_token_id: int | None
    append_eos: bool
    tokens: str

    @property
    def encoder_width(self) -> int:
        return self.hidden_size * (2 if self.bidirectional else 1)

    @property
    def state_width(self) -> int:
        """Columns of the state of a hypothesis."""
        return self.decoder_hidden_size * (1 if self.cell == "gru" else 2)

    @property
    def key_width(self) -> int:
        added = self.attention in ("bahdanau", "luong_concat")
        return self.attention_size if added else self.decoder_hidden_size

    @property
    def feed_width(self) -> int:
        """Columns of the attentional vector that the decoder reads in the next step; 0: none."""
        return self.decoder_hidden_size if self.input_feeding else 0


def read_config(values: Mapping[str, Any], where: str) -> RecurrentConfig:
    """Check config.json. Raises ConfigError."""
    settings = Settings(where, values)
    if settings.raw("model_type") != MODEL_TYPE:
        raise settings.error("model_type", MODEL_TYPE)
    size = partial(_required, settings, high=2**24)
    hidden = size("hidden_size")
    source, target = size("source_vocab_size"), size("target_vocab_size")
    most = min(source, target) - 1 if settings.values.get("append_eos") else target - 1
    config = RecurrentConfig(
        cell=_choice(settings, "cell", ("gru", "lstm")),
        attention=_choice(settings, "attention", ATTENTIONS),
        source_vocab_size=source,
        target_vocab_size=target,
        embedding_size=size("embedding_size"),
        hidden_size=hidden,
        num_layers=settings.count("num_layers", 1, low=1, high=64),
        bidirectional=settings.flag("bidirectional", True),
        decoder_hidden_size=settings.count("decoder_hidden_size", hidden, low=1, high=2**24),
        attention_size=settings.count("attention_size", hidden, low=1, high=2**24),
        input_feeding=settings.flag("input_feeding", False),
        bos_token_id=_required(settings, "bos_token_id", low=0, high=target - 1),
        eos_token_id=_required(settings, "eos_token_id", low=0, high=most),
        unk_token_id=settings.count("unk_token_id", None, high=source - 1),
        append_eos=settings.flag("append_eos", False),
        tokens=settings.choice("tokens", ("characters", "words"), "words"),
    )
    if settings.count("decoder_layers", 1) != 1:
        raise settings.error("decoder_layers", "1")
    if config.attention == "luong_dot" and config.encoder_width != config.decoder_hidden_size:
        raise settings.error("decoder_hidden_size", f"{config.encoder_width}, the width of the encoder, for luong_dot")
    if config.attention == "bahdanau" and config.input_feeding:
        raise settings.error("input_feeding", "false with bahdanau, whose decoder reads the context already")
    settings.ignore("architectures", "dtype", "torch_dtype", "dropout", "pad_token_id", "transformers_version")
    settings.finish()
    return config


def _required(settings: Settings, key: str, *, low: int = 1, high: int) -> int:
    value = settings.count(key, None, low=low, high=high)
    if value is None:
        raise settings.error(key, f"an integer from {low} to {high}")
    return value


def _choice(settings: Settings, key: str, choices: tuple[str, ...]) -> str:
    value = settings.choice(key, choices, None)
    if value is None:
        raise settings.error(key, f"one of {', '.join(choices)}")
    return value


@dataclass(frozen=True, slots=True)
class RecurrentPrograms:
    """The encoder and one step of the decoder, with the sources of their weights.

    encoder: "keys" [n_tokens, key_width], "values" [n_tokens, encoder_width] and "state" [n_sequences, state_width].
    decoder: the tokens are those of the sources, with their keys and values as features 0 and 1; sequences are
    hypotheses, with their states and, with input_feeding, attentional vectors as features 2 and 3. The token ids are
    the last id of the hypothesis, for each token of its source. Outputs "logits", "state", "probs" and "feed".
    """

    encoder: Program
    decoder: Program
    sources: Mapping[str, WeightSource]


def trace(config: RecurrentConfig, tensors: Mapping[str, WeightSource], where: str) -> RecurrentPrograms:
    """Trace both Programs. Raises ConfigError if the tensors do not fit config.json."""
    sources = _sources(config, tensors, where)
    names = resolve_names(sources, Layout())
    encoder, decoder = (optimize(made(config, Weights(Tracer(), names))) for made in (_encoder, _decoder))
    return RecurrentPrograms(encoder, decoder, sources)


def _recurrence(
    config: RecurrentConfig, x: Tensor, w: Weights, hidden: int, *, reverse: bool = False, state: Tensor | None = None
) -> Tensor:
    """Return the rows of a GRU or, with the cell after the output, of an LSTM."""
    gates = linear(x, w["input"], (3 if config.cell == "gru" else 4) * hidden)
    if config.cell == "gru":
        return gru(gates, w["hidden"], hidden, reverse=reverse, state=state)
    return lstm(gates, w["hidden"], hidden, reverse=reverse, state=state, cells=True)


def _output(config: RecurrentConfig, rows: Tensor, hidden: int) -> Tensor:
    return rows if config.cell == "gru" else split(rows, (hidden, hidden))[0]


def _encoder(config: RecurrentConfig, w: Weights) -> Program:
    hidden = config.hidden_size
    x = embedding(w["encoder.embedding"], Tokens().ids, config.source_vocab_size, config.embedding_size)
    for layer in range(config.num_layers):
        ways = [
            _recurrence(config, x, w[f"encoder.rnn.{layer}.{direction}"], hidden, reverse=direction == "backward")
            for direction in _directions(config)
        ]
        outputs = [_output(config, way, hidden) for way in ways]
        x = concat(*outputs) if config.bidirectional else outputs[0]
    ends = [gather_rows(ways[0], "last"), *(gather_rows(way, "first") for way in ways[1:])]
    state = _first_state(config, ends, w)
    keys = (
        x if config.attention == "luong_dot" else linear(x, w["attention.key"], config.key_width, bias=_bias(w, "key"))
    )
    return w.tracer.program({"keys": keys, "values": x, "state": state}, LONGEST)


def _directions(config: RecurrentConfig) -> tuple[str, ...]:
    return ("forward", "backward") if config.bidirectional else ("forward",)


def _first_state(config: RecurrentConfig, ends: list[Tensor], w: Weights) -> Tensor:
    """Return tanh of a linear of the last outputs of both directions and, for an LSTM, another one of the cells."""
    parts = [[end] if config.cell == "gru" else list(split(end, 2)) for end in ends]
    states = []
    for name, of_ways in zip(("bridge", "bridge_cell"), zip(*parts, strict=True), strict=False):
        both = concat(*of_ways) if len(of_ways) == 2 else of_ways[0]
        states.append(activate(linear(both, w[name], config.decoder_hidden_size), "tanh"))
    return states[0] if len(states) == 1 else concat(*states)


def _bias(w: Weights, name: str) -> bool:
    return w["attention"][name].has("bias")


def _decoder(config: RecurrentConfig, w: Weights) -> Program:
    hidden, tracer = config.decoder_hidden_size, w.tracer
    keys = features(tracer, 0, "tokens", config.key_width)
    values = features(tracer, 1, "tokens", config.encoder_width)
    state = features(tracer, 2, "sequences", config.state_width)
    ids = embedding(w["decoder.embedding"], Tokens().ids, config.target_vocab_size, config.embedding_size)
    x, cell = gather_rows(ids, "first"), w["decoder.rnn.0.forward"]
    if config.attention == "bahdanau":
        probs, context = _attend(config, _output(config, state, hidden), keys, values, w)
        rows = _recurrence(config, concat(x, context), cell, hidden, state=state)
        readout = concat(_output(config, rows, hidden), context)
    else:
        x = concat(x, features(tracer, 3, "sequences", config.feed_width)) if config.input_feeding else x
        rows = _recurrence(config, x, cell, hidden, state=state)
        h = _output(config, rows, hidden)
        probs, context = _attend(config, h, keys, values, w)
        combined = linear(concat(context, h), w["decoder.combine"], hidden, bias=w["decoder.combine"].has("bias"))
        readout = activate(combined, "tanh")
    outputs = {"logits": linear(readout, w["output"], config.target_vocab_size), "state": rows, "probs": probs}
    if config.input_feeding:
        outputs["feed"] = readout
    return tracer.program(outputs, LONGEST)


def _attend(config: RecurrentConfig, query: Tensor, keys: Tensor, values: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """Return the probabilities of the source's tokens, and the context."""
    score = None
    if config.attention in ("bahdanau", "luong_concat"):
        query = linear(query, w["attention.query"], config.key_width, bias=_bias(w, "query"))
        score = w["attention.score"]
    probs = sequence_probs(query, keys, score)
    return probs, weighted_sum(probs, values)


def _sources(config: RecurrentConfig, tensors: Mapping[str, WeightSource], where: str) -> dict[str, WeightSource]:
    """Return the tensors by the names of the Programs. Raises ConfigError for one that is missing or does not fit."""
    sources: dict[str, WeightSource] = {}
    used: set[str] = set()

    def take(name: str, shape: tuple[int, ...], stored: str, *, optional: bool = False) -> None:
        found = tensors.get(stored)
        if found is None and optional:
            return
        if found is None or found.shape != shape:
            got = "none" if found is None else str(list(found.shape))
            raise ConfigError(f"{where}: {quote(stored)[1:-1]}: expected a tensor {list(shape)}, got {got}")
        require_weight_dtype(found)
        used.add(stored)
        sources[name] = found

    def cell(name: str, stored: str, ending: str, width: int, hidden: int) -> None:
        gates = (3 if config.cell == "gru" else 4) * hidden
        for part, theirs, columns in (("input", "ih", width), ("hidden", "hh", hidden)):
            take(f"{name}.{part}.weight", (gates, columns), f"{stored}.weight_{theirs}_{ending}")
            take(f"{name}.{part}.bias", (gates,), f"{stored}.bias_{theirs}_{ending}")

    def dense(name: str, rows: int, columns: int, *, optional_bias: bool = False) -> None:
        take(f"{name}.weight", (rows, columns), f"{name}.weight")
        take(f"{name}.bias", (rows,), f"{name}.bias", optional=optional_bias)

    encoded, hidden, width = config.encoder_width, config.decoder_hidden_size, config.embedding_size
    for side, rows in (("encoder", config.source_vocab_size), ("decoder", config.target_vocab_size)):
        take(f"{side}.embedding.weight", (rows, width), f"{side}.embedding.weight")
    for layer in range(config.num_layers):
        for direction in _directions(config):
            ending = f"l{layer}" + ("_reverse" if direction == "backward" else "")
            columns = encoded if layer else width
            cell(f"encoder.rnn.{layer}.{direction}", "encoder.rnn", ending, columns, config.hidden_size)
    for name in ("bridge",) if config.cell == "gru" else ("bridge", "bridge_cell"):
        dense(name, hidden, encoded)
    added = encoded if config.attention == "bahdanau" else config.feed_width
    cell("decoder.rnn.0.forward", "decoder.rnn", "l0", width + added, hidden)
    if config.attention != "luong_dot":
        dense("attention.key", config.key_width, encoded, optional_bias=True)
    if config.attention in ("bahdanau", "luong_concat"):
        dense("attention.query", config.key_width, hidden, optional_bias=True)
        take("attention.score.weight", (1, config.key_width), "attention.score.weight")
        sources["attention.score.weight"] = _as_vector(sources["attention.score.weight"], config.key_width)
    if config.attention != "bahdanau":
        dense("decoder.combine", hidden, encoded + hidden, optional_bias=True)
    dense("output", config.target_vocab_size, hidden + (encoded if config.attention == "bahdanau" else 0))
    unused = sorted(set(tensors) - used)
    if unused:
        _log.warning("%s: tensors that the model does not use: %s", where, shown_names(unused, len(unused)))
    return sources


def _as_vector(source: WeightSource, n: int) -> WeightSource:
    """Return a matrix of one row as a vector."""

    def compute(begin: int, end: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.ascontiguousarray(read_rows(source, 0, 1)[0, begin:end])

    return ComputedSource(source.name, (n,), compute)
