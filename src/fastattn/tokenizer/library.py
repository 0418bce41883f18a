"""Converts the errors of the `tokenizers` library to typed errors.

The library raises plain Exception, ValueError, TypeError or OverflowError, and PanicException (a BaseException) if its
Rust code panics. Those become errors of fastattn. All others propagate unchanged: MemoryError, KeyboardInterrupt, and
anything that a signal handler raises during the call.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fastattn.checks import quote
from fastattn.errors import FastattnError, ModelFormatError

_Result = TypeVar("_Result")
_MAX_REASON_CHARS = 200
_callback = threading.local()  # error: the one that the library replaced by its own Exception
_OFF = ("", "off", "false", "f", "no", "n", "0")  # values of TOKENIZERS_PARALLELISM, as the library reads it
_PLAIN_ERRORS = (Exception, ValueError, TypeError, OverflowError, UnicodeEncodeError)


@contextlib.contextmanager
def library_errors(make_error: Callable[[str], FastattnError]) -> Iterator[None]:
    """Convert an error of library calls in the `with` block to `make_error(reason)`; reason has one line."""
    _callback.error = None
    try:
        yield
    except BaseException as error:
        original, _callback.error = _callback.error, None
        if original is not None:
            raise original from None
        if not is_library_error(error):
            raise
        raise make_error(reason_of(error)) from error


@contextlib.contextmanager
def called_back() -> Iterator[None]:
    """Wrap Python code that the library calls, so that `library_errors` raises the errors of this code unchanged."""
    try:
        yield
    except BaseException as error:
        _callback.error = error
        raise


def uses_threads() -> bool:
    """Return whether the library encodes several texts in threads of its own, on all cores.

    It does unless TOKENIZERS_PARALLELISM turns them off. With threads, it prints a warning after a fork.
    """
    return os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() not in _OFF


def file_errors(path: Path | str) -> contextlib.AbstractContextManager[None]:
    """Convert errors of library calls that load a file to ModelFormatError, which names the file."""
    return library_errors(functools.partial(_file_error, path))


class LibraryRefusal(FastattnError):
    """The library's error about the parts of a tokenizer. `refusals_of` adds the file that they come from."""


def call_library(function: Callable[..., _Result], *args: Any, **keywords: Any) -> _Result:
    """Call the library with values from a file. Raises LibraryRefusal."""
    with library_errors(LibraryRefusal):
        return function(*args, **keywords)


@contextlib.contextmanager
def refusals_of(path: Path | str) -> Iterator[None]:
    """Convert a LibraryRefusal in the `with` block to ModelFormatError, which names the file.

    Other errors propagate unchanged, because a bug in our code is not a fault of the file. Panics are always from the
    library.
    """
    try:
        yield
    except LibraryRefusal as error:
        raise _file_error(path, str(error)) from error.__cause__
    except BaseException as error:
        if not is_panic(error):
            raise
        raise _file_error(path, reason_of(error)) from error


def is_library_error(error: BaseException) -> bool:
    """Return whether the library raised an error, rather than a signal handler or a memory limit."""
    if is_panic(error):
        return True
    if type(error) not in _PLAIN_ERRORS:
        return False
    # The library has no Python frames, so its errors start in the frame that called it. A handler has its own frame.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("fastattn.")


def reason_of(error: BaseException) -> str:
    """Return the library's message on one line."""
    return quote(str(error), _MAX_REASON_CHARS)


def is_panic(error: BaseException) -> bool:
    """Return whether an exception comes from a panic in Rust code.

    The panic is already on standard error: Rust's panic hook writes to file descriptor 2 before the exception exists.
    Only Rust code can replace the hook, and the library has no function for it. Redirecting the descriptor during the
    call would lose the output of other threads.
    """
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"


def _file_error(path: Path | str, reason: str) -> ModelFormatError:
    return ModelFormatError(
        f"{path}: expected a tokenizer; the tokenizers library refuses the file: {reason}",
        path=str(path),
        code="tokenizer",
    )
