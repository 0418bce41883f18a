"""`make test` never treats a failed installation as successful."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A replacement for the environment's python: it records its calls, and installing $REFUSED fails.
PYTHON = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
  *tools/extra.py*) printf 'torch\\nother\\n' ;;
  *"pip install"*"$REFUSED"*) exit 1 ;;
esac
"""

PYTEST = "-m pytest -q -p no:benchmark -n 3 --dist worksteal"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


class Checkout:
    """Runs targets of the Makefile in a separate environment."""

    def __init__(self, folder: Path) -> None:
        self.stamps, self.log, self.python = folder / "stamps", folder / "log", folder / "python"
        self.stamps.mkdir()
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)

    def make_test(self, refused: str, *, ci: str = "") -> tuple[int, str, list[str]]:
        """Return the exit status, standard output and python calls of `make test` with no package to build."""
        self.log.write_text("")
        done = ["install", f"{self.stamps}/venv", f"{self.stamps}/test-tools"]
        command = ["make", *(f"--old-file={name}" for name in done), f"S={self.stamps}", f"PY={self.python}"]
        command += ["WORKERS=3", "test"]
        for name in ("venv", "test-tools"):
            (self.stamps / name).touch()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "TEST_ARGS"))}
        environment |= {"REFUSED": refused, "LOG": str(self.log), "CI": ci}
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return result.returncode, result.stdout, self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_everything_installed(checkout: Checkout) -> None:
    status, text, calls = checkout.make_test("nothing")
    assert (status, calls[-1]) == (0, PYTEST)
    assert "WARNING" not in text
    assert sum("pip install" in call for call in calls) == 2
    assert checkout.make_test("nothing")[2] == [PYTEST]


@pytest.mark.parametrize("refused", ["torch==", "other"])
def test_a_failed_install_is_told_and_tried_again(checkout: Checkout, refused: str) -> None:
    for _ in range(2):
        status, text, calls = checkout.make_test(refused)
        assert status == 0
        assert any(refused in call for call in calls if "pip install" in call)
        assert calls[-1] == f"{PYTEST} -m not torch"
        assert "WARNING" in text.splitlines()[-1]
    assert checkout.make_test("nothing")[2][-1] == PYTEST


@pytest.mark.parametrize("refused", ["torch==", "other"])
def test_a_failed_install_fails_in_ci(checkout: Checkout, refused: str) -> None:
    status, text, calls = checkout.make_test(refused, ci="true")
    assert status != 0
    assert "WARNING" in text
    assert not any("pytest" in call for call in calls)
