"""Checks that no source file has more than 500 lines and no Python function more than 60.

python tools/check_length.py [ROOT]
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 500
FUNCTION_LINES = 60
FOLDERS = ("src", "csrc", "tests", "benchmarks", "tools", "examples", "cmake")
SUFFIXES = (".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".cmake")
GENERATED = ("src/fastattn/_core.pyi",)


def sources(root: Path) -> Iterator[Path]:
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SUFFIXES and path.relative_to(root).as_posix() not in GENERATED:
                yield path


def long_functions(path: Path, text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{path}:{node.lineno}: function {node.name} has {lines} lines; at most {FUNCTION_LINES}"


def check(root: Path) -> list[str]:
    """Return all violations in a checkout."""
    found = []
    for path in sources(root):
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > FILE_LINES:
            found.append(f"{path}: {lines} lines; at most {FILE_LINES}: split it by concern")
        if path.suffix == ".py":
            found.extend(long_functions(path, text))
    return found


def main(argv: list[str]) -> int:
    found = check(Path(argv[0]) if argv else Path(__file__).resolve().parent.parent)
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
