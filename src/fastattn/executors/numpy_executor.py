"""The specification: runs the float64 formulas of `fastattn.graph.kinds`. Never optimized.

For quantized dtypes, the operands of every linear are rounded as `fastattn.graph.quantize` defines, and everything else
stays in float64.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastattn.checkpoint.source import WeightSource
from fastattn.errors import ContextLengthError, InputError
from fastattn.executors.sources import read_weight
from fastattn.formats import FORMATS
from fastattn.graph.executor import Output, requested
from fastattn.graph.ir import Op, Program, Step, Weight
from fastattn.graph.kinds import KINDS, LoraAdapter
from fastattn.graph.op_kind import Floats, Parameter
from fastattn.graph.quantize import dequantize, quantize, weight_formats


class NumpyCache:
    """The keys and values of one sequence: [length, n_kv_head * head_dim] for every layer. adapter: of the sequence."""

    def __init__(self, owner: object, n_layer: int, width: int, adapter: LoraAdapter | None = None) -> None:
        self._owner, self.adapter = owner, adapter
        self._keys: list[Floats] = [np.zeros((0, width)) for _ in range(n_layer)]
        self._values: list[Floats] = [np.zeros((0, width)) for _ in range(n_layer)]
        self._lock = threading.Lock()
        self._closed = False

    @property
    def length(self) -> int:
        self._check()
        return len(self._keys[0]) if self._keys else 0

    def truncate(self, length: int) -> None:
        with self._alone():
            if not 0 <= length <= self.length:
                raise InputError(f"length: expected 0 to {self.length}, got {length}")
            self._keys = [keys[:length] for keys in self._keys]
            self._values = [values[:length] for values in self._values]

    def fork(self) -> NumpyCache:
        """Return an independent copy of the cache."""
        with self._alone():
            self._check()
            other = NumpyCache(self._owner, 0, 0, self.adapter)
            other._keys, other._values = list(self._keys), list(self._values)
            return other

    def close(self) -> None:
        with self._alone():
            self._keys, self._values, self._closed = [], [], True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise InputError("cache: expected a cache that is not in use, got one in use by a step in another thread")
        try:
            yield
        finally:
            self._lock.release()

    def _check(self) -> None:
        if self._closed:
            raise InputError("cache: expected an open KV cache, got one after close()")

    def acquire(self, owner: object) -> None:
        """Reserve the cache for one step."""
        if self._owner is not owner:
            raise InputError("caches: expected KV caches of this model, got one of another model")
        if not self._lock.acquire(blocking=False):
            raise InputError(
                "caches: expected each cache in one step at a time, got one that is in use, or appears twice"
            )
        if self._closed:
            self._lock.release()
            self._check()

    def release(self) -> None:
        self._lock.release()

    def past(self, layer: int) -> tuple[Floats, Floats]:
        """Return the keys and values from before the step."""
        return self._keys[layer], self._values[layer]

    def extend(self, layer: int, keys: Floats, values: Floats) -> None:
        """Replace the stored keys and values with these, which include the past ones."""
        self._keys[layer], self._values[layer] = keys, values


class NumpyExecutor:
    """Runs a Program in float64. sources: the source of every part of its weights, read as float32.

    precision: the type of everything except rounded operands; float32 gives the plain formula for the
    bounds of tests.
    """

    def __init__(
        self,
        program: Program,
        sources: Mapping[str, WeightSource],
        *,
        dtype: str = "float32",
        head_dtype: str | None = None,
        precision: type[np.floating[Any]] = np.float64,
    ) -> None:
        self.program = program
        self._owner = object()
        self._precision = precision
        formats = weight_formats(program, dtype, head_dtype)
        self._weights: Mapping[str, Parameter] | None = {
            key: _parameter(weight, sources, formats[key], precision) for key, weight in program.weights.items()
        }

    def evaluate(self, op: Op, step: Step, *inputs: Floats) -> Output:
        """Run one op of the Program on the given inputs, without caches."""
        return _Run(self.program, self._open(), step, []).evaluate(op, *inputs)

    @property
    def weight_bytes(self) -> int:
        return sum(int(weight.values.nbytes) for weight in self._open().values())

    def values(self, key: str) -> Floats:
        """Return a rounded weight; a matrix is [out_features, in_features]."""
        return self._open()[key].values

    def new_cache(self, adapter: LoraAdapter | None = None) -> NumpyCache:
        """Return an empty KV cache for one sequence."""
        self._open()
        return NumpyCache(self._owner, self.program.n_layer, self.program.n_kv_head * self.program.head_dim, adapter)

    def with_program(self, program: Program) -> NumpyExecutor:
        """Return an executor for another Program over the same weights."""
        weights = self._open()
        other = copy.copy(self)
        other.program, other._weights = program, {key: weights[key] for key in program.weights}
        return other

    def close(self) -> None:
        self._weights = None

    def _open(self) -> Mapping[str, Parameter]:
        if self._weights is None:
            raise InputError("the model was closed")
        return self._weights

    def run(self, step: Step, outputs: Sequence[str] | None = None) -> dict[str, Output]:
        """Run one step; see `fastattn.graph.executor.Executor`."""
        names = requested(self.program, outputs)
        taken: list[NumpyCache] = []
        try:
            for cache in step.caches or ():
                if not isinstance(cache, NumpyCache):
                    raise InputError(f"caches: expected KV caches of this executor, got {type(cache).__name__}")
                cache.acquire(self._owner)
                taken.append(cache)
            return self._run(step, names, taken)
        finally:
            for cache in taken:
                cache.release()

    def _run(self, step: Step, names: tuple[str, ...], caches: list[NumpyCache]) -> dict[str, Output]:
        run = _Run(self.program, self._open(), step, caches)
        values: dict[int, Output] = {}
        for op in self.program.ops:
            result = run.evaluate(op, *(values[index] for index in op.inputs))
            values[op.output] = result if isinstance(result, list) else result.astype(self._precision, copy=False)
        run.commit()
        return {name: values[self.program.outputs[name]] for name in names}


def _parameter(
    weight: Weight, sources: Mapping[str, WeightSource], form: str, precision: type[np.floating[Any]]
) -> Parameter:
    whole = read_weight(weight, sources).reshape(weight.shape)
    if form == "float32":
        return Parameter(form, whole.astype(precision))
    integers = quantize(whole, form) if FORMATS[form].integers else None
    values = dequantize(whole, form) if integers is None else integers.floats()
    return Parameter(form, values, integers)


class _Run:
    """One step, as `fastattn.graph.op_kind.Run` describes it."""

    def __init__(
        self, program: Program, weights: Mapping[str, Parameter], step: Step, caches: Sequence[NumpyCache]
    ) -> None:
        self.weights, self.step, self.caches, self._program = weights, step, caches, program
        self.sources: dict[int, Op] = {}  # value -> the op that computed its numbers
        for op in program.ops:
            passes_on = op.kind == "lora" or KINDS[op.kind].reads in ("view", "gather")
            passes_on = passes_on and op.inputs[0] in self.sources
            self.sources[op.output] = self.sources[op.inputs[0]] if passes_on else op
        bounds = [int(bound) for bound in step.cu_seqlens]
        self.spans = list(itertools.pairwise(bounds))
        self.fresh: list[tuple[NumpyCache, int, Floats, Floats]] = []
        for sequence, (start, end) in enumerate(self.spans):
            total = end - start + (caches[sequence].length if caches else 0)
            if total > program.max_positions:
                raise ContextLengthError(
                    f"sequence {sequence}: {total} positions, the model has {program.max_positions}"
                )

    def rows_of(self, value: int) -> str:
        return self._program.values[value].rows

    def shape_of(self, value: int) -> tuple[int, int]:
        step = self.step
        counts = {"tokens": len(step.token_ids), "wanted": len(step.wanted), "sequences": len(self.spans)}
        return counts[self.rows_of(value)], self._program.values[value].width

    def commit(self) -> None:
        """Store the keys and values of the step in the caches."""
        for cache, layer, keys, values in self.fresh:
            cache.extend(layer, keys, values)

    def evaluate(self, op: Op, *inputs: Output) -> Output:
        """Run one op with the formula of its kind."""
        result: Output = KINDS[op.kind].formula(self, op, *inputs)
        return result
