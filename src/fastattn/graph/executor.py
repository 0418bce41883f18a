"""The interface that all executors of a Program implement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from fastattn.errors import InputError
from fastattn.graph.ir import Program, Step
from fastattn.graph.kinds import LoraAdapter
from fastattn.graph.sampling import Sampling

Output = NDArray[Any] | list[NDArray[Any]]


def requested(program: Program, outputs: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the requested outputs (None: all). Raises InputError for a name that the Program lacks."""
    names = tuple(program.outputs if outputs is None else outputs)
    for name in names:
        if name not in program.outputs:
            raise InputError(f"outputs: expected some of {sorted(program.outputs)}, got {name!r}")
    return names


class Cache(Protocol):
    """The keys and values of one sequence. After `close()` every use raises InputError."""

    @property
    def length(self) -> int:
        """The number of stored positions."""

    def truncate(self, length: int) -> None:
        """Remove the positions from `length` on."""

    def fork(self) -> Cache:
        """Return an independent copy of the cache. Pages are shared until written to."""

    def set_memory(self, memory: Any) -> None:
        """Share the positions of another cache of the model as the memory that `cross_attention` reads.

        Later changes of the other cache do not change it. Copies of this cache share it.
        """

    def close(self) -> None:
        """Free the memory."""


class Executor(Protocol):
    """A Program with its weights in memory."""

    @property
    def program(self) -> Program: ...

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights in memory."""

    def new_cache(self, adapter: LoraAdapter | None = None) -> Cache:
        """Return an empty KV cache for one sequence, with its adapter if it has one.

        Only a Program with the lora ops of the adapter (`rewrites.with_lora`) accepts the cache. Raises InputError on
        CUDA.
        """

    def run(self, step: Step, outputs: Sequence[str] | None = None) -> dict[str, Output]:
        """Run one step and return the requested outputs (None: all outputs of the Program).

        Every output is [rows, width], float32 from cpu and cuda, and float64 from numpy. Attention maps are a list
        of one [n_head, q_len, kv_len] per sequence. `step.caches` grow by the tokens of their sequences; an error
        leaves them unchanged. Raises InputError, ContextLengthError, Cancelled, OutOfMemory.
        """

    def with_program(self, program: Program) -> Executor:
        """Return an executor for another optimized Program of the same model, without loading the weights again.

        Its weights must be among this executor's. Each executor accepts the caches of the other. Closing one does not
        close the other.
        """

    def close(self) -> None:
        """Free the memory."""


class PagedCache(Cache, Protocol):
    """A cache whose positions are in pages that other caches of the model can share."""

    def share_page(self, index: int) -> Any:
        """Return the page of positions from index * kv_page_len on. It is copied if one of its users writes to it."""

    def attach(self, page: Any, count: int) -> None:
        """Append the first `count` positions of a page. The length must be a multiple of kv_page_len."""

    def skip_page(self) -> None:
        """Append a whole page that is missing, because no later query sees it."""

    def slide(self, window: int) -> None:
        """Free the pages that no query at `length` or later sees, if it sees `window` positions up to its own.

        Raises InputError if a later `truncate` needs one of them.
        """


@runtime_checkable
class PagedExecutor(Protocol):
    """An executor whose caches are `PagedCache`. Pages come from one pool per model."""

    @property
    def kv_page_len(self) -> int:
        """The number of positions of a page."""

    @property
    def kv_page_bytes(self) -> int:
        """The bytes of a page: keys and values of all layers."""

    @property
    def kv_pages_in_use(self) -> int:
        """The number of pages that a cache or a caller holds."""

    def new_page(self, data: NDArray[Any]) -> Any:
        """Return a page with these bytes, uint8 [kv_page_bytes], as its `read()` returned them."""


Drawn = tuple[list[int], list[float] | None]


class Decoding(Protocol):
    """A decode loop: each step feeds every sequence the token that it drew last."""

    def draw(self) -> Drawn:
        """Run one step and return one id per sequence, and their log-probabilities if requested.

        An error leaves everything unchanged.
        """


@runtime_checkable
class DrawingExecutor(Protocol):
    """An executor that can also draw tokens itself, without returning logits."""

    def draw(self, step: Step, sampling: Sampling) -> Drawn:
        """Run one step and return one id per wanted row and, if requested, their log-probabilities.

        Raises NonFiniteError, which names the row. `step.caches` grow as in `run`; an error leaves them unchanged.
        """

    def decoding(self, step: Step, sampling: Sampling) -> Decoding:
        """Return a loop that starts with this step, which has one token per sequence, all of them wanted."""
