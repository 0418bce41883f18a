"""The errors of the `tokenizers` library as typed errors, in one place.

The library raises plain Exception, ValueError, TypeError or OverflowError, and PanicException (a BaseException) where
its Rust code panics. Those become errors of fastattn; the rest passes unchanged: MemoryError, KeyboardInterrupt, and
whatever a signal handler raises during the call.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from fastattn.checks import quote
from fastattn.errors import FastattnError, ModelFormatError

_Result = TypeVar("_Result")
_MAX_REASON_CHARS = 200
_callback = threading.local()  # error: what the library replaced by an Exception of its own
_PLAIN_ERRORS = (Exception, ValueError, TypeError, OverflowError, UnicodeEncodeError)


@contextlib.contextmanager
def library_errors(make_error: Callable[[str], FastattnError]) -> Iterator[None]:
    """Around calls of the library: raises `make_error(reason)`, reason on one line, for an error of the library."""
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
    """Around Python code that the library calls: `library_errors` raises the errors of this code as they are."""
    try:
        yield
    except BaseException as error:
        _callback.error = error
        raise


def file_errors(path: Path | str) -> contextlib.AbstractContextManager[None]:
    """`library_errors` around calls that load a file: ModelFormatError that names it."""
    return library_errors(functools.partial(_file_error, path))


class LibraryRefusal(FastattnError):
    """What the library says against the parts of a tokenizer; `refusals_of` says which file they come from."""


def call_library(function: Callable[..., _Result], *args: Any, **keywords: Any) -> _Result:
    """One call of the library with values of a file. Raises LibraryRefusal."""
    with library_errors(LibraryRefusal):
        return function(*args, **keywords)


@contextlib.contextmanager
def refusals_of(path: Path | str) -> Iterator[None]:
    """Around code that builds a tokenizer with `call_library`: ModelFormatError that names the file.

    Other errors pass unchanged: a fault of our code is no fault of the file. Panics are always the library's.
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
    """True for an error that the library raised itself, false for one from a signal handler or from memory limits."""
    if is_panic(error):
        return True
    if type(error) not in _PLAIN_ERRORS:
        return False
    # The library has no Python frames: its errors start in the frame that called it. A handler has its own frame.
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("fastattn.")


def reason_of(error: BaseException) -> str:
    """What the library says, on one line."""
    return quote(str(error), _MAX_REASON_CHARS)


def is_panic(error: BaseException) -> bool:
    """True for the exception of code in Rust that panics.

    The panic has been printed to standard error by then: Rust's panic hook writes to file descriptor 2 before the
    exception exists. The hook can be replaced from Rust alone, and the library offers no function for it; pointing the
    descriptor elsewhere during the call would swallow what other threads print.
    """
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"


def _file_error(path: Path | str, reason: str) -> ModelFormatError:
    return ModelFormatError(
        f"{path}: expected a tokenizer; the tokenizers library refuses the file: {reason}",
        path=str(path),
        code="tokenizer",
    )
