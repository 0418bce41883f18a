"""The C++ executor, and information on the machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn import _core
from fastattn.checkpoint.quantized import PackedWeight
from fastattn.checkpoint.source import WeightSource, matrix_shape
from fastattn.errors import ConfigError, InputError
from fastattn.executors.core_executor import CoreExecutor, spec_of
from fastattn.executors.shared_weights import Entry, SharedWeights, share
from fastattn.executors.sources import CoreParts
from fastattn.formats import KV_DTYPES, default_kv_dtype
from fastattn.graph.ir import Program, Weight
from fastattn.graph.quantize import weight_formats


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


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which weights processes share. key and check: as in `shared_weights.share`."""

    key: Mapping[str, Any]
    check: Callable[[], None]


class CpuExecutor(CoreExecutor):
    """Runs a Program in C++. One call runs a step on all threads with the GIL released.

    sources: the source of every part of its weights, unless `packed` has the weights of a quantized checkpoint.
    sharing: map the weights that another process packed, or pack them for others; None: memory of its own.
    """

    _shared: SharedWeights | None = None

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
        sharing: Sharing | None = None,
    ) -> None:
        self._module, self._program, self._dtype = _core, program, dtype
        self._kv_dtype = default_kv_dtype(dtype) if kv_dtype is None else kv_dtype
        if self._kv_dtype not in KV_DTYPES["cpu"]:
            raise InputError(f"kv_dtype: expected one of {', '.join(KV_DTYPES['cpu'])}, or None, got {kv_dtype!r}")
        self._engine = _core.Engine(_core.default_threads() if threads is None else threads)
        if packed is None:
            self._formats = weight_formats(program, dtype, head_dtype)
        else:
            self._formats = {name: weight.form for name, weight in packed.items()}

        def load(engine: _core.Engine, weights: Mapping[str, Weight]) -> None:
            if packed is None:
                _load(engine, weights, sources, self._formats)
            else:
                _load_packed(engine, weights, packed)

        if sharing is None:
            load(self._engine, program.weights)
        else:
            self._shared = _share(sharing, program, self._formats, self._engine, load)
        self._executor = self._new_executor(program)

    @property
    def threads(self) -> int:
        """The number of threads that run a step."""
        return int(self._engine.threads)

    def seconds_to_read(self) -> float:
        """Measure the seconds to read every packed weight once on all threads: the minimum time of a decode step."""
        return float(self._engine.seconds_to_read())

    def set_profiling(self, on: bool) -> None:
        """Start timing every op, from zero, or stop timing."""
        self._open().set_profiling(on)

    def op_seconds(self) -> list[float]:
        """Return the seconds spent in each op since profiling was enabled; empty while it is disabled."""
        return list(self._open().op_seconds)

    def _new_executor(self, program: Program) -> _core.Executor:
        return _core.Executor(self._engine, spec_of(program, self._kv_dtype))


_Load = Callable[[_core.Engine, Mapping[str, Weight]], None]


def _share(
    sharing: Sharing, program: Program, formats: Mapping[str, str], engine: _core.Engine, load: _Load
) -> SharedWeights:
    """Map shared weights into an engine. They are packed one by one, if no other process has them."""

    def pack() -> Iterator[tuple[str, Entry, list[NDArray[np.uint8]]]]:
        for name, weight in program.weights.items():
            alone = _core.Engine(engine.threads)
            load(alone, {name: weight})
            entry = (weight.use, formats[name], *matrix_shape(weight.shape), (0, 0, 0))
            yield name, entry, alone.packed(name, True)

    shapes = {name: [weight.use, formats[name], weight.shape] for name, weight in program.weights.items()}
    found = share({**sharing.key, "weights": shapes}, pack, sharing.check)
    found.map_into(engine)
    return found


def _load(
    engine: _core.Engine, weights: Mapping[str, Weight], sources: Mapping[str, WeightSource], formats: Mapping[str, str]
) -> None:
    with CoreParts() as parts:
        for name, weight in weights.items():
            found = parts.of_weight(weight, sources)
            engine.load(name, weight.use, formats[name], found, weight.transposed)


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
            engine.load_packed(name, found.use, found.form, *matrix_shape(weight.shape), pieces)


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
    sizes = _core.packed_sizes(weight.use, form, *matrix_shape(weight.shape))
    return tuple(sizes[:1] + [size for size in sizes[1:] if size])
