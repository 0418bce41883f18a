"""Compares every op of a Program on the CPU with the float64 formulas, on the inputs that the CPU used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fastattn.api.loading import load_executor
from fastattn.checkpoint import WeightSource
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.error_bounds import program_bound
from fastattn.graph.ir import Op, Program, Step


@dataclass(frozen=True, slots=True)
class OpError:
    """The largest error of an op's output, and the largest one that float32 rounding can cause.

    error: infinite if the output has another shape, or a number that is not finite. position: the op's index in the
    Program.
    """

    op: Op
    position: int
    error: float
    bound: float


def every_value(program: Program) -> Program:
    """Return the Program with each op's output as an output, named <kind>.<number among its kind>."""
    outputs, count = {}, dict[str, int]()
    for op in program.ops:
        number = count[op.kind] = count.get(op.kind, -1) + 1
        outputs[f"{op.kind}.{number}"] = op.output
    return replace(program, outputs=outputs)


def op_errors(
    program: Program, sources: Mapping[str, WeightSource], step: Step, dtype: str, *, threads: int | None = 2
) -> Iterator[OpError]:
    """Yield the error of every op of an optimized Program. Keys and values are float32.

    The float64 formula of an op gets the op's inputs from the CPU, so an error is not passed on to later ops.
    """
    program = every_value(program)
    longest = int(np.diff(step.cu_seqlens).max())
    exact = NumpyExecutor(program, sources, dtype=dtype)
    executor = load_executor(program, sources, dtype=dtype, kv_dtype="float32", device="cpu", threads=threads)
    try:
        found = executor.run(step)
        values = {index: found[name] for name, index in program.outputs.items()}
        for position, op in enumerate(program.ops):
            inputs = [np.asarray(values[index], np.float64) for index in op.inputs]
            expected = exact.evaluate(op, step, *inputs)
            pairs = list(zip(values[op.output], expected, strict=True)) if isinstance(expected, list) else None
            error = 0.0
            for ours, theirs in pairs if pairs is not None else [(values[op.output], expected)]:
                error = max(error, largest_difference(np.asarray(ours), np.asarray(theirs)))
            scale = _scale(exact, op, inputs, expected)
            bound = program_bound(replace(program, ops=(op,)), np.float32, longest=longest, scale=scale)
            yield OpError(op, position, error, bound)
    finally:
        executor.close()


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference; infinity if the shapes differ or a found number is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max(initial=0.0))


def _scale(exact: NumpyExecutor, op: Op, inputs: list[np.ndarray], expected: object) -> float:
    """Return the largest magnitude that an op works on."""
    arrays = [*inputs, *(expected if isinstance(expected, list) else [np.asarray(expected)])]
    scale = max((float(np.abs(value).max(initial=0.0)) for value in arrays), default=0.0)
    if op.kind == "linear":  # before terms cancel, a sum can be as large as the product of the absolute values
        scale = max(scale, float((np.abs(inputs[0]) @ np.abs(exact.values(op.weights[0])).T).max(initial=0.0)))
    return scale
