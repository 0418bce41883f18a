"""Command line parsing. A usage error has one line and a hint, and names the closest command, option or value."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from fastattn.checks import closest, nearest, quote
from fastattn.cli import streams

_MAX_MESSAGE_CHARS = 400
_NEGATIVE_NUMBER = re.compile(r"-\.?\d")


# Options of other programs, and what to use instead.
_INSTEAD = {
    "--data": "--file",
    "--do-sample": "--temperature",
    "--greedy": "--temperature 0",
    "--input": "--file",
    "--stop-strings": "--stop",
    "--stop-token": "--stop",
    "--text": "--prompt",
    "--truncate": "--truncation",
}


class CommandParser(argparse.ArgumentParser):
    """A parser whose usage errors have two lines: what is wrong, and which help to read."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and exit with code 2."""
        line = " ".join(message.split())
        if len(line) > _MAX_MESSAGE_CHARS:
            line = line[: _MAX_MESSAGE_CHARS - 3] + "..."
        streams.say(f"{self.prog}: {line}\ntry `{self.prog} --help`")
        raise SystemExit(2)

    def option_strings(self) -> list[str]:
        """Return all options as they are written: -m, --model, ..."""
        return [name for action in self._actions for name in action.option_strings]

    def check_options(self, words: Sequence[str]) -> None:
        """Reject the first unknown option, before argparse complains about missing arguments."""
        known = self.option_strings()
        for word in words:
            if word == "--":
                return
            if not word.startswith("-") or word == "-" or " " in word or _NEGATIVE_NUMBER.match(word):
                continue
            name = word.partition("=")[0] if word.startswith("--") else word[:2]
            if not any(option.startswith(name) for option in known):
                shown = word.partition("=")[0]
                self.error(f"unknown option {quote(shown)}{_hint(shown, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Check a choice like argparse, but name the closest one in the message."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            expected = f"expected {', '.join(choices)}, got {quote(value)}{closest(str(value), choices)}"
            raise argparse.ArgumentError(action, expected)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help and version to standard output. argparse itself would ignore write errors."""
        streams.emit(message, end="", flush=True)


class Once(argparse.Action):
    """Store one value, and reject a second one: the first would be lost."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Store the value. Raises argparse.ArgumentError if there is one already."""
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, "expected it once; join the files with cat and read them with -f -")
        setattr(namespace, self.dest, values)


def _hint(option: str, known: Sequence[str]) -> str:
    """Return what to write instead of an unknown option, "" if nothing is close. Dashes do not make names similar."""
    instead = _INSTEAD.get(option, "")
    if instead.partition(" ")[0] in known:
        return f"; use {instead}"
    names = {name.lstrip("-"): name for name in known}
    found = nearest(option.lstrip("-"), names)
    return "" if found is None else f"; did you mean {names[found]!r}?"


def unknown_command(parser: CommandParser, word: str, commands: Collection[str]) -> NoReturn:
    """Exit with the usage error for a command that does not exist."""
    parser.error(f"unknown command {quote(word)}{closest(word, commands) or '; expected ' + ', '.join(commands)}")


def unexpected(parser: CommandParser, words: Sequence[str]) -> NoReturn:
    """Exit with the usage error for extra arguments."""
    parser.error(f"unexpected argument {quote(words[0])}")
