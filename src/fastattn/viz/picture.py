"""What every function of fastattn.viz returns: a picture as one HTML page, as SVG, and as numbers."""

from __future__ import annotations

import base64
import hashlib
import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastattn.checks import check_path, quote
from fastattn.errors import InputError
from fastattn.viz.drawing import DARK, LIGHT, Drawing, stack, stylesheet

NO_VALUE = "\N{EN DASH}"  # in a cell without a value
_TEXT_HEIGHT, _MOST_HEIGHT = 240, 900  # of a frame in a notebook, in pixels
ENDINGS = (".html", ".htm", ".svg")


@dataclass(frozen=True, slots=True, repr=False)
class Picture:
    """A picture of what a model does. Jupyter shows it as the last value of a cell.

    title: its heading. data: the numbers that it shows, as arrays and lists; the function that draws it says which.
    html and svg are single files: they load nothing from the network, follow the light or dark mode of the reader, and
    show their content without scripts.
    """

    title: str
    data: Mapping[str, Any]
    sections: Sequence[str]  # HTML, each with a heading
    drawings: Sequence[Drawing]

    @property
    def html(self) -> str:
        """The picture as an HTML page."""
        style = "".join([_variables(), _file("page.css"), stylesheet()])
        script = _file("page.js")
        allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        # The policy forbids every load but that of pictures inside the page, and every script but ours.
        policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
        title = html.escape(self.title)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n'
            f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
            + "\n".join(self.sections)
            + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
        )

    @property
    def svg(self) -> str:
        """The picture as an SVG image, without controls."""
        return stack(self.drawings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write FILE.html or FILE.svg. Raises DTypeError, InputError for another ending, OSError."""
        file = check_path("path", path)
        if file.suffix.lower() not in ENDINGS:
            raise InputError(f"path: expected FILE.html or FILE.svg, got {quote(str(file))}")
        file.write_text(self.svg if file.suffix.lower() == ".svg" else self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        # A frame separates the page's styles from the notebook's. Its scripts cannot reach the notebook.
        height = min(_MOST_HEIGHT, _TEXT_HEIGHT + round(sum(drawing.height for drawing in self.drawings)))
        return (
            f'<iframe title="{html.escape(self.title)}" sandbox="allow-scripts" '
            f'style="width:100%;height:{height}px;border:0;resize:vertical" srcdoc="{html.escape(self.html)}"></iframe>'
        )

    def __repr__(self) -> str:
        return f"<Picture {quote(self.title)}; save(FILE.html) or save(FILE.svg) writes it>"


def section(name: str, title: str, note: str, body: str, **data: object) -> str:
    """Return a part of a page. note: how to read it, as HTML."""
    values = "".join(f' data-{key}="{html.escape(str(value))}"' for key, value in data.items())
    return (
        f'<section class="{name}"{values}>\n<h2>{html.escape(title)}</h2>\n<p class="note">{note}</p>\n{body}</section>'
    )


def scrolled_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table that scrolls by itself. head and rows are HTML; the first cell of a row is its heading."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>'
        + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    label = html.escape(caption)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>\n'
        f"<caption><span>{label}</span></caption>\n"
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def details(summary: str, body: str, *, opened: bool = False) -> str:
    """Return a part of a page that a reader can open and close."""
    return f"<details{' open' * opened}><summary>{html.escape(summary)}</summary>\n{body}</details>\n"


def _variables() -> str:
    light, dark = ("".join(f"--{name}: {color}; " for name, color in colors.items()) for colors in (LIGHT, DARK))
    return f":root {{ {light}}}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"


def _file(name: str) -> str:
    return (resources.files("fastattn") / "viz" / name).read_text(encoding="utf-8")
