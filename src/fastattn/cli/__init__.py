"""The `fastattn` command."""

from fastattn.cli.main import main

__all__ = ["main"]
