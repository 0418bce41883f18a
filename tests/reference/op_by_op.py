"""Compares every op of a model on cpu with the numpy executor, on the inputs that the cpu used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fastattn.api.model import load_executor
from fastattn.checkpoint import WeightSource
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.ir import Program, Step
from fastattn.models.registry import BuiltModel
from tests.reference.bounds import assert_close


def every_value(program: Program) -> Program:
    """Return the Program with each op's output as an output, named <kind>.<number among its kind>."""
    outputs, count = {}, dict[str, int]()
    for op in program.ops:
        number = count[op.kind] = count.get(op.kind, -1) + 1
        outputs[f"{op.kind}.{number}"] = op.output
    return replace(program, outputs=outputs)


def check_every_op(built: BuiltModel, step: Step, dtype: str) -> None:
    """Check that cpu and numpy differ only by float32 rounding: each op is within the bound of a Program of that op."""
    check_program(built.program, built.tensors, step, dtype)


def check_program(program: Program, sources: Mapping[str, WeightSource], step: Step, dtype: str) -> None:
    """Check a Program, given the sources of its weights, as `check_every_op` does."""
    program = every_value(program)
    longest = int(np.diff(step.cu_seqlens).max())
    exact = NumpyExecutor(program, sources, dtype=dtype)
    executor = load_executor(program, sources, dtype=dtype, kv_dtype="float32", device="cpu", threads=2)
    found = executor.run(step)
    values = {index: np.asarray(found[name]) for name, index in program.outputs.items()}
    for op in program.ops:
        inputs = [values[index].astype(np.float64) for index in op.inputs]
        expected = np.asarray(exact.evaluate(op, step, *inputs))
        # the sums that cancel in a product are as large as the product of its absolute values
        scale = max((float(np.abs(value).max()) for value in [*inputs, expected]), default=0.0)
        if op.kind == "linear":
            scale = max(scale, float((np.abs(inputs[0]) @ np.abs(exact.values(op.weights[0])).T).max()))
        assert_close(values[op.output], expected, replace(program, ops=(op,)), longest=longest, scale=scale)
    executor.close()
