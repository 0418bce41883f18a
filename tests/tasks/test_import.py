"""`import fastattn` is light, and all its names exist."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fastattn
from tests.reference.hang import HANG_SECONDS
from tests.reference.package import SOURCES


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env={"PYTHONPATH": str(SOURCES)},
        check=True,
    )
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    loaded = python("import sys, fastattn; print(*sorted(m.split('.')[0] for m in sys.modules))").split()
    assert not {"torch", "transformers", "tokenizers", "pandas", "safetensors", "huggingface_hub"} & set(loaded)


def test_import_loads_two_modules_besides_those_of_numpy() -> None:
    """Expensive modules are imported on first use."""
    code = (
        "import __future__, sys, numpy, importlib, typing; before = set(sys.modules); import fastattn;"
        "print(*sorted(set(sys.modules) - before))"
    )
    assert python(code).split() == ["fastattn", "fastattn.errors"]


@pytest.mark.parametrize("name", fastattn.__all__)
def test_public_names(name: str) -> None:
    assert getattr(fastattn, name) is not None
    assert name in dir(fastattn)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        fastattn.nothing  # noqa: B018


def test_generation_needs_no_heavy_imports() -> None:
    code = (
        "import sys, fastattn; fastattn.pipeline; fastattn.SentenceTransformer; fastattn.AutoModel;"
        "print(*sorted(m.split('.')[0] for m in sys.modules))"
    )
    loaded = python(code).split()
    assert not {"torch", "transformers", "tokenizers", "pandas", "safetensors", "huggingface_hub"} & set(loaded)
    assert "typing_extensions" not in loaded


def test_rare_tokenizer_classes_are_imported_on_use() -> None:
    code = (
        "import sys, fastattn; fastattn.pipeline('text-generation').tokenizer.encode('a');"
        "fastattn.pipeline('text-classification').tokenizer.encode('a');"
        "print(*sorted(m for m in sys.modules if m.startswith('fastattn.tokenizer.')))"
    )
    loaded = python(code).split()
    assert "fastattn.tokenizer.load" in loaded
    assert not {"fastattn.tokenizer.marian", "fastattn.tokenizer.unigram", "fastattn.tokenizer.unigram_text"} & {
        *loaded
    }
