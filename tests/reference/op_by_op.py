"""Asserts that every op of a model on the CPU agrees with the numpy executor, on the inputs that the CPU used."""

from __future__ import annotations

from collections.abc import Mapping

from fastattn.checkpoint import WeightSource
from fastattn.graph.ir import Program, Step
from fastattn.models.registry import BuiltModel
from fastattn.tasks.op_errors import op_errors


def check_every_op(built: BuiltModel, step: Step, dtype: str) -> None:
    """Check that cpu and numpy differ only by float32 rounding: each op is within the bound of a Program of that op."""
    check_program(built.program, built.tensors, step, dtype)


def check_program(program: Program, sources: Mapping[str, WeightSource], step: Step, dtype: str) -> None:
    """Check a Program, given the sources of its weights, as `check_every_op` does."""
    for found in op_errors(program, sources, step, dtype):
        where = f"op {found.position}, {found.op.kind}"
        assert found.error <= found.bound, f"{where}: expected at most {found.bound:.3g}, got {found.error:.3g}"
