"""The Program: a flat list of ops that every executor runs.

A step is ragged: `n_tokens` packed tokens of `n_sequences` sequences, without padding. Every value of a Program is a
float matrix with one of these kinds of rows:

    "tokens"      one row per token of the step
    "wanted"      one row per token in `Step.wanted` (the rows that need logits)
    "sequences"   one row per sequence

`graph/kinds/` has the table of kinds: inputs, weights, attrs, float64 formula, cost.

Attention with causal=True reads and writes the KV caches of the step's sequences; otherwise keys and values exist only
during the step. `attention_probs` comes before its attention. It reads the keys that were cached before the step and
the keys of the step; its q_rows is always "tokens", and its maps are those of heads [first_head, first_head + n_maps).

store_memory, in the Program of an encoder, stores keys and values in the caches of the step, which must be empty.
cross_attention, in that of a decoder, reads them in the memory of each sequence's cache (`Cache.set_memory`). Memories
have their own lengths and never change, so any number of sequences may share one.

Attention reads the keys and values of all tokens, but its query rows may be a selection (`q_rows`, with the same
meaning as in the gather_rows that made q). Row i of q is then the token `Step.wanted[i]`, or the first or last token of
sequence i. With causal=True it attends to the positions up to its own; with a window, only to those at a smaller
distance. An empty sequence gathers a row of zeros and pools to zeros. A query that attends to no key gives zeros. If
`Step.token_type_ids` is None, all of them are 0.

Every op computes each row independently, except attention (whose rows read the keys of their sequence), pool,
window_rows (whose rows read their neighbors), lstm and gru (whose rows read the ones before, or after, in their
sequence), and sequence_probs and weighted_sum (which read all rows of a sequence). rotary reads the position of each
row's token, cross_attention the memory of its sequence, and lora its adapter; their attr `rows` says which tokens the
rows are, like q_rows of attention.
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
    """One matrix of a Program: its kind of rows, and its width in columns (0 for attention_probs)."""

    rows: Rows
    width: int


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter. `parts` are names of checkpoint tensors, stacked along out_features (fused QKV has three).

    use: "matrix" [out_features, in_features] (linear), "table" [rows, width] (embedding), "vector" [width].
    A "matrix" may also be read as a "table" (tied embeddings); it is stored once, as a matrix.
    transposed: the checkpoint stores [in_features, out_features] (GPT-2's Conv1D). exact: float32 in every dtype.
    """

    parts: tuple[str, ...]
    use: Literal["matrix", "table", "vector"]
    shape: tuple[int, ...]
    transposed: bool = False
    exact: bool = False


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
    outputs: Mapping[str, int]  # name -> value; `with_outputs` adds more
    n_layer: int  # number of attention layers, for the KV cache
    n_kv_head: int
    head_dim: int
    max_positions: int
    causal: bool
    marks: Mapping[str, int] = field(default_factory=dict)  # values that `with_outputs` may turn into outputs

    @property
    def kv_window(self) -> int:
        """The number of positions that a query sees, up to its own, in the layer where it sees most; 0: all of them."""
        windows = [int(str(op.attrs["window"])) for op in self.ops if op.kind == "attention"]
        return max(windows) if self.causal and windows and all(windows) else 0


@dataclass(frozen=True, slots=True)
class Step:
    """The validated input of one run (see `fastattn.models.inputs`).

    token_ids, positions, token_type_ids: int32 [n_tokens]. cu_seqlens: int32 [n_sequences + 1], prefix sums of the
    lengths. wanted: int32 [n_wanted], rows of the step in ascending order. caches: one per sequence, or None.
    key_counts: int32 [n_sequences] or None; the number of leading tokens of each sequence that serve as keys. The other
    tokens still attend to them. CUDA does not support key_counts. The CPU supports them only without caches, causal
    attention, biases, position tables and attention maps, and if all windows reach every key.
    features: float32 [n_tokens or n_sequences, width], rows that the caller computed, for the ops `features`.
    """

    token_ids: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    positions: NDArray[np.int32]
    wanted: NDArray[np.int32]
    token_type_ids: NDArray[np.int32] | None = None
    caches: tuple[object, ...] | None = None
    key_counts: NDArray[np.int32] | None = None
    features: tuple[NDArray[np.float32], ...] = ()
