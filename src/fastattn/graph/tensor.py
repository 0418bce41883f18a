"""Symbolic tensors. A model is a function over them; calling it once records a Program.

Nothing is computed here. `Tokens` represents the ragged step, `Weights` the checkpoint with its own names, and `Tensor`
a matrix with one row per token (or per wanted token, or per sequence). Each function of `fastattn.graph.kinds` appends
one Op.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fastattn.errors import ConfigError
from fastattn.graph.ir import Attr, Op, Program, Rows, Value, Weight
from fastattn.graph.op_kind import OpKind

Index = Literal["token_ids", "positions", "token_type_ids"]


class Names(Protocol):
    """What a trace needs to know about the tensors of a checkpoint.

    has: whether a tensor exists. repeats: whether it is a copy of another one.
    transposed: whether it is stored as [in, out].
    """

    def has(self, name: str) -> bool: ...

    def repeats(self, name: str) -> bool: ...

    def transposed(self, name: str) -> bool: ...


@dataclass(slots=True)
class Tracer:
    """Collects values, ops and weights while a model function runs."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)

    def emit(
        self,
        kind: OpKind,
        inputs: tuple[Tensor, ...],
        rows: Rows,
        width: int,
        *,
        weights: tuple[str, ...] = (),
        attrs: Mapping[str, Attr] | None = None,
    ) -> Tensor:
        """Append one op and return its output. Raises ConfigError for attrs, inputs or weights that do not fit."""
        self.values.append(Value(rows, width))
        output = len(self.values) - 1
        op = Op(kind.name, tuple(t.index for t in inputs), output, weights, dict(attrs or {}))
        kind.check(op)
        self.ops.append(op)
        return Tensor(self, output)

    def weight(self, weight: Weight) -> str:
        """Register a parameter and return its key. A table that is also used as a matrix becomes a matrix (tied)."""
        key = weight.parts[0]
        known = self.weights.get(key)
        if known is not None and known.shape != weight.shape:
            raise ConfigError(f"{key}: expected one shape, got {list(known.shape)} and {list(weight.shape)}")
        if known is None or (known.use == "table" and weight.use == "matrix"):
            self.weights[key] = weight
        return key

    def program(self, outputs: Mapping[str, Tensor], max_positions: int) -> Program:
        """Return the recorded ops as a Program with these outputs. All attention ops have keys of one shape."""
        attentions = [op for op in self.ops if op.kind == "attention"]
        layers = [int(op.attrs["layer"]) + 1 for op in self.ops if op.kind in ("store_memory", "cross_attention")]
        attrs = attentions[0].attrs if attentions else {"n_kv_head": 1, "head_dim": 1}
        return Program(
            values=tuple(self.values),
            ops=tuple(self.ops),
            weights=dict(self.weights),
            outputs={name: tensor.index for name, tensor in outputs.items()},
            n_layer=max([len(attentions), *layers]),
            n_kv_head=int(attrs["n_kv_head"]),
            head_dim=int(attrs["head_dim"]),
            max_positions=max_positions,
            causal=any(bool(op.attrs["causal"]) for op in attentions),
            marks=dict(self.marks),
        )


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the Program that is being recorded."""

    tracer: Tracer
    index: int

    @property
    def value(self) -> Value:
        return self.tracer.values[self.index]

    @property
    def rows(self) -> Rows:
        return self.value.rows

    @property
    def width(self) -> int:
        return self.value.width

    def __add__(self, other: Tensor) -> Tensor:
        return self._combine(ADD, other)

    def __mul__(self, other: Tensor) -> Tensor:
        return self._combine(MULTIPLY, other)

    def _combine(self, kind: OpKind, other: Tensor) -> Tensor:
        if self.value != other.value:
            raise ConfigError(f"{kind.name}: expected two values of one shape, got {self.value} and {other.value}")
        return self.tracer.emit(kind, (self, other), self.rows, self.width)


ADD = OpKind(name="add", inputs=("a", "b"), formula=lambda run, op, a, b: a + b)
MULTIPLY = OpKind(name="multiply", inputs=("a", "b"), formula=lambda run, op, a, b: a * b)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The integer inputs of a step, as a model sees them."""

    ids: Index = "token_ids"
    positions: Index = "positions"
    type_ids: Index = "token_type_ids"


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters below a prefix in the checkpoint: `w["h.0"]["ln_1"]` is everything under `h.0.ln_1.`."""

    tracer: Tracer
    names: Names
    prefix: str = ""

    def __getitem__(self, name: str) -> Weights:
        return Weights(self.tracer, self.names, self.path(name))

    def path(self, name: str) -> str:
        """Return the full checkpoint name of `name` below this prefix."""
        return f"{self.prefix}.{name}" if self.prefix else name

    def has(self, name: str) -> bool:
        """Return whether the checkpoint has this tensor."""
        return self.names.has(self.path(name))

    def repeats(self, name: str) -> bool:
        """Return whether the checkpoint has this tensor as a copy of another one; `has` is then False."""
        return self.names.repeats(self.path(name))

    def vector(self, name: str, width: int) -> str:
        """Register the parameter `name`, [width], and return its key."""
        return self.tracer.weight(Weight((self.path(name),), "vector", (width,)))

    def table(self, rows: int, width: int, *, exact: bool = False) -> str:
        """Register `weight` as a table [rows, width] and return its key. exact: float32 in every dtype."""
        return self.tracer.weight(Weight((self.path("weight"),), "table", (rows, width), exact=exact))

    def matrix(self, out_features: int, in_features: int) -> str:
        """Register `weight` as a matrix [out_features, in_features] and return its key."""
        part = self.path("weight")
        return self.tracer.weight(
            Weight((part,), "matrix", (out_features, in_features), transposed=self.names.transposed(part))
        )


def hidden_state(x: Tensor) -> Tensor:
    """Mark x as the model's next hidden state (see `with_outputs`) and return it."""
    x.tracer.marks[f"hidden_states.{len(x.tracer.marks)}"] = x.index
    return x
