"""What the C++ executors share. The types are those of `fastattn._core`; `fastattn._cuda` has the same methods."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastattn import _core
from fastattn.errors import InputError
from fastattn.graph.cost import Formats
from fastattn.graph.executor import Drawn, Output, requested
from fastattn.graph.ir import Program, Step
from fastattn.graph.kinds import LoraAdapter
from fastattn.graph.sampling import Sampling

if TYPE_CHECKING:
    from types import ModuleType

    from typing_extensions import Self


class CoreExecutor:
    """Runs a Program in C++; see `fastattn.graph.executor.DrawingExecutor`. A subclass loads the weights."""

    _module: ModuleType
    _engine: _core.Engine
    _executor: _core.Executor | None  # None after `close`
    _program: Program
    _dtype: str
    _kv_dtype: str
    _formats: Mapping[str, str]

    @property
    def program(self) -> Program:
        return self._program

    @property
    def dtype(self) -> str:
        """The requested dtype of the weights."""
        return self._dtype

    @property
    def kv_dtype(self) -> str:
        """The format of keys and values."""
        return self._kv_dtype

    @property
    def formats(self) -> Formats:
        """The formats of each weight, and of keys and values."""
        return Formats(self._formats, self._kv_dtype)

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights in the memory of the device."""
        return int(self._engine.weight_bytes)

    @property
    def kv_bytes(self) -> int:
        """The bytes of all pages of keys and values, in use or free for the next sequence."""
        return int(self._open().kv_bytes)

    @property
    def kv_page_len(self) -> int:
        """The number of positions of a page of keys and values."""
        return int(self._module.kv_page_len)

    @property
    def kv_page_bytes(self) -> int:
        """The bytes of a page."""
        return int(self._open().kv_page_bytes)

    @property
    def kv_pages_in_use(self) -> int:
        """The number of pages that a cache or a caller holds."""
        return int(self._open().kv_pages_in_use)

    def new_page(self, data: NDArray[np.uint8]) -> _core.Page:
        """Return a page with these bytes, uint8 [kv_page_bytes]; see `fastattn.graph.executor.PagedExecutor`."""
        return self._open().new_page(data)

    def new_cache(self, adapter: LoraAdapter | None = None) -> _core.Cache:
        """Return an empty KV cache for one sequence; see `fastattn.graph.executor.Executor`."""
        if adapter is None:
            return self._open().new_cache()
        if self._module is not _core:
            raise InputError("adapter: expected a model on the CPU, got one on a GPU; load it with device='cpu'")
        packed = adapter.packed.get("cpu")
        if packed is None:
            parts = [(part.target, part.down, np.ascontiguousarray(part.up.T)) for part in adapter.parts]
            packed = adapter.packed.setdefault("cpu", _core.Adapter(parts))
        return self._open().new_cache(packed)

    def run(self, step: Step, outputs: Sequence[str] | None = None) -> dict[str, Output]:
        """Run one step; see `fastattn.graph.executor.Executor`."""
        names = requested(self._program, outputs)
        arrays = self._open().run(
            step.token_ids,
            step.cu_seqlens,
            step.positions,
            step.wanted,
            step.token_type_ids,
            self._caches(step),
            *self._run_arguments(names),
            **self._options(step),
        )
        found = dict(zip(self._program.outputs, arrays, strict=True))
        return {name: _shaped(self._program, name, found[name], step) for name in names}

    def draw(self, step: Step, sampling: Sampling) -> Drawn:
        """Run one step and draw tokens in the same call; see `fastattn.graph.executor.DrawingExecutor`."""
        return self._open().draw(
            step.token_ids,
            step.cu_seqlens,
            step.positions,
            step.wanted,
            self._caches(step),
            *_arguments(sampling),
        )

    def decoding(self, step: Step, sampling: Sampling) -> CoreDecoding:
        """Return a decode loop that starts with this step; see `fastattn.graph.executor.DrawingExecutor`."""
        loop = self._module.Decoding(self._open(), step.token_ids, self._caches(step) or (), *_arguments(sampling))
        return CoreDecoding(self, loop)

    def with_program(self, program: Program) -> Self:
        """Return an executor for another Program over the same weights."""
        self._open()
        other = copy.copy(self)
        other._program, other._executor = program, self._new_executor(program)
        return other

    def cancel(self) -> None:
        """Make the step that is running in another thread raise Cancelled; a GPU finishes it first."""
        self._engine.cancel()

    def close(self) -> None:
        """Free the memory; the weights are freed with the last executor that uses them."""
        self._executor = None

    @abstractmethod
    def _new_executor(self, program: Program) -> _core.Executor:
        """Return the module's executor of a Program over the loaded weights."""

    def _options(self, step: Step) -> dict[str, Any]:
        """Return the arguments of the module's `run` for the key_counts and features of a step."""
        options: dict[str, Any] = {} if step.key_counts is None else {"key_counts": step.key_counts}
        return options | ({"features": step.features} if step.features else {})

    def _run_arguments(self, names: Sequence[str]) -> tuple[Any, ...]:
        """Return further arguments of the module's `run`, if it takes any."""
        return ()

    def _open(self) -> _core.Executor:
        if self._executor is None:
            raise InputError("the model was closed")
        return self._executor

    def _caches(self, step: Step) -> tuple[Any, ...] | None:
        for cache in step.caches or ():
            if not isinstance(cache, self._module.Cache):
                raise InputError(f"caches: expected KV caches of this executor, got {type(cache).__name__}")
        return step.caches


class CoreDecoding:
    """A decode loop; see `fastattn.graph.executor.Decoding`. Unusable after its executor is closed."""

    def __init__(self, executor: CoreExecutor, loop: _core.Decoding) -> None:
        self._executor, self._loop = executor, loop

    def draw(self) -> Drawn:
        self._executor._open()
        return self._loop.draw()


def _arguments(sampling: Sampling) -> tuple[Any, ...]:
    """Return the last arguments of `draw` and `Decoding` in C++."""
    return (
        sampling.params,
        sampling.history,
        sampling.history_offsets,
        sampling.suppressed,
        sampling.suppress,
        sampling.logprobs,
    )


def _shaped(program: Program, name: str, array: NDArray[np.float32], step: Step) -> Output:
    """Split attention maps, a flat array from C++, into one [n_maps, q_len, kv_len] per sequence."""
    if array.ndim == 2:
        return array
    value = program.outputs[name]
    n_maps = next(int(op.attrs["n_maps"]) for op in program.ops if op.output == value)
    lengths = np.diff(step.cu_seqlens)
    maps, at = [], 0
    for i, q_len in enumerate(lengths.tolist()):
        last = step.cu_seqlens[i + 1] - 1
        kv_len = q_len if step.caches is None or q_len == 0 else int(step.positions[last]) + 1
        size = n_maps * q_len * kv_len
        maps.append(array[at : at + size].reshape(n_maps, q_len, kv_len))
        at += size
    return maps


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
