"""Activation functions of a cross-encoder: from a name, a class of torch.nn, or any function of arrays."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import closest, quote
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.search.vectors import Rows
from fastattn.tasks.sentence.modules import ACTIVATIONS, activate
from fastattn.tasks.softmax import softmax

NAMES = (*ACTIVATIONS, "Softmax")


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of logits [n, num_labels].

    name: a class of torch.nn, "" for another function. function: it gets the logits of one pair, [1, num_labels], so a
    score does not depend on the other pairs of a call.
    """

    name: str = ""
    function: Callable[[NDArray[Any]], Any] | None = None

    def __repr__(self) -> str:
        return f"{self.name}()" if self.name else repr(self.function)

    def __call__(self, logits: Rows) -> Rows:
        """Return the scores, [n, num_labels]. Raises InputError, DTypeError."""
        if self.name == "Softmax":
            return softmax(logits).astype(np.float32)
        if self.name:
            return activate(self.name, logits)
        found = np.empty_like(logits)
        for i, row in enumerate(logits):
            found[i] = self._one(row[np.newaxis].copy())
        return found

    def _one(self, row: Rows) -> Rows:
        assert self.function is not None
        result = self.function(row)
        try:
            found = np.asarray(result)
        except (TypeError, RuntimeError):
            raise DTypeError(f"activation_fn: expected it to return an array, got {type(result).__name__}") from None
        if found.dtype.kind not in "fiu" or found.size != row.size:
            raise InputError(
                f"activation_fn: expected it to return numbers of shape {list(row.shape)} for one pair, got "
                f"{found.dtype} of shape {list(found.shape)}"
            )
        return found.reshape(row.shape[1:]).astype(np.float32)


def read_activation(name: str, value: object) -> Activation:
    """Return an activation function given as a name, a torch module, a function of tensors or a function of arrays.

    Raises DTypeError, InputError.
    """
    if isinstance(value, Activation):
        return value
    if isinstance(value, str):
        known = {entry.lower(): entry for entry in NAMES}
        if value.lower() not in known:
            raise InputError(f"{name}: expected one of {', '.join(NAMES)}, got {quote(value)}{closest(value, NAMES)}")
        return Activation(known[value.lower()])
    if isinstance(value, type) or not callable(value):
        got = f"the class {value.__name__}; call it first" if isinstance(value, type) else type(value).__name__
        raise DTypeError(f"{name}: expected None, a name or a function, got {got}")
    kind = type(value)
    if kind.__module__.startswith("torch.nn.") and kind.__name__ in NAMES and _is_default(value):
        return Activation(kind.__name__)
    return Activation(function=_of_tensors(value) if _takes_tensors(value) else value)


def _is_default(module: Any) -> bool:
    """Return whether a torch module has the default arguments, so its class name defines it completely."""
    kind = type(module)
    if kind.__name__ == "Softmax":
        return module.dim in (None, 1, -1)
    return repr(module) == repr(kind())


def _takes_tensors(function: Any) -> bool:
    """Return whether a callable is part of torch, or a module."""
    homes = (getattr(function, "__module__", None), *(base.__module__ for base in type(function).__mro__))
    is_torch = any(str(home).partition(".")[0] == "torch" for home in homes)
    return is_torch or str(getattr(function, "__qualname__", "")).startswith("_VariableFunctions")


def _of_tensors(function: Callable[[Any], Any]) -> Callable[[NDArray[Any]], Any]:
    def call(row: NDArray[Any]) -> Any:
        found = function(sys.modules["torch"].from_dlpack(row))
        return found.detach().numpy() if hasattr(found, "detach") else found

    return call
