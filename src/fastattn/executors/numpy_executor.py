"""The specification: every op in plain float64 numpy. Never optimized.

For quantized dtypes, the operands of every linear are rounded as `fastattn.graph.quantize` defines, and everything else
stays in float64.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ContextLengthError, InputError
from fastattn.formats import FORMATS
from fastattn.graph.executor import Output
from fastattn.graph.ir import Op, Program, Step, Weight
from fastattn.graph.quantize import (
    QuantizedRows,
    dequantize,
    quantize,
    rough_gelu,
    to_bfloat16,
    to_int8,
    weight_formats,
)

Floats = NDArray[np.floating[Any]]
Load = Callable[[str], NDArray[np.floating]]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu_erf(x: Floats) -> Floats:
    """Compute x * Phi(x) (Hendrycks and Gimpel 2016)."""
    phi: Floats = 0.5 * (1.0 + _erf(x * math.sqrt(0.5)))
    return x * phi


def gelu_tanh(x: Floats) -> Floats:
    """Compute the tanh approximation of gelu, as in GPT-2."""
    result: Floats = 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return result


def silu(x: Floats) -> Floats:
    """Compute x * sigmoid(x)."""
    result: Floats = x * np.exp(-np.logaddexp(0.0, -x))
    return result


ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "none": lambda x: x,
    "gelu_erf": gelu_erf,
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
    "silu": silu,
}


def softmax(scores: Floats) -> Floats:
    """Compute the softmax over the last axis; a row that sees nothing (all -inf, or empty) is 0."""
    if scores.shape[-1] == 0:
        return scores
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
    total = weights.sum(axis=-1, keepdims=True)
    result: Floats = weights / np.where(total == 0.0, 1.0, total)
    return result


class NumpyCache:
    """The keys and values of one sequence: [length, n_kv_head * head_dim] for every layer."""

    def __init__(self, owner: object, n_layer: int, width: int) -> None:
        self._owner = owner
        self._keys: list[Floats] = [np.zeros((0, width)) for _ in range(n_layer)]
        self._values: list[Floats] = [np.zeros((0, width)) for _ in range(n_layer)]
        self._lock = threading.Lock()
        self._closed = False

    @property
    def length(self) -> int:
        """The number of stored positions."""
        self._check()
        return len(self._keys[0]) if self._keys else 0

    def truncate(self, length: int) -> None:
        """Remove the positions from `length` on."""
        with self._alone():
            if not 0 <= length <= self.length:
                raise InputError(f"length: expected 0 to {self.length}, got {length}")
            self._keys = [keys[:length] for keys in self._keys]
            self._values = [values[:length] for values in self._values]

    def fork(self) -> NumpyCache:
        """Return an independent copy of the cache."""
        with self._alone():
            self._check()
            other = NumpyCache(self._owner, 0, 0)
            other._keys, other._values = list(self._keys), list(self._values)
            return other

    def close(self) -> None:
        """Free the memory."""
        with self._alone():
            self._keys, self._values, self._closed = [], [], True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise InputError("cache: a step uses it in another thread")
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
            raise InputError("caches: a KV cache is in use by another call, or stands twice in one step")
        if self._closed:
            self._lock.release()
            self._check()

    def release(self) -> None:
        """Release the cache after the step."""
        self._lock.release()

    def past(self, layer: int) -> tuple[Floats, Floats]:
        """Return the keys and values from before the step."""
        return self._keys[layer], self._values[layer]

    def extend(self, layer: int, keys: Floats, values: Floats) -> None:
        """Replace the stored keys and values with these, which include the past ones."""
        self._keys[layer], self._values[layer] = keys, values


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A weight: its values (float32 if rounded, which represents them exactly), and the integers of a matrix."""

    form: str
    values: Floats
    integers: QuantizedRows | None = None


class NumpyExecutor:
    """Runs a Program in float64. `load` returns a tensor of the checkpoint by its name.

    precision: the type of everything except rounded operands; float32 gives the naive formula behind the tests' bounds.
    """

    def __init__(
        self,
        program: Program,
        load: Load,
        *,
        dtype: str = "float32",
        head_dtype: str | None = None,
        precision: type[np.floating[Any]] = np.float64,
    ) -> None:
        self.program = program
        self._owner = object()
        self._precision = precision
        formats = weight_formats(program, dtype, head_dtype)
        self._weights: Mapping[str, _Parameter] | None = {
            key: _parameter(weight, load, formats[key], precision) for key, weight in program.weights.items()
        }

    def evaluate(self, op: Op, step: Step, *inputs: Floats) -> Output:
        """Run one op of the Program on given inputs, without caches."""
        result: Output = getattr(_Run(self.program, self._open(), step, []), op.kind)(op, *inputs)
        return result

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weight arrays."""
        return sum(int(weight.values.nbytes) for weight in self._open().values())

    def values(self, key: str) -> Floats:
        """Return a rounded weight; a matrix is [out_features, in_features]."""
        return self._open()[key].values

    def new_cache(self) -> NumpyCache:
        """Return an empty KV cache for one sequence."""
        self._open()
        return NumpyCache(self._owner, self.program.n_layer, self.program.n_kv_head * self.program.head_dim)

    def with_program(self, program: Program) -> NumpyExecutor:
        """Return an executor for another Program over the same weights."""
        weights = self._open()
        other = NumpyExecutor.__new__(NumpyExecutor)
        other.program, other._owner, other._precision = program, self._owner, self._precision
        other._weights = {key: weights[key] for key in program.weights}
        return other

    def close(self) -> None:
        """Free the memory."""
        self._weights = None

    def _open(self) -> Mapping[str, _Parameter]:
        if self._weights is None:
            raise InputError("the model was closed")
        return self._weights

    def run(self, step: Step, outputs: Sequence[str] | None = None) -> dict[str, Output]:
        """Run one step; see `fastattn.graph.executor.Executor`."""
        names = tuple(self.program.outputs) if outputs is None else tuple(outputs)
        for name in names:
            if name not in self.program.outputs:
                raise InputError(f"outputs: expected some of {sorted(self.program.outputs)}, got {name!r}")
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
            result = getattr(run, op.kind)(op, *(values[index] for index in op.inputs))
            values[op.output] = result if isinstance(result, list) else result.astype(self._precision, copy=False)
        run.commit()
        return {name: values[self.program.outputs[name]] for name in names}


def _parameter(weight: Weight, load: Load, form: str, precision: type[np.floating[Any]]) -> _Parameter:
    parts = [np.asarray(load(part)) for part in weight.parts]
    whole = np.concatenate([part.T if weight.transposed else part for part in parts])
    if whole.shape != weight.shape:
        raise InputError(f"{weight.parts[0]}: expected shape {list(weight.shape)}, got {list(whole.shape)}")
    if form == "float32":
        return _Parameter(form, whole.astype(precision))
    integers = quantize(whole.astype(np.float32), form) if FORMATS[form].integers else None
    values = dequantize(whole.astype(np.float32), form) if integers is None else integers.floats()
    return _Parameter(form, values, integers)


def _activated(activation: str, x: Floats, form: str) -> Floats:
    """Apply the epilogue of a linear with weights of this format; rounding formats use the rough gelu."""
    if form != "float32" and activation in ("gelu_erf", "gelu_tanh"):
        return rough_gelu(activation, x)
    return ACTIVATIONS[activation](x)


class _Run:
    """One step, with a method for every kind of op."""

    def __init__(
        self, program: Program, weights: Mapping[str, _Parameter], step: Step, caches: Sequence[NumpyCache]
    ) -> None:
        self.weights, self.step, self.caches = weights, step, caches
        self.sources: dict[int, Op] = {}  # value -> the op that computed its numbers
        for op in program.ops:
            passes_on = op.kind in ("slice", "gather_rows") and op.inputs[0] in self.sources
            self.sources[op.output] = self.sources[op.inputs[0]] if passes_on else op
        bounds = [int(bound) for bound in step.cu_seqlens]
        self.spans = list(itertools.pairwise(bounds))
        self.fresh: list[tuple[NumpyCache, int, Floats, Floats]] = []
        for sequence, (start, end) in enumerate(self.spans):
            total = end - start + (caches[sequence].length if caches else 0)
            if total > program.max_positions:
                raise ContextLengthError(
                    f"sequence {sequence}: {total} positions, but the model has {program.max_positions}"
                )

    def commit(self) -> None:
        """Store the keys and values of the step in the caches."""
        for cache, layer, keys, values in self.fresh:
            cache.extend(layer, keys, values)

    def embedding(self, op: Op) -> Floats:
        name, offset = str(op.attrs["index"]), int(op.attrs["offset"])
        index = getattr(self.step, name)
        if index is None:
            index = np.zeros(len(self.step.token_ids), np.int32)
        table = self.weights[op.weights[0]].values
        for i in np.flatnonzero((index < -offset) | (index >= len(table) - offset)):
            raise InputError(f"{name}: expected 0 to {len(table) - 1 - offset}, got {index[i]} at token {i}")
        rows: Floats = table[index + offset]
        return rows

    def add(self, op: Op, a: Floats, b: Floats) -> Floats:
        return a + b

    def layer_norm(self, op: Op, x: Floats) -> Floats:
        weight, bias = (self.weights[key].values for key in op.weights)
        centred = x - x.mean(axis=1, keepdims=True)
        variance = (centred**2).mean(axis=1, keepdims=True)
        result: Floats = centred / np.sqrt(variance + float(op.attrs["eps"])) * weight + bias
        return result

    def linear(self, op: Op, x: Floats, residual: Floats | None = None) -> Floats:
        y = _product(x, self.weights[op.weights[0]])
        if op.attrs["has_bias"]:
            y = y + self.weights[op.weights[1]].values
        y = _activated(str(op.attrs["activation"]), y, self.weights[op.weights[0]].form)
        return y if residual is None else residual + y

    def activation(self, op: Op, x: Floats) -> Floats:
        source = self.sources.get(op.inputs[0])
        form = "float32"
        if source is not None and source.kind == "linear":
            plain = source.attrs["activation"] == "none" and not source.attrs["has_residual"]
            form = self.weights[source.weights[0]].form if plain else form
        return _activated(str(op.attrs["activation"]), x, form)

    def slice(self, op: Op, x: Floats) -> Floats:
        offset = int(op.attrs["offset"])
        return x[:, offset : offset + int(op.attrs["width"])]

    def attention(self, op: Op, q: Floats, k: Floats, v: Floats) -> Floats:
        out = np.zeros_like(q)
        for sequence, (rows, positions) in enumerate(self._queries(str(op.attrs["q_rows"]))):
            keys, values = self._keys_and_values(op, sequence, k, v)
            probs = self._probs(op, q[rows], positions, keys, len(keys) - self._length(sequence))
            out[rows] = _join(probs @ _repeat(_heads(values, op), op))
        return out

    def attention_probs(self, op: Op, q: Floats, k: Floats) -> list[Floats]:
        maps = []
        for sequence, (rows, positions) in enumerate(self._queries("tokens")):
            keys, _ = self._keys_and_values(op, sequence, k, None)
            maps.append(self._probs(op, q[rows], positions, keys, len(keys) - self._length(sequence)))
        return maps

    def gather_rows(self, op: Op, x: Floats) -> Floats:
        rows = np.zeros((0, x.shape[1]))
        if op.attrs["which"] == "wanted":
            return x[self.step.wanted]
        for start, end in self.spans:
            row = x[start:end][:1] if op.attrs["which"] == "first" else x[start:end][-1:]
            rows = np.concatenate([rows, row if len(row) else np.zeros((1, x.shape[1]))])
        return rows

    def pool(self, op: Op, x: Floats) -> Floats:
        rows = np.zeros((len(self.spans), x.shape[1]))
        for sequence, (start, end) in enumerate(self.spans):
            if end > start:
                part = x[start:end]
                kind = op.attrs["pool"]
                total = part.sum(axis=0)
                mean_sqrt = total / math.sqrt(end - start)
                rows[sequence] = {"max": part.max(axis=0), "mean": total / (end - start), "mean_sqrt_len": mean_sqrt}[
                    str(kind)
                ]
        return rows

    def l2_normalize(self, op: Op, x: Floats) -> Floats:
        norm = np.sqrt((x**2).sum(axis=1, keepdims=True))
        result: Floats = x / np.maximum(norm, float(op.attrs["eps"]))
        return result

    def _length(self, sequence: int) -> int:
        start, end = self.spans[sequence]
        return end - start

    def _queries(self, q_rows: str) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Return the rows of q that are the queries of each sequence, and their positions among its new tokens."""
        queries = []
        for sequence, (start, end) in enumerate(self.spans):
            if q_rows == "tokens":
                rows = np.arange(start, end)
                positions = rows - start
            elif q_rows == "wanted":
                rows = np.flatnonzero((self.step.wanted >= start) & (self.step.wanted < end))
                positions = self.step.wanted[rows].astype(np.intp) - start
            else:
                rows = np.arange(sequence, sequence + (end > start))
                positions = np.full(len(rows), 0 if q_rows == "first" else end - start - 1)
            queries.append((rows, positions))
        return queries

    def _keys_and_values(self, op: Op, sequence: int, k: Floats, v: Floats | None) -> tuple[Floats, Floats]:
        """Return all keys and values that a sequence may see, those of its cache first."""
        start, end = self.spans[sequence]
        keys = k[start:end]
        values = keys if v is None else v[start:end]
        if not (op.attrs["causal"] and self.caches):
            return keys, values
        layer = int(op.attrs["layer"])
        past_keys, past_values = self.caches[sequence].past(layer)
        keys, values = np.concatenate([past_keys, keys]), np.concatenate([past_values, values])
        if v is not None:
            self.fresh.append((self.caches[sequence], layer, keys, values))
        return keys, values

    def _probs(self, op: Op, q: Floats, positions: NDArray[np.intp], keys: Floats, past: int) -> Floats:
        """Return the attention probabilities [n_head, q_len, kv_len] of a sequence."""
        queries = _heads(q, op)
        scores = float(op.attrs["scale"]) * (queries @ _repeat(_heads(keys, op), op).transpose(0, 2, 1))
        if op.attrs["causal"]:
            unseen = np.arange(len(keys)) > (positions + past)[:, None]
            scores = np.where(unseen, -np.inf, scores)
        return softmax(scores)


def _product(x: Floats, weight: _Parameter) -> Floats:
    """Compute x @ weight.T with both rounded to the weight's format; sums of integers are exact."""
    y: Floats
    if weight.integers is not None:
        rows = to_int8(x.astype(np.float32))
        total = rows.values.astype(np.float64) @ weight.integers.values.astype(np.float64).T
        y = total.astype(x.dtype) * rows.scales[:, None] * weight.integers.scales
    elif weight.form == "bfloat16":
        y = to_bfloat16(x.astype(np.float32)).astype(x.dtype) @ weight.values.T.astype(x.dtype)
    else:
        y = x @ weight.values.T
    return y


def _heads(x: Floats, op: Op) -> Floats:
    """Reshape [rows, heads * head_dim] to [heads, rows, head_dim]."""
    head_dim = int(op.attrs["head_dim"])
    heads: Floats = x.reshape(len(x), x.shape[1] // head_dim, head_dim).transpose(1, 0, 2)
    return heads


def _repeat(x: Floats, op: Op) -> Floats:
    """Repeat each key or value head for every query head that shares it."""
    return np.repeat(x, int(op.attrs["n_head"]) // int(op.attrs["n_kv_head"]), axis=0)


def _join(x: Floats) -> Floats:
    """Reshape [heads, rows, head_dim] to [rows, heads * head_dim]."""
    heads, rows, head_dim = x.shape
    joined: Floats = x.transpose(1, 0, 2).reshape(rows, heads * head_dim)
    return joined
