"""The errors of the `tokenizers` library as typed errors, in one place.

The library raises plain Exception, ValueError, TypeError or OverflowError, and PanicException (a BaseException) where
its Rust code panics. Those become errors of fastattn; the rest passes unchanged: MemoryError, KeyboardInterrupt, and
whatever a signal handler raises during the call.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fastattn.checks import quote
from fastattn.errors import FastattnError, ModelFormatError

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
    """`library_errors` while a file is loaded: ModelFormatError that names the file."""
    return library_errors(
        lambda reason: ModelFormatError(
            f"{path}: expected a tokenizer; the tokenizers library refuses the file: {reason}",
            path=str(path),
            code="tokenizer",
        )
    )


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
    """True for the exception of code in Rust that panics."""
    return type(error).__name__ == "PanicException" and type(error).__module__ == "pyo3_runtime"
