"""Prints the requirements of optional-dependency groups of pyproject.toml, one per line (for the Makefile).

    python tools/extra.py test
    python tools/extra.py dependencies hub     "dependencies": what every user installs

`pip install ".[test]"` would install these, too, but also build the project again.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def requirements(group: str, text: str) -> list[str]:
    """Return the requirements of a group, read without tomllib, which Python 3.10 lacks."""
    heading = "project" if group == "dependencies" else "project.optional-dependencies"
    section = text.partition(f"[{heading}]\n")[2].partition("\n[")[0]
    found = re.search(rf"^{re.escape(group)}\s*=\s*\[(.*?)\]", section, re.DOTALL | re.MULTILINE)
    if found is None:
        raise SystemExit(f"pyproject.toml has no optional-dependency group {group!r}")
    return re.findall(r'"([^"]+)"', found[1])


if __name__ == "__main__":
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(requirement for group in sys.argv[1:] for requirement in requirements(group, text)))
