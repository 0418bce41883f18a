"""The error types of fastattn. Messages name the argument or file, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class FastattnError(Exception):
    """Base class of fastattn's own error types.

    If the error is about one of several items in a call, `index` is the item's position and `item` its name, such as
    "inputs[3]", with which the message starts. Otherwise both are None.
    """

    index: int | None = None
    item: str | None = None


@contextmanager
def about_item(index: int, name: str) -> Iterator[None]:
    """Record in the errors of a `with` block which item they are about."""
    try:
        yield
    except FastattnError as error:
        if str(error).startswith(name):
            error.index, error.item = index, name
        raise


class ModelFormatError(FastattnError, ValueError):
    """A file of a checkpoint is malformed.

    `path`, `tensor` and `offset` (in bytes) give the location, or None if unknown. `code` is a short, stable word for
    programs.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        tensor: str | None = None,
        offset: int | None = None,
        code: str = "malformed",
    ) -> None:
        super().__init__(message)
        self.path = path
        self.tensor = tensor
        self.offset = offset
        self.code = code


class ConfigError(FastattnError, ValueError):
    """config.json or another settings file requests something unknown or unsupported, or does not match the tensors."""


class InputError(FastattnError, ValueError):
    """An argument has the wrong value or shape."""


class ContextLengthError(InputError):
    """A text is longer than the model's context.

    `n_tokens` is its length and `context` the longest allowed length. Each is None if unknown.
    """

    def __init__(
        self, message: str, *, index: int | None = None, n_tokens: int | None = None, context: int | None = None
    ) -> None:
        super().__init__(message)
        self.index = index
        self.n_tokens = n_tokens
        self.context = context


class ReadOnlyError(InputError, AttributeError):
    """An attribute cannot be set; the message says what to do instead."""


class UnknownKeyError(InputError, KeyError):
    """A table of vectors has no row for a word."""

    __str__ = Exception.__str__  # KeyError would quote the message


class ModelNotFoundError(FastattnError, FileNotFoundError):
    """The model folder does not exist, or has no weights."""


class HubError(FastattnError, OSError):
    """A model could not be fetched from the hub; the message says what to do."""


class CacheError(FastattnError, OSError):
    """The file of an embeddings cache is damaged, belongs to another program, or cannot be read."""


class DTypeError(FastattnError, TypeError):
    """An array has a dtype that is not accepted, or an argument has the wrong type."""


class NonFiniteError(FastattnError, FloatingPointError):
    """NaN or infinity where a finite number is required, for example in logits to be sampled."""


class OutOfMemory(FastattnError, MemoryError):
    """Memory could not be allocated; the message says how much was planned."""


class Cancelled(FastattnError):
    """The call was canceled from another thread."""


class BenchError(FastattnError):
    """`fastattn bench` could not measure; the message says what failed."""
