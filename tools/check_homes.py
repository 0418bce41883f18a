"""Checks that tables and mechanisms that must exist once are not duplicated in other files.

python tools/check_homes.py [ROOT]

`HOMES` lists each concept, a pattern that finds it, and the files in which it may occur (its homes).
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Home:
    """A concept and its home. within: the files that are searched; homes: the files that may match."""

    concept: str
    within: tuple[str, ...]
    pattern: re.Pattern[str]
    homes: tuple[str, ...]


_FORMAT = '"(?:float32|bfloat16|int8|int4)"'
_PYTHON, _CPP = ("src/fastattn/*.py",), ("csrc/*.h", "csrc/*.cpp", "csrc/*.cu")
HOMES = (
    Home(
        "a list of number formats",
        _PYTHON,
        re.compile(rf"[(\[{{]\s*{_FORMAT},\s*{_FORMAT}"),
        # The last two are about formats of other libraries, and of sentence vectors.
        ("src/fastattn/formats.py", "src/fastattn/bench/libraries/*", "src/fastattn/tasks/search/*"),
    ),
    Home(
        "the names of number formats",
        _CPP,
        re.compile(r'\{"(?:bfloat16|int8|int4)", Format::'),
        ("csrc/kernels/formats.h",),
    ),
    Home(
        "a kind of op",
        _PYTHON,
        re.compile(r"\bOpKind\("),
        ("src/fastattn/graph/kinds/*", "src/fastattn/graph/tensor.py", "src/fastattn/graph/op_kind.py"),
    ),
    Home("a kind of op", _CPP, re.compile(r"\bOpKind \w+::kKind\{"), ("csrc/program/kinds/*",)),
    Home(
        "fork safety (use ForkLocal)",
        _CPP,
        re.compile(r"\b(?:fork_generation|pthread_atfork)\b"),
        ("csrc/runtime/fork_local.*", "csrc/core/platform.cpp"),
    ),
    Home(
        "what differs between operating systems (use core/platform.h)",
        _CPP,
        re.compile(r"#include <(?:sys/\w+|unistd|sched|pthread|signal|dlfcn|windows)\.h>"),
        # python_calls.cpp works around what pthread_exit of glibc does to C++.
        (
            "csrc/core/platform.cpp",
            "csrc/runtime/arm_features.cpp",
            "csrc/bindings/python_calls.cpp",
            "csrc/cuda/*",
            "csrc/native_tests/*",
        ),
    ),
    Home("the tasks of a head", _PYTHON, re.compile(r"\bTaskEntry\("), ("src/fastattn/models/tasks.py",)),
    Home("the sources of weights", _PYTHON, re.compile(r"\bos\.pread\w*\("), ("src/fastattn/files.py",)),
)


def check(root: Path) -> Iterator[str]:
    """Yield a message for every match outside the homes."""
    for path in sorted([*root.glob("src/**/*"), *root.glob("csrc/**/*")]):
        name = path.relative_to(root).as_posix()
        for home in HOMES:
            if not _matches(name, home.within) or _matches(name, home.homes):
                continue
            text = path.read_text(encoding="utf-8")
            for found in home.pattern.finditer(text):
                line = text.count("\n", 0, found.start()) + 1
                yield f"{name}:{line}: {home.concept}: put this in {', '.join(home.homes)}"


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def main(argv: list[str]) -> int:
    found = list(check(Path(argv[0]) if argv else Path(__file__).resolve().parent.parent))
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
