"""The minimum work of a step: the sum over its ops."""

from __future__ import annotations

from fastattn.graph.cost import ALL_FLOAT32, Cost, Formats, StepShape
from fastattn.graph.ir import Op, Program
from fastattn.graph.kinds import KINDS


def op_format(op: Op, formats: Formats) -> str:
    """Return the format of an op's products: of a linear's matrix, or of an attention's keys and values."""
    found = KINDS[op.kind].format
    return "float32" if found is None else found(op, formats)


def op_cost(program: Program, op: Op, shape: StepShape, formats: Formats = ALL_FLOAT32) -> Cost:
    """Return the cost of one op in a step."""
    return KINDS[op.kind].cost(program, op, shape, formats)


def step_cost(program: Program, shape: StepShape, formats: Formats = ALL_FLOAT32) -> Cost:
    """Return the cost of all ops of a step."""
    return sum((op_cost(program, op, shape, formats) for op in program.ops), Cost())
