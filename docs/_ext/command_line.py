"""The directive `command-line`: the commands and options of `fastattn`, read from its argument parser."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from fastattn.cli.arguments import build_parser


def _option(action: argparse.Action) -> str:
    """Return how an option is written: -m DIR, --model DIR."""
    value = action.metavar if isinstance(action.metavar, str) else ""
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if action.nargs == 0:
        value = ""
    elif action.nargs == "?":
        value = f"[{value}]"
    names = list(action.option_strings) or [""]
    return ", ".join(f"{name} {value}".strip() for name in names)


def _sentence(text: str, values: object = None) -> str:
    """Write a help text as a sentence; it may begin with one of the values."""
    text = text.strip().rstrip(".") + "."
    names = list(values) if isinstance(values, Collection) else []
    return text if text.split(" ")[0] in names else text[0].upper() + text[1:]


def _command(name: str, summary: str, parser: argparse.ArgumentParser) -> list[str]:
    lines = [f"## `fastattn {name}`", "", _sentence(parser.description or summary), ""]
    lines += ["```text", parser.format_usage().removeprefix("usage: ").rstrip(), "```", ""]
    for action in parser._actions:
        if action.help is argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        text = (action.help or "").replace("%%", "%") % {"prog": parser.prog} if action.help else ""
        lines += [f"`{_option(action)}`", f": {_sentence(text, action.choices)}", ""]
    return lines


class CommandLine(SphinxDirective):
    """Lists every command, with its usage and its options."""

    def run(self) -> list[nodes.Node]:
        """Write Markdown and parse it as part of the page."""
        parser, commands = build_parser()
        summaries = {
            choice.dest: choice.help or ""
            for action in parser._actions
            if isinstance(action, argparse._SubParsersAction)
            for choice in action._choices_actions
        }
        lines: list[str] = []
        for name, command in commands.items():
            lines += _command(name, summaries.get(name, ""), command)
        return self.parse_text_to_nodes(StringList(lines, "command-line"), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("command-line", CommandLine)
    return {"version": "1", "parallel_read_safe": True}
