"""The least work of a step, counted op by op from the Program.

We count the multiply-adds of products and attention, and the bytes of the weights and cached keys and values that they
read, each byte once. We omit norms, activations and the data between ops, which may stay in the caches. So no executor
can be faster than this many operations or bytes at the machine's rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastattn.formats import FORMATS
from fastattn.graph.ir import Op, Program

FLOAT_BYTES = 4  # biases and norms


@dataclass(frozen=True, slots=True)
class Formats:
    """Number formats: "float32", "bfloat16", "int8" or "int4".

    weights: formats by name in the Program, float32 for missing names. kv: the format of keys and values, cached or
    not.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    kv: str = "float32"

    def weight(self, name: str) -> str:
        """Return the format of a weight."""
        return self.weights.get(name, "float32")


ALL_FLOAT32 = Formats()


@dataclass(frozen=True, slots=True)
class StepShape:
    """The lengths that determine the cost of a step.

    q_lens: new tokens of each sequence. past_lens: positions in its KV cache before the step (may be a fractional mean
    over several steps), None without caches. wanted: how many last rows of each sequence need logits (0: all).
    """

    q_lens: tuple[int, ...]
    past_lens: tuple[float, ...] | None = None
    wanted: int = 0

    @property
    def n_tokens(self) -> int:
        """The new tokens of all sequences."""
        return sum(self.q_lens)

    def rows(self, of: str) -> int:
        """Return the number of rows of a value, by its kind of rows ("tokens", "wanted" or "sequences")."""
        if of == "sequences":
            return len(self.q_lens)
        return self.n_tokens if of == "tokens" else sum(self.wanted_rows(n) for n in self.q_lens)

    def wanted_rows(self, q_len: int) -> int:
        """Return the number of wanted rows of one sequence."""
        return min(q_len, self.wanted) if self.wanted else q_len


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-adds, and the bytes read from weights and from the KV cache."""

    multiply_adds: float = 0.0
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0

    @property
    def operations(self) -> float:
        """The operations; a multiply-add counts as two."""
        return 2 * self.multiply_adds

    @property
    def bytes(self) -> float:
        """The bytes of weights and cache together."""
        return self.weight_bytes + self.kv_bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.multiply_adds + other.multiply_adds,
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
        )


def op_format(op: Op, formats: Formats) -> str:
    """Return the format of an op's products: of a linear's matrix, or of an attention's keys and values."""
    if op.kind == "linear":
        return formats.weight(op.weights[0])
    return formats.kv if op.kind in ("attention", "attention_probs") else "float32"


def op_cost(program: Program, op: Op, shape: StepShape, formats: Formats = ALL_FLOAT32) -> Cost:
    """Return the cost of one op in a step."""
    width = program.values[op.output].width
    rows = shape.rows(program.values[op.output].rows)
    if op.kind == "linear" and rows:
        depth = program.values[op.inputs[0]].width
        bias_bytes = width * FLOAT_BYTES if op.attrs["has_bias"] else 0
        return Cost(rows * width * depth, _weight_bytes(op, formats, width, depth) + bias_bytes)
    if op.kind == "embedding":
        return Cost(weight_bytes=_weight_bytes(op, formats, rows, width))
    if op.kind == "layer_norm" and rows:
        return Cost(weight_bytes=2 * width * FLOAT_BYTES)
    if op.kind in ("attention", "attention_probs"):
        n_products = 2 if op.kind == "attention" else 1  # q @ k.T, and probabilities @ v
        multiply_adds = n_products * seen_pairs(op, shape) * int(op.attrs["n_head"]) * int(op.attrs["head_dim"])
        kv = FORMATS[formats.kv]
        row_bytes = int(op.attrs["head_dim"]) * kv.element_bytes + kv.scale_bytes
        n_rows = n_products * int(op.attrs["n_kv_head"]) * sum(shape.past_lens or ())
        return Cost(multiply_adds, kv_bytes=n_rows * row_bytes)
    return Cost()


def _weight_bytes(op: Op, formats: Formats, rows: int, width: int) -> float:
    """Return the bytes of `rows` rows of a matrix or table."""
    found = FORMATS[formats.weight(op.weights[0])]
    return rows * (width * found.element_bytes + found.scale_bytes)


def step_cost(program: Program, shape: StepShape, formats: Formats = ALL_FLOAT32) -> Cost:
    """Return the cost of all ops of a step."""
    return sum((op_cost(program, op, shape, formats) for op in program.ops), Cost())


def seen_pairs(op: Op, shape: StepShape) -> float:
    """Return the number of pairs of a query row and a position that it sees, for one head."""
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
