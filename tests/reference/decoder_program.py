"""A small Program in the form of the Llama family: rms_norm, rotary, multiply, queries that share keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fastattn.checkpoint import ArraySource, ComputedSource, WeightSource
from fastattn.graph.attention_bias import AlibiBias, RelativeBias, T5Buckets, alibi_slopes
from fastattn.graph.ir import Program, Step
from fastattn.graph.kinds import activate, attention, embedding, gather_rows, linear, rms_norm, rotary, scale
from fastattn.graph.rotary_table import RotaryTable
from fastattn.graph.tensor import Tensor, Tokens, Tracer, Weights

HEADS, HEAD_DIM, POSITIONS = 2, 12, 320
FREQUENCIES = tuple(10000.0 ** (-i / 6) for i in range(6))


class AllNames:
    """A checkpoint that has every tensor."""

    def has(self, name: str) -> bool:
        return True

    def repeats(self, name: str) -> bool:
        return False

    def transposed(self, name: str) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class DecoderProgram:
    """A traced Program and the sources of its weights."""

    program: Program
    sources: Mapping[str, WeightSource]


def decoder_program(
    *,
    interleaved: bool = False,
    dimensions: int = 8,
    which: str | None = None,
    layers: int = 1,
    heads: int = HEADS,
    causal: bool = True,
    window: int = 0,
    softcap: float = 0.0,
    scaled: bool = False,
    bias: str | None = None,
) -> DecoderProgram:
    """Trace the Program. which: None for an output of every token, or the rows that gather_rows selects.

    window: of every second layer, from the first on. softcap: of all layers. scaled: whether the op scale follows the
    embeddings and the last layer. bias: None, or a key of BIASES for one that all layers read.
    """
    tracer = Tracer()
    w, width = Weights(tracer, AllNames()), heads * HEAD_DIM
    table = RotaryTable(frequencies=FREQUENCIES[: dimensions // 2], positions=POSITIONS, interleaved=interleaved)

    def turned(x: Tensor, n_head: int) -> Tensor:
        return rotary(
            x, w["angles"], n_head=n_head, dimensions=dimensions, max_positions=POSITIONS, interleaved=interleaved
        )

    x = embedding(w["wte"], Tokens().ids, 50, width)
    x = scale(x, w["factors"]) if scaled else x
    for layer in range(layers):
        b = w[f"h.{layer}"]
        normed = rms_norm(x, b["norm"], 1e-6)
        q = linear(normed, b["q"], width, bias=False)
        k, v = (linear(normed, b[name], HEADS * HEAD_DIM, bias=False) for name in "kv")
        q = turned(rms_norm(q, b["q_norm"], 1e-5, groups=heads), heads)
        y = x + attention(
            q,
            turned(k, HEADS),
            v,
            layer=layer,
            n_head=heads,
            n_kv_head=HEADS,
            causal=causal,
            window=0 if layer % 2 else window,
            softcap=softcap,
            bias=w["bias"] if bias else None,
            bias_positions=POSITIONS if bias else 0,
        )
        normed = rms_norm(y, b["mlp_norm"], 1e-6)
        gate, up = (linear(normed, b[name], 72, bias=False) for name in ("gate", "up"))
        x = y + linear(activate(gate, "silu") * up, b["down"], width, bias=False)
    x = scale(x, w["factors"]) if scaled else x
    outputs = {"y": x if which is None else gather_rows(x, which)}
    program = tracer.program(outputs, POSITIONS)
    sources = sources_of(program, table)
    if bias:
        made = BIASES[bias](heads, causal)
        sources["bias.weight"] = ComputedSource("bias.weight", made.shape, made.rows)
    return DecoderProgram(program, sources)


def _learned(heads: int, causal: bool) -> RelativeBias:
    buckets = T5Buckets(num_buckets=16, max_distance=100, bidirectional=not causal)
    numbers = 3 * np.random.default_rng(8).standard_normal((16, heads)).astype(np.float32)
    return RelativeBias(weight=ArraySource("learned", numbers), buckets=buckets, positions=POSITIONS, causal=causal)


BIASES: Mapping[str, Callable[[int, bool], AlibiBias | RelativeBias]] = {
    "alibi": lambda heads, causal: AlibiBias(slopes=alibi_slopes(heads), positions=POSITIONS, causal=causal),
    "learned": _learned,
}


def sources_of(program: Program, table: RotaryTable) -> dict[str, WeightSource]:
    """Return random weights and the table of rotary."""
    sources = random_sources(program)
    if "angles.weight" in sources:
        sources["angles.weight"] = ComputedSource("angles.weight", table.shape, table.rows)
    return sources


def random_sources(program: Program, *, scaled: bool = False) -> dict[str, WeightSource]:
    """Return random weights, the same for the same name. scaled: divide matrices by the root of their inputs."""
    sources: dict[str, WeightSource] = {}
    for weight in program.weights.values():
        for name in weight.parts:
            rng = np.random.default_rng(list(name.encode()))
            factor = weight.shape[-1] ** -0.5 if scaled and weight.use == "matrix" else 1.0
            numbers = (factor * rng.standard_normal(weight.shape)).astype(np.float32)
            sources[name] = ArraySource(name, numbers)
    return sources


def step_of(
    *lengths: int, first: int = 0, wanted: list[int] | None = None, caches: Iterable[object] | None = None
) -> Step:
    """Return a step of sequences that begin at position `first`; their ids depend on the position alone."""
    n = sum(lengths)
    positions = np.concatenate([np.arange(first, first + length) for length in lengths] or [np.zeros(0)])
    return Step(
        token_ids=((positions * 7 + 3) % 50).astype(np.int32),
        cu_seqlens=np.cumsum([0, *lengths]).astype(np.int32),
        positions=positions.astype(np.int32),
        wanted=np.array(list(range(n)) if wanted is None else wanted, np.int32),
        caches=None if caches is None else tuple(caches),
    )
