"""A small encoder whose attention has tables of relative positions."""

from __future__ import annotations

import numpy as np

from fastattn.checkpoint import ComputedSource, WeightSource
from fastattn.graph.kinds import attention, embedding, gather_rows, linear
from fastattn.graph.position_tables import Columns, PositionTables
from fastattn.graph.tensor import Tokens, Tracer, Weights
from tests.reference.decoder_program import POSITIONS, AllNames, DecoderProgram, random_sources

HEADS, HEAD_DIM = 4, 20  # matrices of fewer than 64 rows are not quantized


def columns(*, linear_part: int = 40, positions: int = POSITIONS) -> Columns:
    """Return columns that are single distances up to `linear_part`, then ranges of two, then of five distances."""
    distances = np.arange(positions)
    more = np.maximum(distances - linear_part, 0)
    index = np.minimum(distances, linear_part) + np.minimum(more // 2, 30) + np.maximum(more - 60, 0) // 5
    both = np.concatenate([index[:0:-1], -index])
    return Columns(index=tuple(both.tolist()))


def positioned_program(
    *,
    kinds: str = "kq",
    which: str | None = None,
    window: int = 0,
    layers: int = 2,
    linear_part: int = 40,
    positions: int = POSITIONS,
) -> DecoderProgram:
    """Trace it. kinds: "k" for position keys, "q" for position queries, or both. which: the rows of the output."""
    tracer = Tracer()
    w, width = Weights(tracer, AllNames()), HEADS * HEAD_DIM
    made = columns(linear_part=linear_part, positions=positions)
    x = embedding(w["wte"], Tokens().ids, 50, width)
    for layer in range(layers):
        b = w[f"h.{layer}"]
        q, k, v = (linear(x, b[name], width, bias=False) for name in "qkv")
        tables = PositionTables(
            columns=w["columns"],
            keys=b["keys"] if "k" in kinds else None,
            queries=b["queries"] if "q" in kinds else None,
            n_columns=made.n_columns,
            positions=made.positions,
        )
        y = attention(q, k, v, layer=layer, n_head=HEADS, causal=False, scale=0.6, window=window, tables=tables)
        x = x + linear(y, b["o"], width, bias=False)
    program = tracer.program({"y": x if which is None else gather_rows(x, which)}, positions)
    sources: dict[str, WeightSource] = random_sources(program, scaled=True)
    sources["columns.weight"] = ComputedSource("columns.weight", made.shape, made.rows)
    return DecoderProgram(program, sources)
