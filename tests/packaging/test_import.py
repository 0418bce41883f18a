"""`import fastattn`: the modules it imports, its cost, and the version it reports."""

from __future__ import annotations

import importlib.metadata
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import fastattn

ROOT = Path(__file__).resolve().parents[2]
NOT_AT_RUN_TIME = {"torch", "transformers", "sentence_transformers", "safetensors", "scipy", "sklearn", "pandas"}
NOT_AT_IMPORT = {"tokenizers", "huggingface_hub", "argparse", "subprocess", "multiprocessing", "asyncio", "http"}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_no_framework() -> None:
    """Modules that numpy does not already import."""
    code = (
        "import sys, json, numpy; before = set(sys.modules); {}; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = {name.split(".")[0] for name in json.loads(python(code.format("import fastattn")))}
    assert not loaded & (NOT_AT_RUN_TIME | NOT_AT_IMPORT)
    every = "import fastattn; [getattr(fastattn, name) for name in fastattn.__all__]"
    loaded = {name.split(".")[0] for name in json.loads(python(code.format(every)))}
    assert not loaded & NOT_AT_RUN_TIME
    stdlib = set(sys.stdlib_module_names)
    assert {name for name in loaded if name not in stdlib} <= {"fastattn", "numpy", "tokenizers"}


def test_import_time_is_reported(record_property: pytest.RecordProperty) -> None:
    """A report, not a bound: no test depends on the clock of a shared machine. The goal is 60 ms more than numpy."""
    code = "import numpy, time; t = time.perf_counter(); import fastattn; print(time.perf_counter() - t)"
    over_numpy_ms = statistics.median(float(python(code)) * 1e3 for _ in range(5))
    record_property("import_over_numpy_ms", over_numpy_ms)
    print(f"import fastattn: {over_numpy_ms:.1f} ms over numpy's")


def test_public_names_exist() -> None:
    assert len(set(fastattn.__all__)) == len(fastattn.__all__)
    for name in fastattn.__all__:
        assert getattr(fastattn, name) is not None
    assert set(fastattn.__all__) <= set(dir(fastattn))


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="module 'fastattn' has no attribute 'AutoModelForCausalLn'") as caught:
        fastattn.AutoModelForCausalLn  # type: ignore[attr-defined]  # noqa: B018
    assert (caught.value.name, caught.value.obj) == ("AutoModelForCausalLn", fastattn)
    with pytest.raises(AttributeError) as caught:
        getattr(fastattn, "x" * 10**6)
    assert len(str(caught.value)) < 200
    assert not hasattr(fastattn, "")


def test_one_sentence_says_what_it_is() -> None:
    sentence = (fastattn.__doc__ or "").strip()
    assert sentence
    described = re.search(r'^description = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert described is not None
    assert described[1] + "." == sentence
    assert sentence in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert sentence in " ".join(python("from fastattn.cli import main; main(['--help'])").split())


def test_dir_shows_the_public_names_alone() -> None:
    """In a new process, and after internal modules were imported."""
    code = "import fastattn; print(dir(fastattn) == sorted(fastattn.__all__))"
    assert python(code) == "True\n"
    assert python(f"import fastattn.cli, fastattn.api.auto, fastattn.executors.cpu; {code}") == "True\n"
    for name in ("models", "runtime", "checkpoint", "graph", "annotations", "importlib", "sys", "TYPE_CHECKING"):
        assert name not in dir(fastattn)
    assert dir(fastattn.ops) == sorted(fastattn.ops.__all__)
    assert dir(fastattn.util) == sorted(fastattn.util.__all__)


def test_the_version_is_the_same_everywhere() -> None:
    in_pyproject = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert in_pyproject is not None
    assert fastattn.__version__ == in_pyproject[1]
    assert importlib.metadata.version("fastattn") == in_pyproject[1]
    headings = re.findall(r"^## \[?([^\]\s]+)\]?", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert in_pyproject[1] in headings
