"""Modules that are read-only after loading: assigning to an attribute raises an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, TypeVar

from fastattn.errors import ReadOnlyError

_Class = TypeVar("_Class")
_ADVICE = "change the files in the module's folder and load the model again"


def read_only(**advice: str) -> Callable[[type[_Class]], type[_Class]]:
    """Decorate a frozen dataclass to raise ReadOnlyError instead of FrozenInstanceError.

    advice: by attribute name, what to do instead of assigning.
    """

    def refuse(self: object, name: str, *_: object) -> NoReturn:
        what = advice.get(name, _ADVICE)
        raise ReadOnlyError(f"{type(self).__name__}.{name}: modules are read-only; {what}")

    def decorate(cls: type[_Class]) -> type[_Class]:
        # A frozen dataclass must not define these methods itself, so they are replaced afterwards; mypy rejects that.
        cls.__setattr__ = refuse  # type: ignore[method-assign]
        cls.__delattr__ = refuse  # type: ignore[method-assign]
        return cls

    return decorate
