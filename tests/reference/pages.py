"""Runs the code of the documentation pages and compares the outputs that they show.

A page is a Markdown file. Its blocks run in order, in one namespace and one folder per page:

    ```python    runs; a ```text block directly after it is what it prints
    ```console   lines `$ command`, each with what it prints to standard output and standard error
    ```sh        commands, as one script; the output is not compared

In an output, `...` stands for any text. A comment `<!-- not run in the tests: REASON -->` on the line before marks a
block that cannot run. `DIR` in the folder of a page is the demo language model, `model.gguf` the same in Q8_0, and
`dates` the recurrent model of examples/.
Files next to a page whose names the page mentions are copied into its folder. Its blocks draw the pictures next to it.

    python -m tests.reference.pages                  # counts the blocks of all pages
    python -m tests.reference.pages --write PAGE ... # runs pages, writes what they print into them, stores pictures
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import fastattn
from tests.reference.gguf_files import write_demo
from tests.reference.package import PYTHON_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"])

FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=fence)$", re.M | re.S
)
NOT_RUN = re.compile(r"<!-- not run in the tests: \S.* -->\n\Z")
RUN = ("python", "console", "sh")
# Text that no reader runs. Other languages are refused: a block named `py` or `bash` would never run.
SHOWN = ("text", "cpp", "cmake", "json", "toml", "")
SPEED = re.compile(r"^\d+ tokens in .* tokens/s\n", re.MULTILINE)  # README.md says that this is not shown
SECONDS = 600
PICTURE = re.compile(r"!\[[^\]]*\]\(([\w-]+\.(?:png|svg))\)")
# The allowed mean difference between a drawn picture and the page's, where white against black is 1: another version of
# the drawing library may move a letter by a pixel.
PICTURE_DIFFERENCE = 0.02
# The difference of a number in an SVG image or a notebook: another numpy may round another way. Images inside
# them are not compared, because another zlib packs pixels another way.
NUMBER_DIFFERENCE = 0.05
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
EMBEDDED = re.compile(r"data:image/png;base64,[\w+/=]+")


class PageError(AssertionError):
    """A block failed, or its page shows another output."""


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, its text, its line, and the position of its text in the page."""

    language: str
    body: str
    line: int
    start: int
    end: int
    runs: bool
    output: Block | None = None  # of a python block


def blocks(text: str) -> list[Block]:
    """Return the blocks of a page; a python block contains the block of its output."""
    found: list[Block] = []
    previous_end = -1
    for fence in FENCE.finditer(text):
        language = fence["language"].strip()
        start, end = fence.span("body")
        runs = language in RUN and not NOT_RUN.search(text, 0, fence.start())
        block = Block(language, fence["body"], text.count("\n", 0, start), start, end, runs)
        last = found[-1] if found else None
        if language == "text" and last and last.language == "python" and not text[previous_end : fence.start()].strip():
            found[-1] = replace(last, output=block)
        else:
            found.append(block)
        previous_end = fence.end()
    return found


def unknown_languages(text: str) -> list[str]:
    """Return the languages of blocks that this module neither runs nor knows as plain text. Directives are allowed."""
    return [b.language for b in blocks(text) if b.language not in (*RUN, *SHOWN) and not b.language.startswith("{")]


def matches(shown: str, printed: str) -> bool:
    """Whether a page shows what was printed. Spaces at the end of a line do not count."""
    lines = [re.escape(part) for part in _strip(shown).split("...")]
    return re.fullmatch(".*?".join(lines), _strip(printed), re.DOTALL) is not None


def _strip(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def commands(body: str) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with the output that the page shows."""
    first, *parts = re.split(r"^\$ ", body, flags=re.MULTILINE)
    if first or not parts:
        raise PageError(f"a console block: expected a line '$ command' first, got {body[:40]!r}")
    return [(line, output) for line, _, output in (part.partition("\n") for part in parts)]


@dataclass
class Run:
    """The run of one page in a folder: the namespace of its Python blocks, and the outputs to write into the page."""

    page: Path
    folder: Path
    compare: bool = True
    namespace: dict[str, object] = field(default_factory=lambda: {"__name__": "__page__"})
    printed: list[tuple[Block, str]] = field(default_factory=list)
    n_blocks: int = 0

    def all(self) -> int:
        """Run the blocks of the page in order; return how many ran. Raises PageError."""
        text = self.page.read_text(encoding="utf-8")
        self._prepare(text)
        before, log = Path.cwd(), logging.getLogger("fastattn")
        level, options = log.level, np.get_printoptions()  # a page may set them
        os.chdir(self.folder)
        try:
            for block in blocks(text):
                if block.runs:
                    {"python": self._python, "console": self._console, "sh": self._shell}[block.language](block)
                    self.n_blocks += 1
            if self.compare:
                self._compare_pictures(text)
        finally:
            os.chdir(before)
            log.setLevel(level)
            np.set_printoptions(**options)
        return self.n_blocks

    def _prepare(self, text: str) -> None:
        tools = self.folder / ".tools"
        tools.mkdir()
        for name, words in (("fastattn", "-m fastattn"), ("python", "")):
            (tools / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
            (tools / name).chmod(0o755)
        (self.folder / "DIR").symlink_to(Path(fastattn.__file__).parent / "demo/gpt2-litbank")
        (self.folder / "dates").symlink_to(ROOT / "examples/dates")
        if "model.gguf" in text:
            write_demo(self.folder / "model.gguf")
        for file in self.page.parent.iterdir():
            if (
                file.is_file()
                and file.suffix not in (".md", ".png", ".svg")
                and self.page.parent != ROOT
                and file.name in text
            ):
                shutil.copy(file, self.folder)

    def _compare_pictures(self, text: str) -> None:
        for name in PICTURE.findall(text):
            same = same_svg if name.endswith(".svg") else same_png
            if not same(self.page.parent / name, self.folder / name):
                raise PageError(f"{self.page.relative_to(ROOT)}: its blocks draw another {name}")

    def _where(self, block: Block) -> str:
        return f"{self.page.relative_to(ROOT)}:{block.line}"

    def _python(self, block: Block) -> None:
        # Leading empty lines make a traceback name the line of the page.
        code = compile("\n" * block.line + block.body, str(self.page), "exec")
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                exec(code, self.namespace)
        except Exception as error:
            raise PageError(f"{self._where(block)}: the block raises {type(error).__name__}: {error}") from error
        if block.output:
            self.printed.append((block.output, out.getvalue()))
            self._check(block.output, block.output.body, out.getvalue())

    def _console(self, block: Block) -> None:
        parts = []
        for line, shown in commands(block.body):
            done = self._bash(line)
            printed = SPEED.sub("", done.stdout)
            parts.append(f"$ {line}\n{printed}")
            self._check(block, shown, printed)
        self.printed.append((block, "".join(parts)))

    def _shell(self, block: Block) -> None:
        done = self._bash("set -euo pipefail\n" + block.body)
        if done.returncode:
            raise PageError(f"{self._where(block)}: exit code {done.returncode}\n{done.stdout[-2000:]}")

    def _bash(self, script: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **PYTHON_ENVIRONMENT,
            "PATH": f"{self.folder / '.tools'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.folder),
        }
        return subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip

    def _check(self, block: Block, shown: str, printed: str) -> None:
        if self.compare and not matches(shown, printed):
            raise PageError(f"{self._where(block)}: the page shows\n{shown}\nbut the block prints\n{printed}")


def same_png(shown: Path, drawn: Path) -> bool:
    """Return whether two PNG images are about equal."""
    from matplotlib.image import imread

    a, b = imread(shown), imread(drawn)
    return bool(a.shape == b.shape and abs(a - b).mean() <= PICTURE_DIFFERENCE)


def same_svg(shown: Path, drawn: Path) -> bool:
    """Return whether two SVG images have the same elements and texts, and about the same numbers."""
    return same_text(shown.read_text(encoding="utf-8"), drawn.read_text(encoding="utf-8"))


def same_text(shown: str, found: str) -> bool:
    """Return whether two texts are equal but for small differences of numbers, and for the pixels inside them."""
    a, b = EMBEDDED.sub("", shown), EMBEDDED.sub("", found)
    if NUMBER.split(a) != NUMBER.split(b):
        return False
    pairs = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    return all(x == y or abs(float(x) - float(y)) <= NUMBER_DIFFERENCE for x, y in pairs)


def write(page: Path) -> int:
    """Run a page and write the outputs that differ into it; return how many were written."""
    text, changed = page.read_text(encoding="utf-8"), 0
    with tempfile.TemporaryDirectory() as folder:
        run = Run(page, Path(folder), compare=False)
        run.all()
        for name in PICTURE.findall(text):
            shutil.copy(Path(folder) / name, page.parent)
    for block, printed in reversed(run.printed):
        body = _strip(printed) + "\n"
        if not matches(block.body, body):
            text, changed = text[: block.start] + body + text[block.end :], changed + 1
    page.write_text(text, encoding="utf-8")
    return changed


def main() -> None:
    if sys.argv[1:2] == ["--write"]:
        for name in sys.argv[2:]:
            print(f"{name}: {write(Path(name).resolve())} outputs written")
        return
    total: Counter[str] = Counter()
    for page in PAGES:
        found = blocks(page.read_text(encoding="utf-8"))
        count = Counter(b.language if b.runs else "not run" for b in found if b.language in RUN)
        total.update(count)
        if count:
            print(f"{page.relative_to(ROOT)}: " + ", ".join(f"{n} {kind}" for kind, n in sorted(count.items())))
    print("all pages: " + ", ".join(f"{n} {kind}" for kind, n in sorted(total.items())))


if __name__ == "__main__":
    main()
