"""What runs a Program: the interface that the numpy and the C++ executor share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from fastattn.graph.ir import Program, Step
from fastattn.graph.sampling import Sampling

Output = NDArray[Any] | list[NDArray[Any]]


class Cache(Protocol):
    """The keys and values of one sequence. After `close()` every use is an InputError."""

    @property
    def length(self) -> int:
        """Positions that are stored."""
        ...

    def truncate(self, length: int) -> None:
        """Forget the positions from `length` on."""
        ...

    def fork(self) -> Cache:
        """A second cache with the same contents, which then goes its own way (pages are shared until written)."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class Executor(Protocol):
    """A Program with its weights in memory."""

    @property
    def program(self) -> Program: ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in memory."""
        ...

    def new_cache(self) -> Cache:
        """An empty KV cache for one sequence."""
        ...

    def run(self, step: Step, outputs: Sequence[str] | None = None) -> dict[str, Output]:
        """Run one step and return the outputs asked for (None: all of the Program's).

        Every output is [rows, width], float32 from cpu and float64 from numpy; attention maps are a list with one
        [n_head, q_len, kv_len] for each sequence. `step.caches` advance by the tokens of their sequences; after an
        error they are as they were.
        """
        ...

    def with_program(self, program: Program) -> Executor:
        """Another optimized Program of the same model over the same weights, which are not loaded a second time.

        Its weights must be among this executor's. Caches of either can be used with both. Closing one does not close
        the other.
        """
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


Drawn = tuple[list[int], list[float] | None]


class Decoding(Protocol):
    """Sequences that are fed, step after step, the token that each of them drew."""

    def draw(self) -> Drawn:
        """Run one step: the ids, one per sequence, and their log-probabilities if they were asked for.

        After an error all is as it was.
        """
        ...


@runtime_checkable
class DrawingExecutor(Protocol):
    """An executor that draws tokens itself, so that no logits leave it."""

    def draw(self, step: Step, sampling: Sampling) -> Drawn:
        """Run one step: an id for each wanted row and, if asked for, their log-probabilities.

        Raises NonFiniteError naming the row. `step.caches` advance as with `run`, and are as they were after an error.
        """
        ...

    def decoding(self, step: Step, sampling: Sampling) -> Decoding:
        """A loop whose first step is this one, of one token per sequence, each of them wanted."""
        ...
