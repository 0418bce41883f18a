"""Fails if a wheel does not run where its tag says: wrong CPU, libc too new, libraries missing, symbols exported.

    python tools/check_wheels.py dist/*.whl

Reads the module with readelf (binutils), so wheels for other CPUs can be checked too. Prints one line per wheel.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIMIT_BYTES = 12 * 10**6
EXPORTS = {"PyInit__core", "PyInit__core_in_main"}
MACHINES = {"x86_64": "X86-64", "aarch64": "AArch64"}
# manylinux allows a few more, such as libstdc++. This project links its C++ runtime statically.
LIBRARIES = {
    "manylinux": r"lib(c|m|dl|rt|pthread)\.so\.\d+|ld-linux-(x86-64|aarch64)\.so\.\d",
    "musllinux": r"libc\.so|libc\.musl-\w+\.so\.1",
}
TAG = re.compile(r"(manylinux|musllinux)_(\d+)_(\d+)_(\w+)")


def readelf(option: str, module: Path) -> str:
    command = ["readelf", "-W", option, str(module)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={"LC_ALL": "C"}).stdout


def dynamic_symbols(module: Path) -> tuple[set[str], set[str]]:
    """Return the names that a module defines for others and those that it needs, such as memcpy@GLIBC_2.14."""
    defined, needed = set(), set()
    for line in readelf("--dyn-syms", module).splitlines():
        fields = line.split()
        if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
            continue
        (needed if fields[6] == "UND" else defined).add(fields[7])
    return defined, needed


def newest_glibc(module: Path) -> tuple[int, int]:
    """Return the newest version of glibc whose symbols a module needs; (0, 0) if it needs none."""
    found = re.findall(r"Name: GLIBC_(\d+)\.(\d+)", readelf("--version-info", module))
    return max(((int(major), int(minor)) for major, minor in found), default=(0, 0))


def faults_of_module(module: Path, tag: str) -> list[str]:
    match = TAG.fullmatch(tag)
    if match is None:
        return [f"{tag}: neither a manylinux nor a musllinux tag with a version"]
    kind, most, cpu = match[1], (int(match[2]), int(match[3])), match[4]
    found = []
    header = re.search(r"Machine:\s+(.*)", readelf("-h", module))
    if header is None or MACHINES[cpu] not in header[1]:
        found.append(f"compiled for {header[1] if header else 'nothing'}, and the tag says {cpu}")
    dynamic = readelf("-d", module)
    libraries = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    found += [f"needs the library {name}" for name in libraries if not re.fullmatch(LIBRARIES[kind], name)]
    if re.search(r"\((RPATH|RUNPATH)\)", dynamic):
        found.append("has a library search path")
    newest = newest_glibc(module)
    if newest > (most if kind == "manylinux" else (0, 0)):
        found.append(f"needs GLIBC_{newest[0]}.{newest[1]}, and the tag says {tag}")
    defined, needed = dynamic_symbols(module)
    if defined != EXPORTS:
        found.append(f"has unexpected or missing exports: {sorted(defined ^ EXPORTS)[:5]}")
    runtime = sorted(name for name in needed if name.startswith(("_ZSt", "_ZNSt", "__cxa_throw", "_Unwind", "__gxx")))
    if runtime:
        found.append(f"takes its C++ runtime from elsewhere: {runtime[:5]}")
    return found


def check(wheel: Path) -> tuple[list[str], str]:
    """Return what is wrong with a wheel, and the newest version of glibc that it needs."""
    _, _, python, abi, platforms = wheel.stem.split("-")
    tags = [tag for tag in platforms.split(".") if TAG.fullmatch(tag)]
    if python != abi or not re.fullmatch(r"cp3\d+", python) or not tags:
        return [f"tags {python}-{abi}-{platforms}"], "?"
    found = []
    if wheel.stat().st_size > LIMIT_BYTES:
        found.append(f"{wheel.stat().st_size} bytes, more than {LIMIT_BYTES}")
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        modules = [name for name in archive.namelist() if name.endswith(".so")]
        if len(modules) != 1 or not modules[0].startswith("fastattn/_core."):
            return [*found, f"has the modules {modules} instead of fastattn._core alone"], "?"
        stem = modules[0].removeprefix("fastattn/_core.").removesuffix("so")
        if stem and not stem.startswith(f"cpython-{python[2:]}-"):
            found.append(f"has {modules[0]}, which {python} does not load")
        module = Path(archive.extract(modules[0], folder))
        for tag in tags:
            found += faults_of_module(module, tag)
        major, minor = newest_glibc(module)
    return found, f"GLIBC_{major}.{minor}" if major else "no glibc"


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    failures = 0
    for wheel in map(Path, arguments):
        found, glibc = check(wheel)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {glibc}", *found, sep="\n    ")
        failures += bool(found)
    print(f"{len(arguments)} wheels, {failures} with faults")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
