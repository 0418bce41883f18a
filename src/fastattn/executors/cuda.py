"""The CUDA executor. The extension is loaded, and the driver used, only for device="cuda"."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint.source import WeightSource
from fastattn.errors import ConfigError, FastattnError, InputError
from fastattn.executors.core_executor import CoreExecutor, spec_of
from fastattn.executors.sources import read_weight
from fastattn.formats import DTYPES, KV_DTYPES, stored_dtype
from fastattn.graph.ir import Program, Step
from fastattn.graph.quantize import to_bfloat16, weight_formats

if TYPE_CHECKING:
    from types import ModuleType

MEMORY_VARIABLE = "FASTATTN_CUDA_MEMORY_MB"
# Where the wheels nvidia-cublas and nvidia-cublas-cu12 install cuBLASLt, inside the package `nvidia`.
_LIBRARIES = ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12")


def extension() -> ModuleType:
    """Import the module fastattn._cuda. Raises ConfigError if this build has none."""
    try:
        return importlib.import_module("fastattn._cuda")
    except ImportError as error:
        found = "one without" if isinstance(error, ModuleNotFoundError) else str(error)
        raise ConfigError(
            f'device: expected a build of fastattn with CUDA for "cuda", got {found}; build it with nvcc 12.4 or '
            'newer and pip install . -C cmake.define.FASTATTN_CUDA=ON, or use device="cpu"'
        ) from None


def require_device() -> dict[str, Any]:
    """Return the GPU that models run on: name, compute_capability, memory_bytes, free_bytes, driver, runtime.

    Raises ConfigError with advice if there is no extension, no driver, no GPU, or the GPU is too old.
    """
    info: dict[str, Any] = extension().device_info()
    return info


def describe() -> str:
    """Describe the GPU, or why none is usable, in one line."""
    try:
        found = require_device()
    except FastattnError as error:
        return f"not usable: {error}"
    major, minor = found["compute_capability"]
    path, why = extension().find_library(_library_paths())
    products = f"matrix products by {path}"
    if not path:
        products = f"matrix products by a built-in kernel, which is slower: no cuBLASLt ({why})"
    memory = found["memory_bytes"] / 2**30
    return f"{found['name']}, compute capability {major}.{minor}, {memory:.0f} GiB; {products}"


class CudaExecutor(CoreExecutor):
    """Runs a Program on the first visible GPU; see `fastattn.graph.executor.Executor`.

    sources: the source of every part of its weights.
    budget_bytes: device memory for weights, keys and values, and workspaces together. None: the value of the
    environment variable FASTATTN_CUDA_MEMORY_MB, else the free memory minus 512 MiB, but at least half of it. library:
    whether cuBLASLt may compute products, if it is installed. The built-in kernel is slower, but its float32 results
    have the same bits as on the CPU.
    """

    _engine: Any

    def __init__(
        self,
        program: Program,
        sources: Mapping[str, WeightSource],
        *,
        dtype: str = "float32",
        kv_dtype: str | None = None,
        head_dtype: str | None = None,
        budget_bytes: int | None = None,
        library: bool = True,
    ) -> None:
        if dtype not in DTYPES["cuda"]:
            raise InputError(f"dtype: expected one of {', '.join(DTYPES['cuda'])} on cuda, got {dtype!r}")
        weights = stored_dtype(dtype)
        self._dtype, self._kv_dtype = dtype, weights if kv_dtype is None else kv_dtype
        if self._kv_dtype not in KV_DTYPES["cuda"]:
            raise InputError(
                f"kv_dtype: expected None or one of {', '.join(KV_DTYPES['cuda'])} on cuda, got {kv_dtype!r}"
            )
        self._module, self._program = extension(), program
        self._engine = self._module.Engine(
            budget_bytes=_budget() if budget_bytes is None else budget_bytes,
            tf32=dtype == "tf32",
            library=library,
            library_paths=_library_paths(),
        )
        self._formats = weight_formats(program, weights, head_dtype)
        for name, weight in program.weights.items():
            form = self._formats[name]
            values = read_weight(weight, sources, _HOST_TYPES[form], partial(_converted, name, form))
            self._engine.load(name, weight.use, form, values)
            del values  # before the next one is read
        self._executor = self._new_executor(program)

    @property
    def budget_bytes(self) -> int:
        """The bytes of device memory that the model may use."""
        return int(self._engine.budget_bytes)

    @property
    def used_bytes(self) -> int:
        """The bytes of the budget that are in use."""
        return int(self._engine.used_bytes)

    @property
    def library(self) -> str | None:
        """The path of the cuBLASLt that computes products, or None for the built-in kernel."""
        path: str | None = self._engine.library
        return path

    @property
    def built_in_products(self) -> int:
        """The number of linears that cuBLASLt does not compute. The built-in kernel is slower."""
        return int(self._open().built_in_products)

    @property
    def failed_graphs(self) -> int:
        """The number of small step sizes that could not be captured as CUDA graphs; these steps start more slowly."""
        return int(self._open().failed_graphs)

    def _new_executor(self, program: Program) -> Any:
        # "float32" is for the CPU executor's spec; the CUDA executor takes its own dtype.
        return self._module.Executor(self._engine, spec_of(program, "float32"), self._kv_dtype)

    def _open(self) -> Any:  # the extension's executor has more attributes than the CPU's
        return super()._open()

    def _run_arguments(self, names: Sequence[str]) -> tuple[Any, ...]:
        return ([name in names for name in self._program.outputs],)

    def _options(self, step: Step) -> dict[str, Any]:
        if step.key_counts is not None:
            raise InputError('key_counts: expected none on the device "cuda"; use device="cpu"')
        return {}


def _budget() -> int:
    """Return the budget in bytes from the environment; 0 if it is not set."""
    text = os.environ.get(MEMORY_VARIABLE, "")
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise InputError(f"{MEMORY_VARIABLE}: expected a number of MiB of at least 1, got {text!r}")
    return int(text) << 20


def _library_paths() -> list[str]:
    """Return the cuBLASLt files in the wheels of the extra `cuda`."""
    try:
        spec = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    return [str(path) for folder in folders for name in _LIBRARIES if (path := Path(folder, name)).is_file()]


_HOST_TYPES: Mapping[str, type[np.generic]] = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.uint16}


def _converted(name: str, form: str, values: NDArray[np.float32]) -> NDArray[Any]:
    """Convert weights to the GPU's format: float32, or the bits of 16-bit floats as uint16."""
    if form == "float32":
        return values
    if form == "bfloat16":
        bits: NDArray[np.uint16] = (to_bfloat16(values).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return bits
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if (np.isinf(halves) & np.isfinite(values)).any():
        raise ConfigError(
            f"{name}: expected weights within float16's 65504, got a magnitude of {np.abs(values).max():g}; "
            "use bfloat16 or float32"
        )
    return halves.view(np.uint16)
