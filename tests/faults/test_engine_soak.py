"""Good, bad and abandoned requests for a few seconds; `python benchmarks/engine.py MODEL soak` does it for a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.reference.checkpoints import write_gpt2
from tests.reference.hang import HANG_SECONDS
from tests.reference.package import PYTHON_ENVIRONMENT

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "engine.py"
PAGE_BYTES = 2 * 48 * 4 * 64 * 2


@pytest.mark.parametrize("pages", [6, 1000])
def test_a_short_soak(tmp_path: Path, pages: int) -> None:
    """It fails by itself if a text differs from the one alone, if a page stays in use, or if a thread stays."""
    folder = write_gpt2(tmp_path, vocab_size=300, n_positions=256, n_embd=48, n_layer=2, n_head=3)
    arguments = ["--dtype", "float32", "--seconds", "3", "--kv-cache-bytes", str(pages * PAGE_BYTES)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), "soak", *arguments],
        env=PYTHON_ENVIRONMENT, capture_output=True, text=True, timeout=HANG_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'wrong': 0" in done.stdout
    assert "pages in use 0" in done.stdout
