"""The content of the wheel and the sdist. The wheel is built from the build folder, so ninja has nothing to compile."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from tests.reference.hang import HANG_SECONDS
from tests.reference.lock import locked

ROOT = Path(__file__).resolve().parents[2]
WHEEL_LIMIT_BYTES = 12 * 10**6  # without the CUDA extension, which released wheels do not have


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=6 * HANG_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, folder: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("scikit_build_core", reason="builds a wheel with the build tools of this environment")
    with locked(ROOT / "build" / "wheel"):
        return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_is_small(wheel: Path) -> None:
    size = wheel.stat().st_size
    parts = zipfile.ZipFile(wheel).infolist()
    size -= sum(part.compress_size for part in parts if part.filename.startswith("fastattn/_cuda."))
    print(f"{wheel.name}: {size / 1e6:.2f} MB")
    assert size < WHEEL_LIMIT_BYTES


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top.split("-")[0] for top in tops} == {"fastattn"}
    assert [name for name in names if re.fullmatch(r"fastattn/_core\.[\w.-]+\.so", name)]
    assert "fastattn/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if re.search(r"\.(cpp|h|cc|o|pyc)$|/tests?/", name)]
    tracked = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/fastattn").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == tracked


@pytest.fixture(scope="session")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Message:
    """Return the metadata of a wheel without building one."""
    pytest.importorskip("scikit_build_core", reason="asks the build tools of this environment")
    pytest.importorskip("hatch_fancy_pypi_readme", reason="asks the build tools of this environment")
    folder = tmp_path_factory.mktemp("metadata")
    code = f"from scikit_build_core.build import prepare_metadata_for_build_wheel as m; m({str(folder)!r})"
    run(sys.executable, "-c", code)
    (file,) = folder.glob("*.dist-info/METADATA")
    return message_from_bytes(file.read_bytes())


@pytest.fixture(scope="session")
def index_readme(metadata: Message) -> str:
    text = metadata.get_payload(decode=True)
    assert isinstance(text, bytes)
    return text.decode()


def test_the_wheel_asks_for_numpy_tokenizers_and_tqdm_only(metadata: Message) -> None:
    required = metadata.get_all("Requires-Dist") or []
    names = {re.split(r"[<>=~! ;\[]", line)[0] for line in required if "extra ==" not in line}
    assert names == {"numpy", "tokenizers", "tqdm"}


def test_what_an_index_shows(metadata: Message, index_readme: str) -> None:
    assert metadata["Author"] == "The fastattn authors"
    assert metadata.get_all("Project-URL") == ["Homepage, https://pypi.org/project/fastattn/"]
    classifiers = set(metadata.get_all("Classifier") or [])
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 15)} <= classifiers
    assert "Typing :: Typed" in classifiers
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert index_readme.startswith("# fastattn\n")
    assert "`docs/numerics.md`" in index_readme


def test_no_link_of_an_index_leads_nowhere(index_readme: str) -> None:
    """Links to files of the checkout become text; other links and the headings of the page are absolute."""
    checkout = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = [link for link in re.findall(r"\]\(([^)]*)\)", checkout) if not link.startswith(("https://", "#"))]
    assert relative
    for link in re.findall(r"\]\(([^)]*)\)", index_readme):
        assert link.startswith(("https://", "#"))
    for link in relative:
        assert f"`{link.partition('#')[0]}`" in index_readme


@pytest.mark.slow
def test_the_sdist_builds_alone(tmp_path: Path) -> None:
    """An unpacked sdist builds a wheel that imports, using only a compiler and the build tools."""
    pytest.importorskip("scikit_build_core", reason="builds with the build tools of this environment")
    code = f"from scikit_build_core.build import build_sdist; build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", code)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        tar.extractall(tmp_path, filter="data")
    assert not [name for name in names if re.search(r"\.so$|/build/|/tests/", name)]
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")} <= {
        name.partition("/")[2] for name in names
    }
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    made = build_wheel(source, tmp_path / "wheel")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(made))
    place = run(
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import fastattn; print(fastattn.__file__)",
        cwd=tmp_path,
    )
    assert place.startswith(str(tmp_path / "site"))
