"""Checks that no source file has more than 500 lines and no Python or C++ function more than 60.

C++ must be formatted by clang-format: the closing brace of a function has the same indentation as its first line.

python tools/check_length.py [ROOT]
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LINES = 500
FUNCTION_LINES = 60
FOLDERS = ("src", "csrc", "tests", "benchmarks", "tools", "examples", "cmake")
SUFFIXES = (".py", ".pyi", ".h", ".cpp", ".cu", ".cuh", ".cmake")
CPP_SUFFIXES = (".h", ".cpp", ".cu", ".cuh")
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


# Matches the line before the opening brace of a block that is not a function.
NO_FUNCTION = re.compile(r"(if|else|for|while|switch|do|try|namespace|struct|class|enum|union|extern)\b|[^(]*[=\[]|#|}")
CPP_NOISE = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)\'|//[^\n]*')


def long_cpp_functions(path: Path, text: str) -> Iterator[str]:
    lines = CPP_NOISE.sub("", text).split("\n")
    opened: list[int] = []  # line numbers of the open braces
    for number, line in enumerate(lines):
        for brace in re.findall("[{}]", line):
            if brace == "{":
                opened.append(number)
                continue
            begin = opened.pop() if opened else number
            if number - begin <= FUNCTION_LINES // 2 or "}" not in line[: indentation(line) + 1]:
                continue
            while begin > 0 and indentation(lines[begin]) != indentation(line):
                begin -= 1  # go to the first line of a declaration that spans several
            name = re.search(r"([\w:~]+)\(", lines[begin])
            size = number - begin + 1
            if name and size > FUNCTION_LINES and not NO_FUNCTION.match(lines[begin].strip()):
                yield f"{path}:{begin + 1}: function {name[1]} has {size} lines; at most {FUNCTION_LINES}"


def indentation(line: str) -> int:
    """Return the number of leading spaces; -1 for an empty line."""
    return len(line) - len(line.lstrip()) if line.strip() else -1


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
        elif path.suffix in CPP_SUFFIXES:
            found.extend(long_cpp_functions(path, text))
    return found


def main(argv: list[str]) -> int:
    found = check(Path(argv[0]) if argv else Path(__file__).resolve().parent.parent)
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
