"""What a model returns.

The layout follows the input: a 1-D input gives arrays without a batch axis, a 2-D one stacked arrays with zeros at
masked positions, a list of sequences gives lists with one array a sequence. Arrays are float32 (device "numpy":
float64).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
PerToken = Array | list[Array]


@dataclass(frozen=True, slots=True)
class CausalLMOutput:
    """logits [batch, seq_len, vocab_size]; hidden_states: n_layer + 1 of [batch, seq_len, n_embd], the embeddings
    first, the last one after the last norm; attentions: n_layer of [batch, n_head, seq_len, seq_len]."""

    logits: PerToken
    hidden_states: tuple[PerToken, ...] | None = None
    attentions: tuple[PerToken, ...] | None = None


@dataclass(frozen=True, slots=True)
class EncoderOutput:
    """last_hidden_state [batch, seq_len, hidden_size]; pooler_output [batch, hidden_size] where the checkpoint has a
    pooler; hidden_states and attentions as in CausalLMOutput."""

    last_hidden_state: PerToken
    pooler_output: Array | None = None
    hidden_states: tuple[PerToken, ...] | None = None
    attentions: tuple[PerToken, ...] | None = None


@dataclass(frozen=True, slots=True)
class SequenceClassifierOutput:
    """logits [batch, num_labels], or [num_labels] for a 1-D input; hidden_states and attentions as in
    CausalLMOutput."""

    logits: Array
    hidden_states: tuple[PerToken, ...] | None = None
    attentions: tuple[PerToken, ...] | None = None
