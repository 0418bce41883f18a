"""Checks that this checkout can be released, builds its sdist and prints what to tag (`make release`).

    python tools/release.py [--check]     --check: no build

Wheels come from `make wheels`.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Every file that states the version, and the line that does.
VERSIONS = {
    "pyproject.toml": r'^version = "(.+)"$',
    "src/fastattn/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
}


def versions(root: Path) -> dict[str, str]:
    """Return the version that each file states."""
    found = {name: re.search(line, (root / name).read_text("utf-8"), re.MULTILINE) for name, line in VERSIONS.items()}
    return {name: "none" if match is None else match[1] for name, match in found.items()}


def changes(root: Path, version: str) -> tuple[str, str]:
    """Return the text of the sections [Unreleased] and [version] of the change log."""
    parts = re.split(r"^## \[([^]]+)\].*$", (root / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    return sections.get("Unreleased", "").strip(), sections.get(version, "").strip()


def git(root: Path) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    return run


def problems(root: Path) -> list[str]:
    """Return what prevents a release; empty if nothing does."""
    stated = versions(root)
    version = stated["pyproject.toml"]
    found = [f"{name}: expected version {version}, got {other}" for name, other in stated.items() if other != version]
    unreleased, released = changes(root, version)
    if unreleased:
        found.append(f"CHANGELOG.md: expected no entries in [Unreleased]; move them to [{version}]")
    if not released:
        found.append(f"CHANGELOG.md: expected a section [{version}] with entries, found none")
    run = git(root)
    if run("status", "--porcelain"):
        found.append("git: expected no uncommitted changes")
    if run("tag", "--list", f"v{version}"):
        found.append(f"git: expected no tag v{version}; raise the version")
    return found


def build(root: Path) -> Path:
    """Build the sdist with the build tools of this environment; return its path."""
    code = "import scikit_build_core.build as b; print(b.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return root / "dist" / done.stdout.split()[-1]


def main(arguments: list[str]) -> int:
    version = versions(ROOT)["pyproject.toml"]
    if found := problems(ROOT):
        print(f"fastattn {version} cannot be released:", *found, sep="\n  ")
        return 1
    if "--check" not in arguments:
        sdist = build(ROOT)
        print(f"{hashlib.sha256(sdist.read_bytes()).hexdigest()}  {sdist.relative_to(ROOT)}")
    print(
        f"Build the wheels with make wheels. Then tag: git tag -s v{version} -m v{version}; git push origin v{version}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
