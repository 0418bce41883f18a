"""The `fastattn` command in this process."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fastattn.cli import main


def assert_refused(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], *, code: int, words: str, usage: str
) -> str:
    """It ends with an exit code and says `words`: 1 is one line on stderr, 2 a usage that begins with `usage`.

    Returns what it wrote to stdout.
    """
    try:
        found: object = main(arguments)
    except SystemExit as stop:
        found = stop.code
    printed = capsys.readouterr()
    assert found == code
    assert words in printed.err
    if code == 1:
        assert len(printed.err.splitlines()) == 1
    else:
        assert printed.err.startswith(f"usage: fastattn {usage} ")
    return printed.out
