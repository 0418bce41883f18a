"""The float mode of the calling thread: MXCSR on x86-64, FPCR on aarch64."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator

_X86 = platform.machine() in ("x86_64", "AMD64")
_OFFSET = 28 if _X86 else 0  # of the mode in glibc's fenv_t
_EXCEPTIONS = 0x3F if _X86 else 0  # flags that any operation may set
FLUSHING = 0x8040 if _X86 else 1 << 24  # denormal inputs and results are zeros
TOWARD_ZERO = 0x6000 if _X86 else 3 << 22

_libm = ctypes.CDLL("libm.so.6")


def _environment() -> ctypes.Array[ctypes.c_char]:
    room = ctypes.create_string_buffer(64)
    assert _libm.fegetenv(room) == 0
    return room


def mode_of_caller() -> int:
    """Return the mode without the flags of exceptions."""
    return ctypes.c_uint32.from_buffer(_environment(), _OFFSET).value & ~_EXCEPTIONS


@contextlib.contextmanager
def caller_mode(bits: int) -> Iterator[None]:
    """Set some bits of the mode."""
    before, changed = _environment(), _environment()
    ctypes.c_uint32.from_buffer(changed, _OFFSET).value |= bits
    try:
        assert _libm.fesetenv(changed) == 0
        yield
    finally:
        _libm.fesetenv(before)
