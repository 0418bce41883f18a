"""The minimum work of an op: its multiply-adds, and the bytes that it reads.

We count the multiply-adds of products and attention, and the bytes of all weights and cached keys and values that ops
read, each byte once. We omit the arithmetic of norms and activations, and the data between ops, which may stay in the
CPU's caches. So no executor can be faster than this many operations or bytes at the machine's rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastattn.formats import FORMATS
from fastattn.graph.ir import Op

FLOAT_BYTES = 4  # biases and norms


@dataclass(frozen=True, slots=True)
class Formats:
    """The number formats of a model, by their names in `fastattn.formats`.

    weights: the format of each weight, by the weight's name in the Program; float32 for missing names. kv: the format
    of keys and values, cached or not.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    kv: str = "float32"

    def weight(self, name: str) -> str:
        return self.weights.get(name, "float32")


ALL_FLOAT32 = Formats()


@dataclass(frozen=True, slots=True)
class StepShape:
    """The lengths that determine the cost of a step.

    q_lens: new tokens of each sequence. past_lens: positions in its KV cache before the step (may be a fractional mean
    over several steps), None without caches. wanted: how many last rows of each sequence need logits (0: all).
    memory_lens: positions in the memory of each sequence, None without memories.
    """

    q_lens: tuple[int, ...]
    past_lens: tuple[float, ...] | None = None
    wanted: int = 0
    memory_lens: tuple[int, ...] | None = None

    @property
    def n_tokens(self) -> int:
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


def weight_bytes(op: Op, formats: Formats, rows: int, width: int) -> float:
    """Return the bytes of `rows` rows of a matrix or table."""
    found = FORMATS[formats.weight(op.weights[0])]
    return rows * (width * found.element_bytes + found.scale_bytes)
