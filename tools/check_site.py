"""Checks the links of the built documentation: files and anchors must exist. Lists links to other sites.

python tools/check_site.py build/site
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

# Pages whose anchors are not checked: links to them come from a script of the theme.
GENERATED = ("search.html",)


class Page(HTMLParser):
    """The anchors of a page, and the links and sources that it uses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect ids, links and sources."""
        for name, value in attrs:
            if not value:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name == "href" or (name == "src" and tag in ("img", "script")):
                self.links.append(value)


def read(folder: Path) -> dict[Path, Page]:
    """Parse the pages of a site."""
    return {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}


def check(folder: Path) -> tuple[list[str], set[str]]:
    """Return what is wrong, and the links to other sites."""
    pages = read(folder)
    wrong, outside = [], set()
    for path, page in pages.items():
        for link in page.links:
            parts = urlparse(link)
            if parts.scheme or parts.netloc:
                if parts.scheme in ("http", "https"):
                    outside.add(urldefrag(link).url)
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                wrong.append(f"{path.relative_to(folder.resolve())}: no file {link}")
            elif (
                parts.fragment
                and target in pages
                and target.name not in GENERATED
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                wrong.append(f"{path.relative_to(folder.resolve())}: no anchor {link}")
    return wrong, outside


def main() -> int:
    folder = Path(sys.argv[1])
    wrong, outside = check(folder)
    n_pages = len(read(folder))
    if not n_pages:
        wrong.append(f"{folder}: no pages")
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{n_pages} pages, {len(wrong)} broken links, {len(outside)} links to other sites (not opened):")
    for link in sorted(outside):
        print(f"  {link}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
