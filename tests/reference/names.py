"""Names of test cases."""

from __future__ import annotations


def short_repr(value: object) -> str:
    """The same in every process: the repr without an address."""
    return repr(value).split(" at 0x")[0]
