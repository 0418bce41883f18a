"""The documentation site: the reference has every public name, and the site builds without a warning."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastattn
from fastattn.cli.arguments import build_parser
from tests.reference.package import PYTHON_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
DIRECTIVE = re.compile(r"^\.\. auto(?:class|function|exception):: fastattn\.([\w.]+)", re.MULTILINE)


def documented() -> set[str]:
    """Return the names of the reference, without `fastattn.`."""
    return {name for page in (ROOT / "docs/reference").glob("*.md") for name in DIRECTIVE.findall(page.read_text())}


def public_names() -> list[str]:
    modules = ("errors", "generation", "ops", "util", "viz", "__version__")
    names = [name for name in fastattn.__all__ if name not in modules]
    names += [f"generation.{name}" for name in fastattn.generation.__all__]
    names += [f"util.{name}" for name in fastattn.util.__all__]
    names += [f"viz.{name}" for name in fastattn.viz.__all__]
    # A function with two public names is described under the shorter one.
    return names + [f"ops.{name}" for name in fastattn.ops.__all__ if name not in fastattn.__all__]


@pytest.mark.parametrize("name", public_names())
def test_the_reference_has_every_public_name(name: str) -> None:
    assert name in documented()


@pytest.mark.parametrize("name", public_names())
def test_every_public_name_has_a_docstring_that_says_what_it_needs(name: str) -> None:
    found: object = fastattn
    for part in name.split("."):
        found = getattr(found, part)
    text = found.__doc__ or ""
    assert text.strip().endswith((".", ":", "`"))
    if not isinstance(found, type) and name != "generation.request_seed":  # which takes any ints
        module = inspect.getmodule(found)
        assert module is not None
        assert "Raises " in text or "Errors: " in (module.__doc__ or ""), f"{name} does not say what it raises"


def build(folder: Path) -> Path:
    """Build the site with warnings as errors."""
    pytest.importorskip("furo", reason="builds the site with the packages of the extra `docs`")
    pytest.importorskip("myst_parser", reason="builds the site with the packages of the extra `docs`")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", str(folder / "html")]
    done = subprocess.run(
        [*command, "-d", str(folder / "doctrees")],
        cwd=ROOT, env=PYTHON_ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "html"


def check_reference(site: Path) -> None:
    models = (site / "reference/models.html").read_text(encoding="utf-8")
    for name in ("dtype", "kv_dtype", "check_finite"):
        assert f"<strong>{name}</strong>" in models
    assert 'href="errors.html#fastattn.ConfigError"' in models
    command = (site / "reference/command-line.html").read_text(encoding="utf-8")
    _, commands = build_parser()
    for name, parser in commands.items():
        assert f"fastattn {name}" in command
        for option in parser.option_strings():
            assert option in ("-h", "--help") or option in command


def check_source_files(site: Path) -> None:
    tour = (site / "tour.html").read_text(encoding="utf-8")
    assert 'href="checkout/csrc/program/plan.cpp.html"' in tour
    assert "plan_slots" in (site / "checkout/csrc/program/plan.cpp.html").read_text(encoding="utf-8")


def run_check(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/check_site.py", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def check_links(site: Path) -> None:
    done = run_check(site)
    assert done.returncode == 0, done.stderr
    assert "0 broken links" in done.stdout


def check_search_and_sources(site: Path) -> None:
    assert "classif" in (site / "searchindex.js").read_text(encoding="utf-8")
    start = (site / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(
        r'<(?:script|img)[^>]*src="([^"]+)"|<link[^>]*rel="(?:stylesheet|preload)"[^>]*href="([^"]+)"', start
    )
    assert loaded
    assert not [source for pair in loaded for source in pair if source.startswith(("http", "//"))]


def test_the_site_builds_without_a_warning_and_is_complete(tmp_path: Path) -> None:
    """Everything in one test, because a build takes seconds and test processes share no fixtures."""
    site = build(tmp_path)
    check_links(site)
    check_search_and_sources(site)
    check_reference(site)
    check_source_files(site)


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("missing.html", "no file missing.html"),
        ("#there", "no anchor #there"),
        ("other.html#x", "no anchor other.html#x"),
    ],
)
def test_broken_links_of_a_site_are_found(tmp_path: Path, link: str, words: str) -> None:
    (tmp_path / "other.html").write_text('<h1 id="here">Other</h1>')
    (tmp_path / "index.html").write_text(
        f'<a href="other.html#here">a</a> <a href="https://example.org/x">b</a> <a href="{link}">c</a>'
    )
    done = run_check(tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert "https://example.org/x" in done.stdout
    assert "1 broken links" in done.stdout
