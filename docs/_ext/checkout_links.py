"""Links from pages to files of the checkout that are not part of the site.

The Markdown files are written for a checkout: `[Plan](../csrc/program/plan.h)`. Pages that live at the root of the
checkout, such as CONTRIBUTING.md, become pages of the site, and a link to them leads there. A link to any other text
file leads to a page of the site that shows this file. A link to a file that does not exist is a warning.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers import guess_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Files outside docs/ that are pages of the site: their page, without a suffix.
PAGES = {
    "ARCHITECTURE.md": "explanation/architecture",
    "CHANGELOG.md": "changes",
    "CONTRIBUTING.md": "contributing",
    "benchmarks/README.md": "explanation/benchmarks",
}
BODY_OF = {page: ROOT / name for name, page in PAGES.items()}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^()\s#]+)(#[^()\s]*)?(?=\))")
FENCE = re.compile(r"^( *`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
log = logging.getLogger(__name__)


def read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fetch the text of a page that lives elsewhere, and rewrite its links."""
    origin = BODY_OF.get(docname, Path(app.env.doc2path(docname)))
    text = origin.read_text(encoding="utf-8") if docname in BODY_OF else source[0]
    if docname in BODY_OF:
        app.env.note_dependency(str(origin))
    if Path(app.env.doc2path(docname)).suffix != ".md":
        return
    parts, at = [], 0
    for fence in [*FENCE.finditer(text), None]:
        end = fence.start() if fence else len(text)
        parts.append(LINK.sub(lambda link: _target(docname, origin, link), text[at:end]))
        if fence:
            parts.append(fence[0])
            at = fence.end()
    source[0] = "".join(parts)


def _target(docname: str, origin: Path, link: re.Match[str]) -> str:
    path, anchor = Path(os.path.normpath(origin.parent / link[1])), link[2] or ""
    here = (DOCS / docname).parent
    if not path.exists() or not path.is_relative_to(ROOT):
        log.warning("%s: no file %s in the checkout", docname, link[1], location=docname)
        return link[0]
    name = path.relative_to(ROOT).as_posix()
    if name == "README.md":
        return os.path.relpath(DOCS / "index.md", here)
    if name in PAGES:
        return os.path.relpath(DOCS / f"{PAGES[name]}.md", here) + anchor
    if path.is_dir():
        path = path / "README.md"
        if not path.exists():
            log.warning("%s: a folder without README.md: %s", docname, name, location=docname)
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        if name in PAGES:
            return os.path.relpath(DOCS / f"{PAGES[name]}.md", here) + anchor
    if path.is_relative_to(DOCS):
        return os.path.relpath(path, here) + anchor
    return f"checkout:{name}"


def resolve(app: Sphinx, tree: nodes.document, docname: str) -> None:
    """Point links to files of the checkout at the pages that show these files."""
    shown: set[str] = app.env.__dict__.setdefault("checkout_files", set())
    for reference in tree.findall(nodes.reference):
        uri = reference.get("refuri", "")
        if uri.startswith("checkout:"):
            name = uri.removeprefix("checkout:")
            shown.add(name)
            reference["refuri"] = app.builder.get_relative_uri(docname, _page(name))
            reference["internal"] = True


def _page(name: str) -> str:
    return f"checkout/{name}"


def file_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Make a page for each file that a page links to."""
    for name in sorted(app.env.__dict__.get("checkout_files", ())):
        text = (ROOT / name).read_text(encoding="utf-8")
        try:
            language = guess_lexer_for_filename(name, text).aliases[0]
        except ClassNotFound:
            language = "text"
        code = app.builder.highlighter.highlight_block(text, language, linenos=False, force=True)
        body = f"<h1><code>{html.escape(name)}</code></h1>\n{code}"
        yield (
            _page(name),
            {"title": name, "body": body, "toc": "", "display_toc": False, "theme_hide_toc": True},
            "page.html",
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect the events."""
    app.connect("source-read", read_source)
    app.connect("doctree-resolved", resolve)
    app.connect("html-collect-pages", file_pages)
    return {"version": "1", "parallel_read_safe": False}
