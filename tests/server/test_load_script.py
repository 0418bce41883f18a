"""benchmarks/serve_load.py runs, checks what it gets, and finds what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.reference.package import PYTHON_ENVIRONMENT
from tests.server.live import WAIT, Live

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "serve_load.py"


def test_the_load_script(server: Live, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    words = [
        "--url",
        server.url,
        "--rate",
        "30",
        "--seconds",
        "1",
        "--tokens",
        "6",
        "--abandon",
        "0.2",
        "--wrong",
        "0.2",
    ]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *words, "--json", str(out)],
        env=PYTHON_ENVIRONMENT, capture_output=True, text=True, timeout=WAIT, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    [found] = json.loads(out.read_text())["results"]
    assert set(found["completion"]["statuses"]) == set(found["embedding"]["statuses"]) == {"200"}
    assert set(found["wrong"]["statuses"]) <= {"400", "404", "413"}
    n_sent = sum(found[kind]["requests"] for kind in ("completion", "stream", "embedding", "wrong", "abandoned"))
    assert n_sent > 10
    stream = found["stream"]
    assert sum(count for _, count in stream["histogram"]) == stream["statuses"]["200"]
    assert 0 < stream["first_event_seconds"]["p50"] <= stream["seconds"]["max"]
