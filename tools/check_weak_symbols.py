"""Fails if a kernel object for one SIMD target defines a symbol that the linker may merge with another target's.

    python tools/check_weak_symbols.py build/dev

Each target compiles its own copy of a weak function outside its namespace, such as an inline function of the standard
library. The linker keeps only one of the copies, so an AVX2 machine may run AVX-512 code.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

OBJECT_FOLDER = re.compile(r"fastattn_kernels_(\w+)\.dir")
MAPPING_SYMBOL = re.compile(r"\$[dx](\.\w+)?")  # local symbols of Arm assemblers; another CPU's nm prints N
INSTRUMENTED = ("asan", "tsan", "coverage")  # these builds are not installed, and their objects have other symbols
LOCAL_KINDS = "abdrtn?-"  # lower case in nm means local; u, v and w, which are unique or weak, are not


def foreign_symbols(path: Path, target: str) -> list[str]:
    """Return symbols that `path` exports to other objects, outside namespace fastattn::<target>."""
    listing = subprocess.run(["nm", "-C", "--defined-only", str(path)], check=True, capture_output=True, text=True)
    found = []
    for line in listing.stdout.splitlines():
        _, kind, name = line.split(maxsplit=2)
        if kind in LOCAL_KINDS or MAPPING_SYMBOL.fullmatch(name):
            continue
        if f"fastattn::{target}::" not in name:
            found.append(f"{kind} {name}")
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    root = Path(arguments[0])
    objects = sorted(path for path in root.rglob("*.o") if path.relative_to(root).parts[0] not in INSTRUMENTED)
    kernels = [(path, match[1]) for path in objects if (match := OBJECT_FOLDER.search(str(path)))]
    if not kernels:
        print(f"{arguments[0]}: no kernel objects found")
        return 2
    failures = 0
    for path, target in kernels:
        for symbol in foreign_symbols(path, target):
            print(f"{path}: {symbol} is outside fastattn::{target}")
            failures += 1
    print(f"{len(kernels)} objects, {failures} symbols outside their target's namespace")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
