"""Runs a script once per SIMD target, each in its own process."""

from __future__ import annotations

import os
import subprocess
import sys

from fastattn import _core


def printed_on_targets(script: str, *arguments: str) -> dict[str, list[str]]:
    """Return the words that the script printed on each target of this machine."""
    printed = {}
    for target in _core.available_targets():
        environment = {**os.environ, "FASTATTN_FORCE_TARGET": target, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=True
        )
        printed[target] = done.stdout.split()
    return printed


def assert_same_on_targets(digests: dict[str, list[str]], *, count: int, without_bfloat16: int) -> None:
    """Assert equal digests on all targets. A target with its own bfloat16 sums prints only digests of other formats."""
    expected = digests["scalar"]
    assert len(set(expected)) == count
    for target, found in digests.items():
        if _core.bfloat16_sums(target) == "portable":
            assert found == expected
        else:
            assert len(found) == without_bfloat16
            assert set(found) < set(expected)
