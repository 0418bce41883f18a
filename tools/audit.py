"""Checks the packages in a folder against PyPI's database of known vulnerabilities, with pip-audit (`make audit`).

    python tools/audit.py .venv/users/lib/python3.12/site-packages

Ends with 0 if all packages were checked and none has a known vulnerability, with 1 if one has, and with 2 if a package
could not be checked, whatever the reason: no network, or a mirror of PyPI that has no such database.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def findings(packages: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Return a line per known vulnerability and a line per package that could not be checked."""
    vulnerable, unchecked = [], []
    for package in packages:
        if "skip_reason" in package:
            unchecked.append(f"{package['name']}: {package['skip_reason']}")
        for found in package.get("vulns", []):
            fixed = ", ".join(found["fix_versions"]) or "no version"
            vulnerable.append(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    return vulnerable, unchecked


def main(folder: str) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.json"
        command = [sys.executable, "-m", "pip_audit", "--path", folder, "--format", "json", "--output", str(report)]
        done = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True)
        # Without a network, pip-audit writes no report. The last line that it prints says why.
        text = report.read_text("utf-8") if report.is_file() else ""
    if not text:
        reason = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode} and printed nothing"])[-1]
        print(f"NOT CHECKED for known vulnerabilities: pip-audit failed\n    {reason}")
        return 2
    packages = json.loads(text)["dependencies"]
    vulnerable, unchecked = findings(packages)
    checked = f"{len(packages) - len(unchecked)} of {len(packages)} packages checked for known vulnerabilities"
    print(f"{checked}, {len(vulnerable)} found", *vulnerable, sep="\n    ")
    if unchecked:
        print(f"NOT CHECKED, {len(unchecked)} packages:", *unchecked, sep="\n    ")
    return 1 if vulnerable else 2 if unchecked or not packages else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
