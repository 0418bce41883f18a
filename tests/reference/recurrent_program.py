"""Small Programs with lstm, gru, features and the attention of one query per sequence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastattn.graph.ir import Step
from fastattn.graph.kinds import (
    Projection,
    concat,
    embedding,
    features,
    gather_rows,
    gru,
    linear,
    lstm,
    sequence_probs,
    weighted_sum,
    window_rows,
)
from fastattn.graph.tensor import Tokens, Tracer, Weights
from tests.reference.decoder_program import AllNames, DecoderProgram, random_sources, step_of

WIDTH, HIDDEN, PROJECTED, POSITIONS = 24, 70, 66, 320


def recurrent_program(kind: str, *, bias: bool = True) -> DecoderProgram:
    """Trace a bidirectional layer and a step of a decoder over it.

    kind: "lstm", "gru", or "elmo" for an LSTM with a projection and clips. Output y has a row for each token, z one for
    each sequence.
    """
    tracer = Tracer()
    w = Weights(tracer, AllNames())
    x = concat(embedding(w["wte"], Tokens().ids, 50, WIDTH), features(tracer, 0, "tokens", 3))
    gates, width = 3 if kind == "gru" else 4, PROJECTED if kind == "elmo" else HIDDEN
    ways = []
    for direction in ("forward", "backward"):
        b, reverse = w[direction], direction == "backward"
        part = linear(x, b["input"], gates * HIDDEN, bias=bias)
        if kind == "gru":
            ways.append(gru(part, b["hidden"], HIDDEN, bias=bias, reverse=reverse))
        elif kind == "lstm":
            ways.append(lstm(part, b["hidden"], HIDDEN, bias=bias, reverse=reverse, cells=True))
        else:
            down = Projection(b["down"], PROJECTED, 0.5)
            ways.append(lstm(part, b["hidden"], HIDDEN, bias=bias, reverse=reverse, cell_clip=0.6, projection=down))
    y = concat(*ways)
    state = gather_rows(ways[0], "last")
    if kind == "elmo":
        state = linear(state, w["bridge"], PROJECTED + HIDDEN)
    token = linear(features(tracer, 1, "sequences", 5), w["decoder.input"], gates * HIDDEN)
    cell = w["decoder.hidden"]
    if kind == "gru":
        h = gru(token, cell, HIDDEN, state=state)
    else:
        down = Projection(w["decoder.down"], PROJECTED) if kind == "elmo" else None
        h = lstm(token, cell, HIDDEN, state=state, projection=down)
    probs = sequence_probs(linear(h, w["query"], 20), linear(y, w["key"], 20, bias=False), w["score"])
    plain = sequence_probs(h, linear(y, w["general"], width, bias=False))
    z = concat(weighted_sum(probs, y), weighted_sum(plain, window_rows(y, 2, inside=True)))
    program = tracer.program({"y": y, "z": z, "probs": probs}, POSITIONS)
    return DecoderProgram(program, random_sources(program, scaled=True))


def recurrent_step(*lengths: int, seed: int = 0) -> Step:
    """Return a step whose features depend on the position, and those of a sequence on its length."""
    step = step_of(*lengths)
    table = np.random.default_rng(seed).standard_normal((POSITIONS, 8)).astype(np.float32)
    tokens = np.ascontiguousarray(table[step.positions, :3])
    return replace(step, features=(tokens, np.ascontiguousarray(table[list(lengths), 3:])))
