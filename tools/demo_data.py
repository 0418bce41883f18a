"""Texts of the two demo models: LitBank novels as unwrapped paragraphs, SST-2 as labeled sentences.

Both are read from a data folder (by default ``../shared/data``) that contains

* ``litbank/litbank-original-100-novels.tar.gz``: the ``original/`` folder of github.com/dbamman/litbank,
* ``sst2/{train,dev,test}.tsv``: one ``sentence<TAB>label`` per line, label 0 or 1.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

LITBANK_ARCHIVE = "litbank/litbank-original-100-novels.tar.gz"

# Whole novels that are never used for training. Unless noted, their authors have no other novel in the training set.
HELD_OUT_NOVELS = (
    "33_the_scarlet_letter",  # Hawthorne (The House of the Seven Gables is in training)
    "60_the_scarlet_pimpernel",  # Orczy
    "113_the_secret_garden",  # Burnett
    "271_black_beauty",  # Sewell
    "550_silas_marner",  # George Eliot (Middlemarch is in training)
)

_PLAIN = str.maketrans(
    {
        "\u201c": '"',
        "\u201d": '"',
        "\u2018": "'",
        "\u2019": "'",
        "\u2013": "-",
        "\u2014": "--",
        "\u2026": "...",
        "\u00a0": " ",
        "\ufeff": "",
        "\u200b": "",
        "_": "",  # italics in plain-text e-books
        "\r": "",
    }
)
_BOILERPLATE_START = re.compile(r"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*\n", re.IGNORECASE)
_BOILERPLATE_END = re.compile(r"\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG", re.IGNORECASE)
_BOILERPLATE_LINE = re.compile(
    r"^.*(?:project gutenberg|\[illustration|\[footnote|e-?text prepared|proofread|transcriber's note).*$",
    re.IGNORECASE | re.MULTILINE,
)


def strip_boilerplate(text: str) -> str:
    """Remove the Project Gutenberg header, footer and stray production notes, if present."""
    if start := _BOILERPLATE_START.search(text):
        text = text[start.end() :]
    if end := _BOILERPLATE_END.search(text):
        text = text[: end.start()]
    return _BOILERPLATE_LINE.sub("", text)


def reflow(text: str) -> str:
    """Join hard-wrapped lines: one paragraph per line, plain quotes and dashes, single spaces."""
    text = strip_boilerplate(text.translate(_PLAIN))
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return "\n".join(p for p in paragraphs if any(c.isalnum() for c in p)) + "\n"


def load_novels(data: Path) -> dict[str, str]:
    """Return every LitBank novel as unwrapped text, by file stem, in a fixed order."""
    novels: dict[str, str] = {}
    with tarfile.open(data / LITBANK_ARCHIVE) as archive:
        for member in archive.getmembers():
            if member.isfile() and member.name.endswith(".txt") and not Path(member.name).name.startswith("."):
                handle = archive.extractfile(member)
                assert handle is not None
                novels[Path(member.name).stem] = reflow(handle.read().decode("utf-8", errors="replace"))
    return dict(sorted(novels.items()))


def split_novels(novels: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the training novels and the held-out novels."""
    missing = set(HELD_OUT_NOVELS) - set(novels)
    if missing:
        raise ValueError(f"held-out novels not found: {sorted(missing)}")
    train = {name: text for name, text in novels.items() if name not in HELD_OUT_NOVELS}
    return train, {name: novels[name] for name in HELD_OUT_NOVELS}


def load_sst2(data: Path, split: str) -> tuple[list[str], list[int]]:
    """Return the sentences and labels (0 negative, 1 positive) of one SST-2 split: train, dev or test."""
    lines = (data / "sst2" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.rsplit("\t", 1) for line in lines if line.strip()]
    return [text.strip() for text, _ in rows], [int(label) for _, label in rows]
