"""What a step has to do at least, counted from the Program op by op.

Counted are the multiply-adds of products and attention, and the weights and cached keys and values that they read, each
byte once. Norms, activations and what moves between ops are left out: they need not leave the caches. So no way of
running the Program can be faster than this many operations or bytes at the machine's rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastattn.errors import InputError
from fastattn.graph.ir import Op, Program

# Bytes of one element of a matrix as held in memory; scales of int8 and int4 are left out.
WEIGHT_BYTES: Mapping[str, float] = {"float64": 8, "float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.5}
VECTOR_BYTES = 4  # biases and norms
KV_BYTES = 4


@dataclass(frozen=True, slots=True)
class StepShape:
    """The lengths of a step, on which its cost depends.

    q_lens: new tokens of each sequence; past_lens: positions in its KV cache before the step (a mean over several
    steps may be a fraction), None without caches; wanted: last rows of each sequence whose logits are asked for (0:
    all).
    """

    q_lens: tuple[int, ...]
    past_lens: tuple[float, ...] | None = None
    wanted: int = 0

    @property
    def n_tokens(self) -> int:
        """New tokens of all sequences."""
        return sum(self.q_lens)

    def rows(self, of: str) -> int:
        """Rows of a value, by its kind of rows ("tokens", "wanted" or "sequences")."""
        if of == "sequences":
            return len(self.q_lens)
        return self.n_tokens if of == "tokens" else sum(self.wanted_rows(n) for n in self.q_lens)

    def wanted_rows(self, q_len: int) -> int:
        """Of one sequence."""
        return min(q_len, self.wanted) if self.wanted else q_len


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-adds, and bytes read of weights and of the KV cache."""

    multiply_adds: float = 0.0
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0

    @property
    def operations(self) -> float:
        """A multiply-add counts as two."""
        return 2 * self.multiply_adds

    @property
    def bytes(self) -> float:
        """Of weights and cache together."""
        return self.weight_bytes + self.kv_bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.multiply_adds + other.multiply_adds,
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
        )


def op_cost(program: Program, op: Op, shape: StepShape, dtype: str = "float32") -> Cost:
    """Of one op in a step; `dtype` is that of the weight matrices. Raises InputError for an unknown dtype."""
    if dtype not in WEIGHT_BYTES:
        raise InputError(f"dtype: expected one of {', '.join(WEIGHT_BYTES)}, got {dtype!r}")
    width = program.values[op.output].width
    rows = shape.rows(program.values[op.output].rows)
    if op.kind == "linear" and rows:
        depth = program.values[op.inputs[0]].width
        bias_bytes = width * VECTOR_BYTES if op.attrs["has_bias"] else 0
        return Cost(rows * width * depth, width * depth * WEIGHT_BYTES[dtype] + bias_bytes)
    if op.kind == "embedding":
        return Cost(weight_bytes=rows * width * WEIGHT_BYTES[dtype])
    if op.kind == "layer_norm" and rows:
        return Cost(weight_bytes=2 * width * VECTOR_BYTES)
    if op.kind in ("attention", "attention_probs"):
        n_products = 2 if op.kind == "attention" else 1  # q k^T, and probabilities times v
        multiply_adds = n_products * seen_pairs(op, shape) * int(op.attrs["n_head"]) * int(op.attrs["head_dim"])
        kv_width = n_products * int(op.attrs["n_kv_head"]) * int(op.attrs["head_dim"])
        return Cost(multiply_adds, kv_bytes=sum(shape.past_lens or ()) * kv_width * KV_BYTES)
    return Cost()


def step_cost(program: Program, shape: StepShape, dtype: str = "float32") -> Cost:
    """Of all ops of a step."""
    return sum((op_cost(program, op, shape, dtype) for op in program.ops), Cost())


def seen_pairs(op: Op, shape: StepShape) -> float:
    """Pairs of a query row and a position that it sees, of one head."""
    total = 0.0
    for q_len, past in zip(shape.q_lens, shape.past_lens or (0,) * len(shape.q_lens), strict=True):
        if q_len == 0:
            continue
        kv_len = past + q_len
        selection = op.attrs["q_rows"]
        count = {"tokens": q_len, "wanted": shape.wanted_rows(q_len)}.get(str(selection), 1)
        last_sees = past + 1 if selection == "first" else kv_len
        total += count * (last_sees - (count - 1) / 2) if op.attrs["causal"] else count * kv_len
    return total
