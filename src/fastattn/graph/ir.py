"""The Program: a flat list of ops that every executor runs.

A step is ragged: `n_tokens` packed tokens of `n_sequences` sequences, nothing padded. Every value of a Program is a
float matrix whose rows are one of

    "tokens"      one row per token of the step
    "wanted"      one row per token in `Step.wanted` (the rows whose logits are asked for)
    "sequences"   one row per sequence

`graph/kinds/` has the table of kinds: inputs, weights, attrs, float64 formula, cost.

Attention with causal=True reads and writes the KV cache of the step's
sequences; without it, keys and values live for the step only. `attention_probs` stands before its attention, and reads
what the cache stored before the step together with the step's keys; its q_rows is always "tokens".

Attention reads keys and values of all tokens, but its query rows may be a selection (`q_rows`, the same word as in the
gather_rows that made q): row i of q is then the token `Step.wanted[i]`, or the first or last token of sequence i, and
sees with causal=True the positions up to that token's own. An all-empty sequence gathers a row of zeros, pools to
zeros, and a query that sees no key gives zeros. Where `Step.token_type_ids` is None, all of them are 0.

Every op computes each row on its own, except attention (whose rows read their sequence's keys) and pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rows = Literal["tokens", "wanted", "sequences"]
Attr = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Value:
    """One matrix of a Program: which rows it has, and its width in columns (0 for attention_probs)."""

    rows: Rows
    width: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter. `parts` are tensor names of the checkpoint, stacked along out_features (fused QKV has three).

    use: "matrix" [out_features, in_features] (linear), "table" [rows, width] (embedding), "vector" [width].
    A "matrix" may also be read as a "table" (tied embeddings): it is stored once, as a matrix.
    transposed: the checkpoint holds [in_features, out_features] (GPT-2's Conv1D).
    """

    parts: tuple[str, ...]
    use: Literal["matrix", "table", "vector"]
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. inputs and output are indices into Program.values; weights are keys of Program.weights."""

    kind: str
    inputs: tuple[int, ...]
    output: int
    weights: tuple[str, ...] = ()
    attrs: Mapping[str, Attr] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Program:
    """A traced model."""

    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    weights: Mapping[str, Weight]
    outputs: Mapping[str, int]  # name -> value; more may be marked with `with_outputs`
    n_layer: int  # attention layers, for the KV cache
    n_kv_head: int
    head_dim: int
    max_positions: int
    causal: bool
    marks: Mapping[str, int] = field(default_factory=dict)  # values that `with_outputs` may turn into outputs


@dataclass(frozen=True, slots=True)
class Step:
    """The input of one run, already validated (`fastattn.models.inputs`).

    token_ids, positions, token_type_ids: int32 [n_tokens]; cu_seqlens: int32 [n_sequences + 1], prefix sums of the
    lengths; wanted: int32 [n_wanted], rows of the step in rising order; caches: one per sequence or None.
    """

    token_ids: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    positions: NDArray[np.int32]
    wanted: NDArray[np.int32]
    token_type_ids: NDArray[np.int32] | None = None
    caches: tuple[object, ...] | None = None
