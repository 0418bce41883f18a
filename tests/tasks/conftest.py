"""Fixtures of the task tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastattn import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of real data next to the project, or the one in FASTATTN_DATA; skip if there is none."""
    named = os.environ.get("FASTATTN_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not (folder / "gpt2-tokenizer").is_dir():
        pytest.skip(f"the data folder is not at {folder}; name it in FASTATTN_DATA")
    return folder


@pytest.fixture
def lm(folder: Path) -> Iterator[CausalLM]:
    """Return the model in the folder of the test module, with two threads."""
    with AutoModelForCausalLM.from_pretrained(folder, threads=2) as model:
        yield model
