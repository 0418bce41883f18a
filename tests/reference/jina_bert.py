"""JinaBERT v2 in float64 numpy, from its paper (Günther et al. 2023) and ALiBi's (Press et al. 2021).

Nothing of fastattn is used here. No library that the tests install has this model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_erf = np.vectorize(math.erf, otypes=[np.float64])


def slopes(n_head: int) -> list[float]:
    """Return the slopes of ALiBi: a geometric sequence from 2^(-8/n), or a mix of two for other numbers of heads."""
    if n_head & (n_head - 1) == 0:
        return [2.0 ** (-8.0 * (i + 1) / n_head) for i in range(n_head)]
    below = 2 ** math.floor(math.log2(n_head))
    return slopes(below) + slopes(2 * below)[0::2][: n_head - below]


@dataclass(frozen=True, slots=True)
class JinaBert:
    """The model of one text. tensors: by their names in the checkpoint, without a prefix."""

    config: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]

    def linear(self, x: Floats, name: str) -> Floats:
        y: Floats = x @ self.tensors[f"{name}.weight"].astype(np.float64).T
        return y + self.tensors[f"{name}.bias"] if f"{name}.bias" in self.tensors else y

    def norm(self, x: Floats, name: str) -> Floats:
        centered = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centered**2).mean(-1, keepdims=True) + self.config["layer_norm_eps"])
        result: Floats = centered / spread * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]
        return result

    def activation(self, x: Floats) -> Floats:
        if self.config["feed_forward_type"] == "reglu":
            return np.maximum(x, 0.0)
        result: Floats = x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0)))
        return result

    def attention(self, h: Floats, layer: str) -> tuple[Floats, Floats]:
        """Return the joined heads [n, d] and the probabilities [n_head, n, n]."""
        heads, place = self.config["num_attention_heads"], f"{layer}.attention.self"
        q, k, v = (self.linear(h, f"{place}.{name}") for name in ("query", "key", "value"))
        if f"{place}.layer_norm_q.weight" in self.tensors:
            q, k = self.norm(q, f"{place}.layer_norm_q"), self.norm(k, f"{place}.layer_norm_k")
        q, k, v = (x.reshape(len(h), heads, -1).transpose(1, 0, 2) for x in (q, k, v))
        position = np.arange(len(h))
        distance = np.abs(position[:, None] - position[None, :])
        # The biases are stored in float32.
        bias = (np.array(slopes(heads))[:, None, None] * -distance).astype(np.float32).astype(np.float64)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]) + bias
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        probs = weights / weights.sum(-1, keepdims=True)
        return (probs @ v).transpose(1, 0, 2).reshape(len(h), -1), probs

    def feed_forward(self, h: Floats, layer: str) -> Floats:
        """Gate and multiply the two halves, then project and normalize with the residual."""
        mlp, inner = f"{layer}.mlp", self.config["intermediate_size"]
        if f"{mlp}.up_gated_layer.weight" in self.tensors:  # the code model: the second half is the gate
            both = self.linear(h, f"{mlp}.up_gated_layer")
            m = self.linear(both[:, :inner] * self.activation(both[:, inner:]), f"{mlp}.down_layer")
            return self.norm(h + m, f"{layer}.layer_norm_2")
        both = self.linear(h, f"{mlp}.gated_layers")  # the first half is the gate
        m = self.linear(self.activation(both[:, :inner]) * both[:, inner:], f"{mlp}.wo")
        return self.norm(h + m, f"{mlp}.layernorm")

    def __call__(self, ids: NDArray[Any], types: NDArray[Any]) -> tuple[list[Floats], list[Floats]]:
        """Return the hidden states of all layers, each [n, d], and the attention maps."""
        words = self.tensors["embeddings.word_embeddings.weight"][ids].astype(np.float64)
        h = self.norm(words + self.tensors["embeddings.token_type_embeddings.weight"][types], "embeddings.LayerNorm")
        states, maps = [h], []
        for i in range(self.config["num_hidden_layers"]):
            layer = f"encoder.layer.{i}"
            a, probs = self.attention(h, layer)
            a = self.norm(h + self.linear(a, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
            if f"{layer}.layer_norm_1.weight" in self.tensors:
                a = self.norm(h + a, f"{layer}.layer_norm_1")
            h = self.feed_forward(a, layer)
            states.append(h)
            maps.append(probs)
        return states, maps

    def pooled(self, h: Floats) -> Floats:
        return np.tanh(self.linear(h[:1], "pooler.dense"))[0]

    def predictions(self, h: Floats) -> Floats:
        """Return the logits of the masked language model."""
        head = "cls.predictions"
        x = self.linear(h, f"{head}.transform.dense")
        x = self.norm(x * 0.5 * (1.0 + _erf(x / math.sqrt(2.0))), f"{head}.transform.LayerNorm")
        return x @ self.tensors[f"{head}.decoder.weight"].astype(np.float64).T + self.tensors[f"{head}.decoder.bias"]
