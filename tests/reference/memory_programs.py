"""Two small Programs: an encoder that stores a memory of two layers, and a decoder that reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint import WeightSource
from fastattn.executors.cpu import CpuExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.executor import Executor
from fastattn.graph.ir import Program
from fastattn.graph.kinds import attention, cross_attention, embedding, gather_rows, layer_norm, linear, store_memory
from fastattn.graph.rewrites import optimize
from fastattn.graph.tensor import Tokens, Tracer, Weights
from tests.reference.decoder_program import AllNames, random_sources, step_of

LAYERS, KV_HEADS, HEAD_DIM, POSITIONS = 2, 2, 12, 320


@dataclass(frozen=True, slots=True)
class MemoryPrograms:
    """The traced Programs and the sources of all their weights."""

    encoder: Program
    decoder: Program
    sources: Mapping[str, WeightSource]


def memory_programs(*, heads: int = 4, which: str | None = None) -> MemoryPrograms:
    """Trace both. heads: query heads, which share the keys of KV_HEADS. which: as in `decoder_program`."""
    width = KV_HEADS * HEAD_DIM
    w = Weights(Tracer(), AllNames())
    x = embedding(w["wte"], Tokens().ids, 50, width)
    q, k, v = (linear(x, w["enc"][name], width) for name in "qkv")
    x = layer_norm(x + attention(q, k, v, layer=0, n_head=KV_HEADS, causal=False), w["enc.norm"], 1e-5)
    outputs = {}
    for layer in range(LAYERS):
        keys, values = (linear(x, w[f"dec.{layer}.{name}"], width) for name in ("ck", "cv"))
        outputs[f"memory.{layer}"] = store_memory(keys, values, layer=layer, n_kv_head=KV_HEADS)
    encoder = replace(w.tracer.program({"x": x, **outputs}, POSITIONS), n_layer=LAYERS)

    w = Weights(Tracer(), AllNames())
    x = embedding(w["wte"], Tokens().ids, 50, width)
    for layer in range(LAYERS):
        b = w[f"dec.{layer}"]
        q, k, v = (linear(x, b[name], width) for name in "qkv")
        x = layer_norm(x + attention(q, k, v, layer=layer, n_head=KV_HEADS, causal=True), b["norm"], 1e-5)
        y = cross_attention(
            linear(x, b["cq"], heads * HEAD_DIM), layer=layer, n_head=heads, n_kv_head=KV_HEADS, scale=0.4
        )
        x = layer_norm(x + linear(y, b["co"], width), b["cnorm"], 1e-5)
    decoder = w.tracer.program({"y": x if which is None else gather_rows(x, which)}, POSITIONS)
    return MemoryPrograms(encoder, decoder, {**random_sources(encoder), **random_sources(decoder)})


class Pair:
    """Both Programs with their weights loaded once."""

    def __init__(self, made: MemoryPrograms, *, device: str = "cpu", fused: bool = True, **options: Any) -> None:
        rewrite = optimize if fused else (lambda program: program)
        encoder, decoder = rewrite(made.encoder), rewrite(made.decoder)
        both = replace(decoder, weights={**encoder.weights, **decoder.weights})
        kind = CpuExecutor if device == "cpu" else NumpyExecutor
        loaded: Executor = kind(both, made.sources, **options)
        self.encoder, self.decoder = loaded.with_program(encoder), loaded.with_program(decoder)

    def memories(self, lengths: Sequence[int], *, first: int = 0) -> list[Any]:
        """Run the encoder once over texts of these lengths, and return their memories."""
        caches = [self.encoder.new_cache() for _ in lengths]
        found = self.encoder.run(step_of(*lengths, first=first, caches=caches))
        for layer in range(LAYERS):
            assert np.asarray(found[f"memory.{layer}"])[:, 0].tolist() == list(lengths)
        return caches

    def caches(self, memories: Sequence[Any]) -> list[Any]:
        """Return empty caches of the decoder that read these memories."""
        caches: list[Any] = [self.decoder.new_cache() for _ in memories]
        for cache, memory in zip(caches, memories, strict=True):
            cache.set_memory(memory)
        return caches

    def decode(self, lengths: Sequence[int], memories: Sequence[Any], **options: Any) -> NDArray[Any]:
        """Run the decoder once over texts of these lengths."""
        return np.asarray(self.decoder.run(step_of(*lengths, caches=self.caches(memories), **options))["y"])
