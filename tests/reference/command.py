"""Runs the `fastattn` command in this process and in others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from fastattn.cli import main
from tests.reference.package import PYTHON_ENVIRONMENT

ENVIRONMENT = {**PYTHON_ENVIRONMENT, "PYTHONWARNINGS": "error"}


def command(*arguments: object) -> list[str]:
    """Return the command line for a separate process."""
    return [sys.executable, "-m", "fastattn", *map(str, arguments)]


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in a separate process."""
    return subprocess.run(
        command(*arguments), input=stdin, capture_output=True, text=True, timeout=600, env=ENVIRONMENT, check=False
    )


def assert_refused(
    capsys: pytest.CaptureFixture[str], arguments: Sequence[str], *, code: int, words: str, usage: str
) -> str:
    """Assert that the command exits with `code` and prints `words` to stderr. Return what it wrote to stdout.

    code: 1 prints one line; 2 also prints a hint, which names the help of `usage`. usage: a command such as "embed", or
    "" for `fastattn` itself.
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
        prog = f"fastattn {usage}".strip()
        line, hint = printed.err.splitlines()
        assert line.startswith(f"{prog}: ")
        assert hint == f"try `{prog} --help`"
    return printed.out
