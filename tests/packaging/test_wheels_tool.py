"""tools/wheels.py chooses headers of the right Python and gives a wheel its tags. Nothing is compiled here."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.packaging.test_tools import tool


def headers(folder: Path, version: str, pyconfig: str = "") -> Path:
    major, minor = version.split(".")
    folder.mkdir(parents=True)
    (folder / "Python.h").write_text("")
    (folder / "pyconfig.h").write_text(pyconfig)
    (folder / "patchlevel.h").write_text(f"#define PY_MAJOR_VERSION {major}\n#define PY_MINOR_VERSION     {minor}\n")
    return folder


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = tool("wheels")
    monkeypatch.setattr(module, "BUILD", tmp_path / "build")
    return module


def test_given_headers_are_used(wheels: ModuleType, tmp_path: Path) -> None:
    folder = headers(tmp_path / "given", "3.12", "/* #undef Py_GIL_DISABLED */\n")
    assert wheels.headers("3.12", {"3.12": str(folder)}) == folder


def test_headers_of_this_python_are_found(wheels: ModuleType) -> None:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if wheels.installed_headers(version) is None:
        pytest.skip("this Python has no headers or is not on PATH")
    folder = wheels.headers(version, {})
    assert folder == wheels.BUILD / "headers" / version
    assert wheels.header_version(folder) == version
    assert "SIZEOF_VOID_P 8" in (folder / "pyconfig.h").read_text(encoding="utf-8")


def test_wrong_headers_are_refused(wheels: ModuleType, tmp_path: Path) -> None:
    other = headers(tmp_path / "other", "3.13")
    with pytest.raises(SystemExit, match=r"no headers of Python 3\.12"):
        wheels.headers("3.12", {"3.12": str(other)})
    with pytest.raises(SystemExit, match=r"no headers of Python 3\.12"):
        wheels.headers("3.12", {"3.12": str(tmp_path)})
    free = headers(tmp_path / "free", "3.14", "#define Py_GIL_DISABLED 1\n")
    with pytest.raises(SystemExit, match="without the GIL"):
        wheels.headers("3.14", {"3.14": str(free)})


@pytest.mark.parametrize(
    ("python", "platform", "module", "tags"),
    [
        ("3.10", "musllinux-x86_64", "_core.so", ["musllinux_1_2_x86_64"]),
        ("3.12", "musllinux-aarch64", "_core.cpython-312-aarch64-linux-musl.so", ["musllinux_1_2_aarch64"]),
        (
            "3.10",
            "manylinux-x86_64",
            "_core.cpython-310-x86_64-linux-gnu.so",
            ["manylinux2014_x86_64", "manylinux_2_17_x86_64"],
        ),
    ],
)
def test_a_wheel_has_the_module_and_the_tags(
    wheels: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    python: str,
    platform: str,
    module: str,
    tags: list[str],
) -> None:
    pytest.importorskip("wheel", reason="`wheel pack` writes the wheel")
    monkeypatch.setattr(wheels.importlib.metadata, "version", {"pybind11": "3.1", "ziglang": "0.17"}.__getitem__)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    content = tmp_path / "fastattn-0.1.0"
    (content / "fastattn").mkdir(parents=True)
    (content / "fastattn/__init__.py").write_text("")
    (content / "fastattn/__init__.py").chmod(0o600)
    info = content / "fastattn-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fastattn\nVersion: 0.1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n\n")
    (tmp_path / "module").write_bytes(b"code")
    dist = tmp_path / "dist"
    dist.mkdir()
    wheels.pack(content, tmp_path / "module", python, wheels.PLATFORMS[platform], dist)
    (wheel,) = dist.iterdir()
    cp = "cp" + python.replace(".", "")
    assert wheel.name == f"fastattn-0.1.0-{cp}-{cp}-{'.'.join(tags)}.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"fastattn/{module}") == b"code"
        lines = archive.read("fastattn-0.1.0.dist-info/WHEEL").decode().split("\n")
        sbom = json.loads(archive.read("fastattn-0.1.0.dist-info/sboms/fastattn.cdx.json"))
        # What another machine, or a build at another time, would store otherwise.
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        modes = {entry.filename: entry.external_attr >> 16 & 0o777 for entry in archive.infolist()}
        assert f"fastattn/{module}," in archive.read("fastattn-0.1.0.dist-info/RECORD").decode()
    module_mode = modes.pop(f"fastattn/{module}")
    assert (module_mode, set(modes.values()) - {0o664}) == (0o755, {0o644})  # `wheel pack` gives RECORD its own mode
    assert [part["purl"] for part in sbom["components"]] == ["pkg:pypi/pybind11@3.1", "pkg:pypi/ziglang@0.17"]
    assert "Root-Is-Purelib: false" in lines
    assert {line for line in lines if line.startswith("Tag")} == {f"Tag: {cp}-{cp}-{tag}" for tag in tags}
