"""tools/check_wheels.py finds what is wrong with a wheel. The wheels of these tests have a tiny module of C++."""

from __future__ import annotations

import platform
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.packaging.test_tools import tool

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("c++") or shutil.which("g++")
CPU = platform.machine()
GOOD = """
#define PUBLIC extern "C" __attribute__((visibility("default")))
PUBLIC void* PyInit__core() { return 0; }
PUBLIC void* PyInit__core_in_main() { return 0; }
"""
# The newest symbol is memcpy@GLIBC_2.14 or, on aarch64, memcpy@GLIBC_2.17.
MEMCPY = "#include <string.h>\nvoid copy(char* a, char* b, size_t n) { memcpy(a, b, n); memcpy(b + 1, a, n); }\n"

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="compiles a module"),
    pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf reads the module"),
    pytest.mark.skipif(CPU not in ("x86_64", "aarch64"), reason="wheels exist for two kinds of CPU"),
]


def wheel(
    folder: Path, source: str = GOOD, *options: str, tag: str = "", name: str = "_core.so", size: int = 0
) -> Path:
    """Write a wheel whose only module has this source."""
    (folder / "module.cpp").write_text(source, encoding="utf-8")
    module = folder / "module.so"
    flags = ["-shared", "-fPIC", "-O1", "-fvisibility=hidden", "-nostdlib", *options]
    subprocess.run([str(COMPILER), *flags, str(folder / "module.cpp"), "-o", str(module), "-lc"], check=True)
    path = folder / f"fastattn-0.1.0-cp311-cp311-{tag or f'manylinux_2_17_{CPU}'}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(module, f"fastattn/{name}")
        archive.writestr("fastattn/weights", bytes(size))
    return path


def test_a_good_wheel_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = tool("check_wheels")
    good = wheel(tmp_path, GOOD + MEMCPY, name=f"_core.cpython-311-{CPU}-linux-gnu.so")
    assert check.main([str(good)]) == 0
    assert "1 wheels, 0 with faults" in capsys.readouterr().out


OTHER_CPU = {"x86_64": "aarch64", "aarch64": "x86_64"}.get(CPU, "")


@pytest.mark.parametrize(
    ("source", "options", "tag", "name", "expected"),
    [
        (MEMCPY.replace("void copy", "PUBLIC void copy"), [], "manylinux_2_5_", "_core.so", "needs GLIBC_2.1"),
        (MEMCPY.replace("void copy", "PUBLIC void copy"), [], "musllinux_1_2_", "_core.so", "needs GLIBC_2.1"),
        ("", [], "linux_", "_core.so", "tags cp311-cp311-linux_"),
        ("PUBLIC int another() { return 1; }", [], "", "_core.so", "exports: ['another']"),
        (
            "#include <vector>\nPUBLIC int* f() { throw 1; }",
            ["-Wl,--no-as-needed", "-lstdc++"],
            "",
            "_core.so",
            "the library libstdc++",
        ),
        ("PUBLIC int* f() { throw 1; }", [], "", "_core.so", "takes its C++ runtime from elsewhere: ['__cxa_throw"),
        ("", ["-Wl,-rpath,/opt"], "", "_core.so", "a library search path"),
        ("", [], "", "_core.cpython-312-x86_64-linux-gnu.so", "which cp311 does not load"),
        ("", [], "", "_cuda.so", "instead of fastattn._core alone"),
    ],
)
def test_faults_are_found(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    options: list[str],
    tag: str,
    name: str,
    expected: str,
) -> None:
    check = tool("check_wheels")
    bad = wheel(tmp_path, GOOD + source, *options, tag=tag and tag + CPU, name=name)
    assert check.main([str(bad)]) == 1
    assert expected in capsys.readouterr().out


def test_a_wheel_for_another_cpu_is_found(tmp_path: Path) -> None:
    check = tool("check_wheels")
    faults, _ = check.check(wheel(tmp_path, tag=f"manylinux_2_17_{OTHER_CPU}"))
    assert any(f"and the tag says {OTHER_CPU}" in fault for fault in faults)


def test_a_large_wheel_is_found(tmp_path: Path) -> None:
    check = tool("check_wheels")
    faults, _ = check.check(wheel(tmp_path, size=check.LIMIT_BYTES))
    assert faults == [f"{(tmp_path / f'fastattn-0.1.0-cp311-cp311-manylinux_2_17_{CPU}.whl').stat().st_size} bytes, "
                      f"more than {check.LIMIT_BYTES}"]  # fmt: skip


def test_the_wheels_that_were_built_pass() -> None:
    """The wheels of `make wheels` pass, if it ran here."""
    wheels = sorted((ROOT / "dist").glob("*.whl"))
    if not wheels:
        pytest.skip("`make wheels` has not run")
    assert tool("check_wheels").main([str(path) for path in wheels]) == 0
