"""The output matrix of language models, which is often the table of token embeddings."""

from __future__ import annotations

from fastattn.graph.kinds import Activation, activate, gather_rows, layer_norm, linear
from fastattn.graph.tensor import Tensor, Weights


def decoder_matrix(own: Weights, embeddings: Weights, vocab_size: int, width: int, *, tied: bool) -> Weights:
    """Return the `Weights` of the output matrix: `own`, or the token embeddings if they are tied or `own` repeats them.

    Tied embeddings are then a matrix for every task, so they are rounded the same way in all of them.
    """
    if own.has("weight") or not (tied or own.repeats("weight")):
        return own
    embeddings.matrix(vocab_size, width)
    return embeddings


def transform(
    h: Tensor, dense: Weights, norm: Weights, width: int, activation: Activation, eps: float, *, bias: bool = True
) -> Tensor:
    """Compute norm(activation(dense(h))) at the wanted rows, [n_wanted, width]: the input of the output matrix.

    bias: whether `dense` has one.
    """
    x = linear(gather_rows(h, "wanted"), dense, width, bias=bias)
    return layer_norm(activate(x, activation), norm, eps)


def decode(x: Tensor, matrix: Weights, own: Weights, head: Weights, vocab_size: int) -> Tensor:
    """Compute the logits of all tokens of the vocabulary. The bias is in the decoder, or in the head around it."""
    return linear(x, matrix, vocab_size, bias=own if own.has("bias") else head)
