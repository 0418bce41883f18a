"""The table of op kinds, and the functions that models call.

One file declares a kind once: what models call, its float64 formula, its cost, and what rewrites may do. Executors,
rewrites, costs and profiles look kinds up here. csrc/program has their counterpart in C++.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.graph.kinds.activations import Activation
from fastattn.graph.kinds.attention import ATTENTION, ATTENTION_PROBS, attention
from fastattn.graph.kinds.linear import ACTIVATION, LINEAR, activate, linear
from fastattn.graph.kinds.lora import LORA, LoraAdapter, LoraPart
from fastattn.graph.kinds.norm import L2_NORMALIZE, LAYER_NORM, RMS_NORM, SCALE, layer_norm, rms_norm, scale
from fastattn.graph.kinds.recurrent import (
    GRU,
    LSTM,
    SEQUENCE_PROBS,
    WEIGHTED_SUM,
    Projection,
    gru,
    lstm,
    sequence_probs,
    weighted_sum,
)
from fastattn.graph.kinds.rotary import ROTARY, rotary
from fastattn.graph.kinds.rows import (
    CONCAT,
    EMBEDDING,
    FEATURES,
    GATHER_ROWS,
    POOL,
    ROWS_OF,
    SLICE,
    WINDOW_ROWS,
    Pooling,
    Selection,
    concat,
    embedding,
    features,
    gather_rows,
    pool,
    split,
    window_rows,
)
from fastattn.graph.op_kind import OpKind
from fastattn.graph.tensor import ADD, MULTIPLY

__all__ = [
    "KINDS",
    "ROWS_OF",
    "Activation",
    "LoraAdapter",
    "LoraPart",
    "Pooling",
    "Projection",
    "Selection",
    "activate",
    "attention",
    "concat",
    "embedding",
    "features",
    "gather_rows",
    "gru",
    "layer_norm",
    "linear",
    "lstm",
    "pool",
    "rms_norm",
    "rotary",
    "scale",
    "sequence_probs",
    "split",
    "weighted_sum",
    "window_rows",
]

KINDS: Mapping[str, OpKind] = {
    kind.name: kind
    for kind in (
        EMBEDDING,
        ADD,
        MULTIPLY,
        LAYER_NORM,
        RMS_NORM,
        SCALE,
        ROTARY,
        LINEAR,
        LORA,
        ACTIVATION,
        SLICE,
        ATTENTION,
        ATTENTION_PROBS,
        GATHER_ROWS,
        POOL,
        WINDOW_ROWS,
        L2_NORMALIZE,
        FEATURES,
        CONCAT,
        LSTM,
        GRU,
        SEQUENCE_PROBS,
        WEIGHTED_SUM,
    )
}
