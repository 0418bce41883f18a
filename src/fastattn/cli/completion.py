"""`fastattn completion SHELL`: prints a script that completes commands, options and values."""

from __future__ import annotations

import argparse

from fastattn.cli import streams
from fastattn.errors import FastattnError

SHELLS = ("bash", "zsh", "fish")


def completion(args: argparse.Namespace) -> int:
    """Print the script for a shell. Raises FastattnError if shtab is not installed."""
    try:
        import shtab
    except ImportError:
        raise FastattnError('completion: shtab is not installed; pip install "fastattn[completion]"') from None
    for command in args.commands.values():
        for action in command._actions:
            if action.metavar in ("DIR", "OUT"):
                action.complete = shtab.DIRECTORY
            elif str(action.metavar).startswith("FILE"):
                action.complete = shtab.FILE
    streams.emit(shtab.complete(args.root, args.shell))
    return 0
