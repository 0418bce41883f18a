"""Every ```console block of the README prints the output that it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reference.package import PYTHON_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPEED = re.compile(r"^\d+ tokens in .* tokens/s\n", re.MULTILINE)  # the README says that this is not shown


def examples() -> list[tuple[str, str]]:
    """Return commands and their output."""
    found = []
    for block in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        first, *parts = re.split(r"^\$ ", block, flags=re.MULTILINE)
        assert first == ""
        for part in parts:
            line, _, output = part.partition("\n")
            found.append((line, output))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all examples: a later one reads what an earlier one wrote."""
    folder = tmp_path_factory.mktemp("readme")
    tools = folder / "tools"
    tools.mkdir()
    (tools / "fastattn").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fastattn "$@"\n')
    (tools / "fastattn").chmod(0o755)
    return folder


@pytest.mark.parametrize(("line", "output"), examples(), ids=lambda text: text[:40])
def test_commands_print_what_the_readme_says(folder: Path, line: str, output: str) -> None:
    environment = {
        **PYTHON_ENVIRONMENT,
        "PATH": f"{folder / 'tools'}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert SPEED.sub("", done.stdout) == output


def test_there_are_examples() -> None:
    commands = " ".join(line for line, _ in examples())
    for name in ("generate", "classify", "embed"):
        assert f"fastattn {name} " in commands
