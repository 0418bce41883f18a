"""`make release` refuses a checkout that is not ready, and an sdist depends only on the files of the checkout."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def release() -> ModuleType:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import release
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return release


def git(root: Path, *arguments: str) -> None:
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *name, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """Return a checkout that can be released as 1.2.0."""
    (tmp_path / "src/fastattn").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (tmp_path / "src/fastattn/__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## [Unreleased]\n\n## [1.2.0] - 2026-01-01\n\n- New.\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "a")
    return tmp_path


def test_a_checkout_that_is_ready(ready: Path) -> None:
    assert release().problems(ready) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("CITATION.cff", "version: 1.1.0\n", "CITATION.cff: expected version 1.2.0, got 1.1.0"),
        ("src/fastattn/__init__.py", "", "src/fastattn/__init__.py: expected version 1.2.0, got none"),
        ("CHANGELOG.md", "## [1.2.0]\n- a\n\n## [Unreleased]\n- b\n", "CHANGELOG.md: expected no entries in [Unrel"),
        ("CHANGELOG.md", "## [Unreleased]\n\n## [1.1.0]\n- a\n", "CHANGELOG.md: expected a section [1.2.0]"),
    ],
)
def test_what_prevents_a_release(ready: Path, name: str, text: str, expected: str) -> None:
    (ready / name).write_text(text)
    git(ready, "commit", "-qam", "b")
    (problem,) = release().problems(ready)
    assert problem.startswith(expected)


def test_an_uncommitted_file_or_an_old_tag_prevents_a_release(ready: Path) -> None:
    git(ready, "tag", "v1.2.0")
    (ready / "new").write_text("")
    assert release().problems(ready) == [
        "git: expected no uncommitted changes", "git: expected no tag v1.2.0; raise the version",
    ]  # fmt: skip


def test_this_checkout_states_one_version() -> None:
    assert len(set(release().versions(ROOT).values())) == 1


def test_two_builds_of_the_sdist_are_equal(tmp_path: Path) -> None:
    """The time, the folder and the times of the files do not matter."""
    pytest.importorskip("scikit_build_core", reason="builds with the build tools of this environment")
    hashes = []
    for name in ("a", "b"):
        copy = tmp_path / name / "fastattn"
        git(tmp_path, "clone", "-q", str(ROOT), str(copy))
        for path in copy.rglob("*"):
            os.utime(path, (len(hashes) * 1e8, len(hashes) * 1e8), follow_symlinks=False)
        (copy / "build").mkdir()
        (copy / "build" / "left.txt").write_text(name)
        hashes.append(hashlib.sha256(release().build(copy).read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]
