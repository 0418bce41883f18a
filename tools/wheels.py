"""Builds wheels for every supported Python, libc and CPU on one Linux machine, with clang from PyPI's `ziglang`.

    python tools/wheels.py                                  # all of them, into dist/
    python tools/wheels.py --python 3.12 --platform manylinux-x86_64 --dist /tmp/wheels

Each platform compiles the engine once, and each CPU the kernels; the modules of all Pythons link the same objects. The
headers of a Python come from --headers 3.12=FOLDER, from an installed python3.12 (from PATH or pyenv), or from Debian's
package libpython3.12-dev. They may be those of another CPU or libc (docs/releasing.md).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "wheels"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
EPOCH = "315532800"  # 1980, the earliest time that a zip can store; two builds have equal times
DEBIAN_SUITES = ("trixie", "sid")  # the later ones have the newest Pythons
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True, slots=True)
class Platform:
    name: str
    zig_target: str
    tags: str  # of the wheel, separated by dots
    soabi: str  # the end of the module's file name


PLATFORMS = {
    platform.name: platform
    for cpu in ("x86_64", "aarch64")
    for platform in (
        Platform(
            f"manylinux-{cpu}",
            f"{cpu}-linux-gnu.2.17",
            f"manylinux2014_{cpu}.manylinux_2_17_{cpu}",
            f"{cpu}-linux-gnu",
        ),
        Platform(f"musllinux-{cpu}", f"{cpu}-linux-musl", f"musllinux_1_2_{cpu}", f"{cpu}-linux-musl"),
    )
}


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it prints; stop with its output if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{' '.join(words)}: failed with code {done.returncode}")
    return done.stdout


def cp(version: str) -> str:
    """Return the tag of a Python, such as cp312."""
    return "cp" + version.replace(".", "")


# --- headers ---------------------------------------------------------------------------------------------------------


def header_version(folder: Path) -> str | None:
    """Return the version, such as 3.12, of the Python whose headers are in a folder."""
    patchlevel = folder / "patchlevel.h"
    if not patchlevel.is_file() or not (folder / "pyconfig.h").is_file():
        return None
    numbers = dict(re.findall(r"#define PY_(MAJOR|MINOR)_VERSION\s+(\d+)", patchlevel.read_text(encoding="utf-8")))
    return f"{numbers['MAJOR']}.{numbers['MINOR']}"


def installed_headers(version: str) -> Path | None:
    """Return the headers of an installed Python."""
    code = "import sysconfig as s; print(s.get_path('include')); print(s.get_config_h_filename())"
    found = [shutil.which(f"python{version}"), *(Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python")]
    for python in filter(None, found):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if done.returncode != 0:  # pyenv's shim of a version that is not active
            continue
        include, pyconfig = map(Path, done.stdout.split())
        if (include / "Python.h").is_file():
            return copied_headers(version, include, pyconfig)
    return None


def debian_headers(version: str) -> Path | None:
    """Return the headers of Debian's package, from a later suite than this machine's if need be."""
    if shutil.which("apt-get") is None:
        return None
    folder = BUILD / "apt"
    (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
    lines = [f"deb [signed-by={DEBIAN_KEYRING}] http://deb.debian.org/debian {suite} main" for suite in DEBIAN_SUITES]
    (folder / "sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"Dir::Etc::sourcelist": "sources.list", "Dir::State::lists": "lists"}
    config = [f'{key} "{folder / name}";' for key, name in settings.items()]
    config += ['Dir::Etc::sourceparts "-";', 'APT::Sandbox::User "root";', f'Dir::Cache "{folder}";']
    (folder / "apt.conf").write_text("\n".join(config) + "\n", encoding="utf-8")
    env = {**os.environ, "APT_CONFIG": str(folder / "apt.conf")}
    run("apt-get", "update", env=env)
    package = f"libpython{version}-dev"
    if subprocess.run(["apt-get", "download", package], cwd=folder, env=env, capture_output=True).returncode != 0:
        return None
    (deb,) = folder.glob(f"{package}_*.deb")
    run("dpkg", "-x", deb, folder / package)
    (pyconfig,) = (folder / package).glob(f"usr/include/*-linux-gnu/python{version}/pyconfig.h")
    return copied_headers(version, folder / package / f"usr/include/python{version}", pyconfig)


def copied_headers(version: str, include: Path, pyconfig: Path) -> Path:
    """Return a folder with the headers and with the pyconfig.h that Debian has elsewhere."""
    folder = BUILD / "headers" / version
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(include, folder, ignore=shutil.ignore_patterns("pyconfig*.h"))
    shutil.copy(pyconfig, folder / "pyconfig.h")
    return folder


def headers(version: str, given: dict[str, str]) -> Path:
    folder: Path | None = Path(given[version]).resolve() if version in given else BUILD / "headers" / version
    if folder is None or header_version(folder) is None:
        folder = None if version in given else installed_headers(version) or debian_headers(version)
    if folder is None or header_version(folder) != version:
        sys.exit(f"no headers of Python {version} found: install that Python, pass --headers {version}=FOLDER, or "
                 f"leave that version out of --python")  # fmt: skip
    if re.search(r"^\s*#\s*define\s+Py_GIL_DISABLED\s+1", (folder / "pyconfig.h").read_text("utf-8"), re.MULTILINE):
        sys.exit(f"{folder}: headers of a Python without the GIL, for which fastattn has no wheel")
    return folder


# --- building --------------------------------------------------------------------------------------------------------


def pure_wheel() -> Path:
    """Build a wheel without a module: all the Python files and metadata. Return the folder with its content."""
    folder = BUILD / "pure"
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "-C", "wheel.cmake=false", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "wheel", "unpack", "--dest", folder, wheel)
    (content,) = (path for path in folder.iterdir() if path.is_dir())
    for module in content.glob("fastattn/*.so"):  # modules that a developer built into src/
        module.unlink()
    return content


def build_modules(platform: Platform, folders: dict[str, Path], version: str, kernels: Path | None) -> Path:
    """Compile one module per Python. Return the build folder, which has them as cp312/_core.so.

    `kernels` is the build folder of the same CPU and another libc, whose kernels are linked. They do not use a libc,
    and the compiler makes the same objects for both.
    """
    import pybind11
    import ziglang

    build = BUILD / platform.name
    settings = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake/zig.cmake",
        "CMAKE_BUILD_TYPE": "Release",
        "FASTATTN_ZIG": Path(ziglang.__file__).parent / "zig",
        "FASTATTN_ZIG_TARGET": platform.zig_target,
        "FASTATTN_CUDA": "OFF",
        "FASTATTN_KERNELS_FROM": kernels or "",
        "FASTATTN_WHEEL_HEADERS": ";".join(f"{cp(python)}={folder}" for python, folder in folders.items()),
        "SKBUILD_PROJECT_VERSION": version,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    run("cmake", "-G", "Ninja", "-S", ROOT, "-B", build, *(f"-D{key}={value}" for key, value in settings.items()))
    done = subprocess.run(["cmake", "--build", str(build)])
    if done.returncode != 0:
        sys.exit(f"{build}: the compiler failed")
    print(run(sys.executable, ROOT / "tools/check_weak_symbols.py", kernels or build), end="")
    return build


def suffix(python: str, platform: Platform) -> str:
    # Some builds of CPython 3.10 for musl expect the suffix -linux-gnu, others -linux-musl. All of them load _core.so.
    if python == "3.10" and platform.soabi.endswith("musl"):
        return ".so"
    return f".cpython-{python.replace('.', '')}-{platform.soabi}.so"


def bill_of_materials(platform: Platform, version: str) -> dict[str, Any]:
    """Return what the module contains besides fastattn's own code, in the format CycloneDX (PEP 770)."""
    parts = {
        "pybind11": "headers",
        "ziglang": "libc++, libc++abi, libunwind and compiler-rt of LLVM, linked statically from this package",
    }
    found = {package: importlib.metadata.version(package) for package in parts}
    module = {"type": "library", "name": "fastattn", "version": version, "description": f"module for {platform.name}"}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": module},
        "components": [
            {"type": "library", "name": package, "version": found[package], "description": text,
             "purl": f"pkg:pypi/{package}@{found[package]}"}
            for package, text in parts.items()
        ],
    }  # fmt: skip


def pack(content: Path, module: Path, python: str, platform: Platform, dist: Path) -> None:
    """Write the wheel of one Python: the content of the pure one, the module and its tags."""
    tree = BUILD / "tree" / content.name
    shutil.rmtree(tree.parent, ignore_errors=True)
    shutil.copytree(content, tree)
    name = tree / f"fastattn/_core{suffix(python, platform)}"
    shutil.copyfile(module, name)
    (file,) = tree.glob("*.dist-info/WHEEL")
    sbom = file.parent / "sboms/fastattn.cdx.json"
    sbom.parent.mkdir()
    version = content.name.partition("-")[2]
    sbom.write_text(json.dumps(bill_of_materials(platform, version), indent=2) + "\n", encoding="utf-8")
    kept = [line for line in file.read_text("utf-8").splitlines() if line and not line.startswith(("Tag", "Root-Is"))]
    tags = [f"Tag: {cp(python)}-{cp(python)}-{tag}" for tag in platform.tags.split(".")]
    file.write_text("\n".join([*kept, "Root-Is-Purelib: false", *tags]) + "\n", encoding="utf-8")
    for path in tree.rglob("*"):  # otherwise the wheel would depend on the umask
        path.chmod(0o755 if path.is_dir() or path == name else 0o644)
    env = {"SOURCE_DATE_EPOCH": EPOCH, **os.environ}
    run(sys.executable, "-m", "wheel", "pack", "--dest-dir", dist, tree, env=env)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", choices=PYTHONS, default=PYTHONS, metavar="3.X")
    parser.add_argument("--platform", nargs="+", choices=PLATFORMS, default=list(PLATFORMS), metavar="NAME")
    parser.add_argument("--headers", action="append", default=[], metavar="3.X=FOLDER")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    args = parser.parse_args()

    given = dict(entry.split("=", 1) for entry in args.headers)
    folders = {python: headers(python, given) for python in args.python}
    content = pure_wheel()
    version = content.name.partition("-")[2]
    args.dist.mkdir(parents=True, exist_ok=True)
    kernels: dict[str, Path] = {}  # the first build folder of each CPU
    for name in args.platform:
        start = time.monotonic()
        cpu = name.partition("-")[2]
        build = build_modules(PLATFORMS[name], folders, version, kernels.get(cpu))
        kernels.setdefault(cpu, build)
        for python in args.python:
            pack(content, build / cp(python) / "_core.so", python, PLATFORMS[name], args.dist)
        print(f"{name}: {len(args.python)} wheels in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
