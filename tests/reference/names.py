"""Names of test cases."""

from __future__ import annotations


def short_repr(value: object) -> str:
    """Return the repr without an address, which is the same in every process."""
    return repr(value).split(" at 0x")[0]
