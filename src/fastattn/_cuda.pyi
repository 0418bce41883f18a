"""The CUDA executor (csrc/bindings/cuda_module.cpp). Importing it does not use the driver; `make check` compares this
stub with the extension if it was built.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Ints = NDArray[np.int32]

class Engine:
    """The device, stream and weights of one model."""

    def __init__(
        self,
        *,
        budget_bytes: int = 0,
        tf32: bool = False,
        library: bool = True,
        library_paths: Sequence[str] = [],
    ) -> None: ...
    def load(self, name: str, use: str, format: str, array: NDArray[Any]) -> None: ...
    def cancel(self) -> None: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def budget_bytes(self) -> int: ...
    @property
    def used_bytes(self) -> int: ...
    @property
    def library(self) -> str | None: ...
    @property
    def why_no_library(self) -> str: ...

kv_page_len: int

class Page:
    """Keys and values of a block of positions."""

    def read(self) -> NDArray[np.uint8]: ...

class Cache:
    """The keys and values of one sequence, in pages."""

    def attach(self, page: Page, count: int) -> None: ...
    def close(self) -> None: ...
    def share_page(self, index: int) -> Page: ...
    def set_memory(self, memory: Cache) -> None: ...
    def skip_page(self) -> None: ...
    def slide(self, window: int) -> None: ...
    def fork(self) -> Cache: ...
    def truncate(self, length: int) -> None: ...
    @property
    def closed(self) -> bool: ...
    @property
    def length(self) -> int: ...

class Executor:
    """Runs one Program."""

    def __init__(self, engine: Engine, spec: dict[str, Any], kv_dtype: str) -> None: ...
    def new_cache(self) -> Cache: ...
    def run(
        self,
        token_ids: _Ints,
        cu_seqlens: _Ints,
        positions: _Ints,
        wanted: _Ints,
        token_type_ids: _Ints | None,
        caches: Sequence[Cache] | None,
        wanted_outputs: Sequence[bool],
    ) -> list[NDArray[np.float32] | None]: ...
    def draw(
        self,
        token_ids: _Ints,
        cu_seqlens: _Ints,
        positions: _Ints,
        wanted: _Ints,
        caches: Sequence[Cache] | None,
        params: NDArray[np.void],
        history: _Ints,
        history_offsets: NDArray[np.int64],
        suppressed: _Ints | None = None,
        suppress: NDArray[np.int64] | None = None,
        logprobs: bool = False,
    ) -> tuple[list[int], list[float] | None]: ...
    @property
    def built_in_products(self) -> int: ...
    @property
    def failed_graphs(self) -> int: ...
    @property
    def graphs(self) -> int: ...
    def new_page(self, bytes: NDArray[np.uint8]) -> Page: ...
    @property
    def kv_bytes(self) -> int: ...
    @property
    def kv_page_bytes(self) -> int: ...
    @property
    def kv_pages_in_use(self) -> int: ...

class Decoding:
    """Sequences that are fed the token drawn for them, step by step."""

    def __init__(
        self,
        executor: Executor,
        token_ids: _Ints,
        caches: Sequence[Cache],
        params: NDArray[np.void],
        history: _Ints,
        history_offsets: NDArray[np.int64],
        suppressed: _Ints | None = None,
        suppress: NDArray[np.int64] | None = None,
        logprobs: bool = False,
    ) -> None: ...
    def draw(self) -> tuple[list[int], list[float] | None]: ...

def device_info() -> dict[str, Any]: ...
def find_library(paths: Sequence[str]) -> tuple[str | None, str]: ...
