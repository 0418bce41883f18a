"""What one kind of op declares: its shape, its meaning, its cost, and what rewrites may do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError
from fastattn.graph.cost import Cost, Formats, StepShape
from fastattn.graph.ir import Op, Program, Step
from fastattn.graph.quantize import QuantizedRows

Floats = NDArray[np.floating[Any]]
# Which rows an op computes. rows: those of its inputs, each on its own; view: the same, without work; queries: those of
# its first input, from all rows of the others; positions: those of its input, each with the position of its token
# (attr "rows"); gather: a selection of rows of its input; all: from all rows of its inputs.
Reads: TypeAlias = Literal["rows", "view", "queries", "positions", "gather", "all"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A weight in the formulas: its values (float32 if it is rounded), and the integers of a quantized matrix."""

    form: str
    values: Floats
    integers: QuantizedRows | None = None


class PastKeys(Protocol):
    """A KV cache, as formulas read it. adapter: the LoraAdapter of its sequence, or None."""

    @property
    def adapter(self) -> Any: ...

    def past(self, layer: int) -> tuple[Floats, Floats]: ...


class Run(Protocol):
    """One step, as formulas see it.

    spans: begin and end of the rows [begin, end) of every sequence; sources: by value, the op that computed its
    numbers; fresh: what attention appends, (cache, layer, keys, values), for the caches to store after the step.
    """

    weights: Mapping[str, Parameter]
    step: Step
    spans: Sequence[tuple[int, int]]
    caches: Sequence[PastKeys]
    sources: Mapping[int, Op]
    fresh: list[tuple[Any, int, Floats, Floats]]

    def rows_of(self, value: int) -> str:
        """Return the kind of rows of a value."""

    def shape_of(self, value: int) -> tuple[int, int]:
        """Return the rows and columns of a value in this step."""


def no_cost(program: Program, op: Op, shape: StepShape, formats: Formats) -> Cost:
    """Return no cost, for ops that neither multiply nor read weights."""
    return Cost()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpKind:
    """One kind of op.

    inputs, weights: their names in order. If there is an attr "has_<name>", the name is present only if it is True.
    attrs: names and types, or the strings that are allowed. formula: the float64 meaning, (run, op, *inputs) -> matrix,
    or a list of maps. reads: which rows it computes from which. cost: what it must multiply and read. format: the
    number format of its products, None without products.
    """

    name: str
    inputs: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    attrs: Mapping[str, type | tuple[str, ...]] = field(default_factory=dict)
    formula: Callable[..., Any]
    reads: Reads = "rows"
    cost: Callable[[Program, Op, StepShape, Formats], Cost] = no_cost
    format: Callable[[Op, Formats], str] | None = None

    def check(self, op: Op) -> None:
        """Raise ConfigError for wrong names or types of attrs, or a wrong number of inputs or weights."""
        if set(op.attrs) != set(self.attrs):
            raise ConfigError(f"{self.name}: expected attrs {sorted(self.attrs)}, got {sorted(op.attrs)}")
        for name, expected in self.attrs.items():
            value = op.attrs[name]
            if not _fits(value, expected):
                raise ConfigError(f"{self.name}: {name}: expected {_shown(expected)}, got {value!r}")
        for what, names, found in (("inputs", self.inputs, op.inputs), ("weights", self.weights, op.weights)):
            count = sum(bool(op.attrs.get(f"has_{name}", True)) for name in names)
            if len(found) != count:
                raise ConfigError(f"{self.name}: expected {count} {what}, got {len(found)}")


def _fits(value: object, expected: type | tuple[str, ...]) -> bool:
    if isinstance(expected, tuple):
        return value in expected
    if expected is bool or isinstance(value, bool):
        return expected is bool and isinstance(value, bool)
    return isinstance(value, (int, float) if expected is float else expected)


def _shown(expected: type | tuple[str, ...]) -> str:
    return expected.__name__ if isinstance(expected, type) else "one of " + ", ".join(map(repr, expected))
