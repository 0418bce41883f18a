"""tools/audit.py never reports success for packages that pip-audit could not check (a stand-in for it runs here)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKED: dict[str, Any] = {"name": "numpy", "version": "2.4", "vulns": []}
SKIPPED: dict[str, Any] = {"name": "tqdm", "skip_reason": "Dependency not found on PyPI"}
FOUND: dict[str, Any] = {
    "name": "idna",
    "version": "3.6",
    "vulns": [{"id": "PYSEC-2024-60", "fix_versions": ["3.7"]}, {"id": "PYSEC-1", "fix_versions": []}],
}


def audit(folder: Path, code: str) -> tuple[int, str]:
    """Run the tool with a pip-audit that runs `code`; return its exit status and what it prints."""
    (folder / "pip_audit").mkdir()
    (folder / "pip_audit/__main__.py").write_text(f"import sys\n{code}\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "tools/audit.py"), "site-packages"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


def report(*packages: dict[str, Any]) -> str:
    text = json.dumps({"dependencies": packages})
    return f"open(sys.argv[sys.argv.index('--output') + 1], 'w').write({text!r})"


@pytest.mark.parametrize(
    ("packages", "status", "lines"),
    [
        ([CHECKED], 0, ["1 of 1 packages checked for known vulnerabilities, 0 found"]),
        ([CHECKED, SKIPPED], 2, ["1 of 2 packages checked", "NOT CHECKED, 1 packages:", "tqdm: Dependency not found"]),
        ([CHECKED, FOUND], 1, ["2 of 2 packages", "2 found", "idna 3.6: PYSEC-2024-60, fixed in 3.7", "no version"]),
        ([FOUND, SKIPPED], 1, ["1 of 2 packages", "idna 3.6: PYSEC-2024-60", "tqdm: Dependency not found"]),
        ([], 2, ["0 of 0 packages"]),
    ],
)
def test_the_status_says_whether_all_packages_were_checked(
    tmp_path: Path, packages: list[dict[str, Any]], status: int, lines: list[str]
) -> None:
    got, text = audit(tmp_path, report(*packages))
    assert got == status
    for line in lines:
        assert line in text


def test_a_failure_of_pip_audit_is_reported_in_one_line(tmp_path: Path) -> None:
    got, text = audit(tmp_path, "raise ConnectionError('no route to pypi.org')")
    assert got == 2
    assert text.splitlines() == [
        "NOT CHECKED for known vulnerabilities: pip-audit failed",
        "    ConnectionError: no route to pypi.org",
    ]
