"""Standard input, output and error, which may be closed, full or disconnected.

`emit` writes results and raises OutputError if it fails. `say` writes messages; if it fails, the message is dropped and
the command continues.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
from typing import IO, Any, BinaryIO

from fastattn.errors import FastattnError, InputError


class OutputError(FastattnError, OSError):
    """Standard output cannot be written. `broken_pipe`: its reader has exited."""

    def __init__(self, cause: OSError | ValueError | None) -> None:
        self.broken_pipe = isinstance(cause, BrokenPipeError)
        if isinstance(cause, OSError) and cause.strerror and cause.errno != errno.EBADF:
            super().__init__(f"standard output: {cause.strerror}")
        else:
            super().__init__("standard output is closed")


def prepare() -> None:
    """Make the three standard descriptors usable. Only for a command that owns the process.

    Each closed descriptor is opened on /dev/null. Otherwise the next file that the process opens would get its number,
    and library output would go into that file. (Python has already set `sys.stdin`, `sys.stdout` or `sys.stderr` to
    None.) Non-blocking descriptors, which some programs leave behind, become blocking: otherwise a read would end
    early.
    """
    for descriptor in (0, 1, 2):
        if not _is_open(descriptor):
            os.open(os.devnull, os.O_RDWR)  # opens as the lowest free number, which is this one
        elif not os.get_blocking(descriptor):
            os.set_blocking(descriptor, True)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def check_output() -> None:
    """Raise OutputError if standard output is closed, before a command does its work."""
    if sys.stdout is None or sys.stdout.closed:
        raise OutputError(None)


def emit(text: str = "", *, end: str = "\n", flush: bool = False) -> None:
    """Write to standard output. Raises OutputError."""
    check_output()
    try:
        sys.stdout.write(text + end)
        if flush:
            sys.stdout.flush()
    except (OSError, ValueError) as error:  # ValueError: another part of the process closed the file
        raise OutputError(error) from error


def flush() -> None:
    """Write the buffered output of `emit`. Raises OutputError."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except (OSError, ValueError) as error:
            raise OutputError(error) from error


def say(text: str) -> None:
    """Write a line to standard error, if possible."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def settle(*, interrupted: bool = False) -> None:
    """Flush or discard the buffers of both outputs, so that Python's flush at exit cannot fail.

    interrupted: after Ctrl-C, discard the output for a reader that does not read, instead of waiting for it.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None or stream.closed:
            continue
        if interrupted and not _takes_output(stream):
            _discard(stream)
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            _discard(stream)


def _takes_output(stream: IO[Any]) -> bool:
    """Return whether a stream can be written without waiting; True if that is unknown."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return bool(poll.poll(0))
    except (OSError, ValueError):  # a stream without a descriptor
        return True


def _discard(stream: IO[Any]) -> None:
    """Point the stream's descriptor at /dev/null."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        target = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, target)
        finally:
            os.close(null)
        stream.flush()


def input_bytes() -> BinaryIO:
    """Return standard input as bytes. Raises InputError if it is closed or cannot be read."""
    stream = sys.stdin
    if stream is None or stream.closed:
        raise InputError("standard input is closed")
    if not stream.readable():
        raise InputError("standard input: expected a stream to read from, got one that is open for writing only")
    return stream.buffer
