"""The C++ executor, and information on the machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastattn import _core
from fastattn.checkpoint.quantized import PackedWeight
from fastattn.checkpoint.source import WeightSource
from fastattn.errors import ConfigError, InputError
from fastattn.executors.sources import CoreParts
from fastattn.formats import KV_DTYPES, default_kv_dtype
from fastattn.graph.cost import Formats
from fastattn.graph.executor import Drawn, Output
from fastattn.graph.ir import Program, Step, Weight
from fastattn.graph.quantize import weight_formats
from fastattn.graph.sampling import Sampling


def info() -> dict[str, Any]:
    """Return the version, compiler, SIMD targets, order of bfloat16 sums and default number of threads."""
    target = _core.active_target()
    return {
        "version": _core.version,
        "compiler": _core.compiler,
        "targets_built": _core.built_targets(),
        "targets_available": _core.available_targets(),
        "targets_refused": _core.refused_targets(),
        "target_active": target,
        "target_forced": os.environ.get("FASTATTN_FORCE_TARGET") or None,
        "bfloat16_sums": _core.bfloat16_sums(target),
        "threads": _core.default_threads(),
    }


def sample(
    logits: NDArray[np.float32],
    params: NDArray[np.void],
    history: NDArray[np.int32],
    history_offsets: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Draw the next token of each row of logits [n, vocab], as `fastattn.generation.numpy_sampler` specifies.

    params: SAMPLE_PARAMS [n]. history: the concatenated ids of all rows, split at history_offsets [n + 1]. Returns ids
    [n] and their log-probabilities [n]. Raises NonFiniteError, which names the row.
    """
    ids, logprobs = _core.sample(logits, params, history, history_offsets)
    return ids, logprobs


class CpuExecutor:
    """Runs a Program in C++. One call runs a step on all threads with the GIL released.

    sources: the source of every part of its weights, unless `packed` has the weights of a quantized checkpoint.
    """

    def __init__(
        self,
        program: Program,
        sources: Mapping[str, WeightSource],
        *,
        dtype: str = "float32",
        kv_dtype: str | None = None,
        head_dtype: str | None = None,
        packed: Mapping[str, PackedWeight] | None = None,
        threads: int | None = None,
    ) -> None:
        self._program = program
        self._dtype = dtype
        self._kv_dtype = default_kv_dtype(dtype) if kv_dtype is None else kv_dtype
        if self._kv_dtype not in KV_DTYPES["cpu"]:
            raise InputError(f"kv_dtype: expected one of {', '.join(KV_DTYPES['cpu'])}, or None, got {kv_dtype!r}")
        self._engine = _core.Engine(_core.default_threads() if threads is None else threads)
        if packed is None:
            self._formats = weight_formats(program, dtype, head_dtype)
            _load(self._engine, program.weights, sources, self._formats)
        else:
            self._formats = {name: weight.form for name, weight in packed.items()}
            _load_packed(self._engine, program.weights, packed)
        self._executor: _core.Executor | None = _core.Executor(self._engine, spec_of(program, self._kv_dtype))

    @property
    def program(self) -> Program:
        return self._program

    @property
    def dtype(self) -> str:
        """The requested dtype of the weights."""
        return self._dtype

    @property
    def formats(self) -> Formats:
        """The formats of each weight, and of keys and values."""
        return Formats(self._formats, self._kv_dtype)

    @property
    def threads(self) -> int:
        """The number of threads that run a step."""
        return int(self._engine.threads)

    @property
    def kv_dtype(self) -> str:
        """The format of keys and values."""
        return self._kv_dtype

    @property
    def kv_bytes(self) -> int:
        """The bytes of all pages of keys and values, in use or free for the next sequence."""
        return int(self._open().kv_bytes)

    @property
    def weight_bytes(self) -> int:
        """The bytes of the packed weights."""
        return int(self._engine.weight_bytes)

    def seconds_to_read(self) -> float:
        """Measure the seconds to read every packed weight once on all threads: the least time of a decode step."""
        return float(self._engine.seconds_to_read())

    def set_profiling(self, on: bool) -> None:
        """Start timing every op, from zero, or stop timing."""
        self._open().set_profiling(on)

    def op_seconds(self) -> list[float]:
        """Return the seconds spent in each op since profiling was enabled; empty while it is disabled."""
        return list(self._open().op_seconds)

    def new_cache(self) -> _core.Cache:
        """Return an empty KV cache for one sequence."""
        return self._open().new_cache()

    def run(self, step: Step, outputs: Sequence[str] | None = None) -> dict[str, Output]:
        """Run one step; see `fastattn.graph.executor.Executor`."""
        wanted = self._program.outputs if outputs is None else outputs
        for name in wanted:
            if name not in self._program.outputs:
                raise InputError(f"outputs: expected some of {sorted(self._program.outputs)}, got {name!r}")
        arrays = self._open().run(
            step.token_ids,
            step.cu_seqlens,
            step.positions,
            step.wanted,
            step.token_type_ids,
            None if step.caches is None else _caches(step),
        )
        named = dict(zip(self._program.outputs, arrays, strict=True))
        return {name: shaped(self._program, name, named[name], step) for name in wanted}

    def draw(self, step: Step, sampling: Sampling) -> Drawn:
        """Run one step and draw tokens in the same call; see `fastattn.graph.executor.DrawingExecutor`."""
        return self._open().draw(
            step.token_ids,
            step.cu_seqlens,
            step.positions,
            step.wanted,
            None if step.caches is None else _caches(step),
            sampling.params,
            sampling.history,
            sampling.history_offsets,
            sampling.suppressed,
            sampling.suppress,
            sampling.logprobs,
        )

    def decoding(self, step: Step, sampling: Sampling) -> CpuDecoding:
        """Return a decode loop that starts with this step; see `fastattn.graph.executor.DrawingExecutor`."""
        loop = _core.Decoding(
            self._open(),
            step.token_ids,
            _caches(step),
            sampling.params,
            sampling.history,
            sampling.history_offsets,
            sampling.suppressed,
            sampling.suppress,
            sampling.logprobs,
        )
        return CpuDecoding(self, loop)

    def with_program(self, program: Program) -> CpuExecutor:
        """Return an executor for another Program over the same weights."""
        self._open()
        other = object.__new__(CpuExecutor)
        other._program, other._engine, other._kv_dtype = program, self._engine, self._kv_dtype
        other._dtype, other._formats = self._dtype, self._formats
        other._executor = _core.Executor(self._engine, spec_of(program, self._kv_dtype))
        return other

    def cancel(self) -> None:
        """Stop the step that is running in another thread; it raises Cancelled."""
        self._engine.cancel()

    def close(self) -> None:
        """Free the memory; the weights are freed with the last executor that uses them."""
        self._executor = None

    def _open(self) -> _core.Executor:
        if self._executor is None:
            raise InputError("the model was closed")
        return self._executor


class CpuDecoding:
    """A decode loop; see `fastattn.graph.executor.Decoding`. Unusable after its executor is closed."""

    def __init__(self, executor: CpuExecutor, loop: _core.Decoding) -> None:
        self._executor, self._loop = executor, loop

    def draw(self) -> Drawn:
        """Run one step."""
        self._executor._open()
        return self._loop.draw()


def shaped(program: Program, name: str, array: NDArray[np.float32], step: Step) -> Output:
    """Split attention maps, a flat array from C++, into one [n_head, q_len, kv_len] per sequence."""
    if array.ndim == 2:
        return array
    value = program.outputs[name]
    n_head = next(int(op.attrs["n_head"]) for op in program.ops if op.output == value)
    lengths = np.diff(step.cu_seqlens)
    maps, at = [], 0
    for i, q_len in enumerate(lengths.tolist()):
        last = step.cu_seqlens[i + 1] - 1
        kv_len = q_len if step.caches is None or q_len == 0 else int(step.positions[last]) + 1
        size = n_head * q_len * kv_len
        maps.append(array[at : at + size].reshape(n_head, q_len, kv_len))
        at += size
    return maps


def _caches(step: Step) -> tuple[_core.Cache, ...]:
    caches = step.caches or ()
    for cache in caches:
        if not isinstance(cache, _core.Cache):
            raise InputError(f"caches: expected KV caches of this executor, got {type(cache).__name__}")
    return cast("tuple[_core.Cache, ...]", caches)


def spec_of(program: Program, kv_dtype: str) -> dict[str, Any]:
    """Convert the Program to plain lists for C++."""
    names = list(program.weights)
    index = {name: i for i, name in enumerate(names)}
    return {
        "values": [(value.rows, value.width) for value in program.values],
        "ops": [
            (op.kind, list(op.inputs), op.output, [index[name] for name in op.weights], dict(op.attrs))
            for op in program.ops
        ],
        "weights": names,
        "outputs": list(program.outputs.values()),
        "logits": _logits_of(program),
        "n_layer": program.n_layer,
        "n_kv_head": program.n_kv_head,
        "head_dim": program.head_dim,
        "max_positions": program.max_positions,
        "kv_dtype": kv_dtype,
    }


def _logits_of(program: Program) -> int:
    """Return the index of the output that tokens are drawn from; -1 if the Program is not a language model."""
    value = program.outputs.get("logits")
    if value is None or program.values[value].rows != "wanted":
        return -1
    return list(program.outputs).index("logits")


def _load(
    engine: _core.Engine, weights: Mapping[str, Weight], sources: Mapping[str, WeightSource], formats: Mapping[str, str]
) -> None:
    """Load every weight."""
    with CoreParts() as parts:
        for name, weight in weights.items():
            found = parts.of_weight(weight, sources)
            engine.load(name, weight.use, formats[name], found, transposed=weight.transposed)


def _load_packed(engine: _core.Engine, weights: Mapping[str, Weight], packed: Mapping[str, PackedWeight]) -> None:
    """Load every packed weight unchanged."""
    with CoreParts() as parts:
        for name, weight in weights.items():
            found = packed.get(name)
            fits = found is not None and found.shape == weight.shape and weight.use in _READ_AS[found.use]
            if found is None or not fits:
                got = "none" if found is None else f"a {found.use} {list(found.shape)}"
                raise ConfigError(
                    f"{name}: expected a {weight.use} {list(weight.shape)} in the quantized checkpoint, got {got}"
                )
            pieces = [parts.of(piece) for piece in found.pieces]
            engine.load_packed(name, found.use, found.form, weight.shape[0], _columns(weight), pieces)


_READ_AS: Mapping[str, tuple[str, ...]] = {"matrix": ("matrix", "table"), "table": ("table",), "vector": ("vector",)}


def pack_weight(
    name: str, weight: Weight, form: str, sources: Mapping[str, WeightSource], threads: int | None
) -> list[NDArray[np.uint8]]:
    """Pack a weight in a format; return its data as bytes, and its scales and sums if the format has them."""
    engine = _core.Engine(_core.default_threads() if threads is None else threads)
    _load(engine, {name: weight}, sources, {name: form})
    return engine.packed(name)


def packed_sizes(weight: Weight, form: str) -> tuple[int, ...]:
    """Return the sizes in bytes of the arrays that `pack_weight` returns."""
    sizes = _core.packed_sizes(weight.use, form, weight.shape[0], _columns(weight))
    return tuple(sizes[:1] + [size for size in sizes[1:] if size])


def _columns(weight: Weight) -> int:
    return weight.shape[1] if len(weight.shape) > 1 else 1
