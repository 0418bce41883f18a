"""mypy, as strict callers of the tested package run it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.reference.lock import locked
from tests.reference.package import SOURCES

# One cache for all tests: most of the time of a run is numpy and the package, and mypy notices what changed.
CACHE = Path(__file__).resolve().parents[2] / "build" / "mypy-cache"
# mypy finds installed packages by itself and rejects their folder in MYPYPATH.
INSTALLED = Path(sysconfig.get_path("purelib")).resolve() == SOURCES
ENVIRONMENT = {**os.environ} if INSTALLED else {**os.environ, "MYPYPATH": str(SOURCES)}


def check(folder: Path, code: str) -> list[str]:
    """Return mypy's lines for sample.py with this code in a folder, and for the modules that it imports."""
    (folder / "sample.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", CACHE, "--no-error-summary"]
    with locked(CACHE):
        done = subprocess.run(
            [*command, "sample.py"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout.splitlines()
