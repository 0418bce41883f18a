"""Every Python and shell block of the documentation runs and prints what its page shows; links lead somewhere."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from tests.reference import pages
from tests.reference.pages import PAGES, ROOT, PageError, Run, blocks, matches

WITH_BLOCKS = [page for page in PAGES if any(block.runs for block in blocks(page.read_text(encoding="utf-8")))]
# Blocks that cannot run: they install packages, build the project or extensions, need PyTorch, another library or
# weights that are not here, or measure or train for minutes.
MAX_NOT_RUN = 20
OTHER_LIBRARIES = ROOT / "docs/how-to/other-libraries.md"  # tests/adapters runs its blocks if they are installed


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_blocks_run_and_print_what_the_page_shows(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    ran = Run(page, tmp_path).all()
    assert ran == sum(block.runs for block in blocks(page.read_text(encoding="utf-8")))
    assert ran


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_known_language(page: Path) -> None:
    assert pages.unknown_languages(page.read_text(encoding="utf-8")) == []


def test_the_readme_shows_the_main_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = " ".join(block.body for block in blocks(text) if block.language == "console")
    for name in ("generate", "classify", "embed"):
        assert f"fastattn {name} " in shown


def test_few_blocks_are_not_run() -> None:
    counted = [page for page in PAGES if page != OTHER_LIBRARIES]
    found = [b for page in counted for b in blocks(page.read_text(encoding="utf-8")) if b.language in pages.RUN]
    assert sum(not block.runs for block in found) <= MAX_NOT_RUN < sum(block.runs for block in found)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and MyST make them."""
    text = pages.FENCE.sub("", page.read_text(encoding="utf-8"))
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-"))
    return found


def broken_links(page: Path) -> list[str]:
    """Return the links of a page that lead to no file of this checkout, or to no heading of a page."""
    text = pages.FENCE.sub("", page.read_text(encoding="utf-8"))
    found = []
    for link in re.findall(r"\]\(([^()\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings_of_this_checkout(page: Path) -> None:
    assert broken_links(page) == []


def run(tmp_path: Path, text: str) -> int:
    """Run a page with this text."""
    page = tmp_path / "page.md"
    page.write_text(text)
    folder = tmp_path / "run"
    folder.mkdir()
    return Run(page, folder).all()


def test_blocks_share_a_namespace_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path.parent)
    page = (
        "```python\nfrom pathlib import Path\nx = Path('file').write_text('text\\n')\n```\n"
        "```sh\ntest -e DIR/config.json\n```\n"
        "```console\n$ cat file\ntext\n$ fastattn --version\nfastattn ...\n```\n"
        "```python\nprint(x, x / 3)\n```\n\n```text\n5 1.66...\n```\n"
        "<!-- not run in the tests: it fails -->\n```sh\nexit 1\n```\n"
    )
    assert run(tmp_path, page) == 4


def test_a_page_does_not_change_the_log_level_of_other_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    run(tmp_path, "```python\nimport logging\nlogging.getLogger('fastattn').setLevel(logging.ERROR)\n```\n")
    assert logging.getLogger("fastattn").level == logging.NOTSET


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "the page shows\n2\n"),
        ("```python\n1 / 0\n```\n", "page.md:1: the block raises ZeroDivisionError"),
        ("```sh\nfalse\ntrue\n```\n", "page.md:1: exit code 1"),
        ("```sh\nfalse | true\n```\n", "page.md:1: exit code 1"),
        ("```console\n$ echo yes\nno\n```\n", "the block prints\nyes"),
        ("```console\n$ echo yes\n```\n", "the block prints\nyes"),
        ("```console\necho yes\n```\n", "expected a line '$ command'"),
    ],
)
def test_a_wrong_block_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, words: str) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    with pytest.raises(PageError) as error:
        run(tmp_path, page)
    assert words in str(error.value)


def test_an_ellipsis_stands_for_any_text_and_nothing_else_does() -> None:
    assert matches("a ... d\n", "a b\nc d\n")
    assert matches("a.b", "a.b  \n")
    assert not matches("a.b", "axb")
    assert not matches("a ... d", "a b")
    assert not matches("a", "a b")


@pytest.mark.parametrize("language", ["py", "bash", "shell", "pycon", "python3"])
def test_other_names_of_python_and_shell_are_refused(language: str) -> None:
    assert pages.unknown_languages(f"```{language}\nx\n```\n") == [language]


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One `two`, three\n\n```sh\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#one-two-three) [c](#here) [d](https://example.org)\n"
        "[e](missing.md) [f](other.md#no-heading) [g](#there)\n"
    )
    assert broken_links(page) == ["missing.md", "other.md#no-heading", "#there"]
