"""An ALBERT with real weights, from the package rxnmapper, if it is installed (tests/reference/real_weights.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from tests.reference.real_weights import ALBERT, REACTIONS, encode_smiles, find, masked, write_rxnmapper
from tests.tasks.bounds import assert_as_good_as

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
import transformers

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = find(ALBERT)
    if package is None:
        pytest.skip("rxnmapper is not installed: pip install --no-deps --target FOLDER rxnmapper==0.4.3")
    return write_rxnmapper(tmp_path_factory.mktemp("rxnmapper"), package)


def test_logits_of_a_real_albert(folder: Path) -> None:
    """A ragged batch: at most twice PyTorch's float32 error."""
    theirs: Any = transformers.AlbertForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    batch = [encode_smiles(folder, smiles) for smiles in REACTIONS]

    def logits(model: Any) -> list[Any]:
        with torch.no_grad():
            return [model(torch.tensor(ids[None])).logits[0].numpy() for ids in batch]

    rough, exact = logits(theirs), logits(theirs.double())
    with fastattn.AutoModelForMaskedLM.from_pretrained(folder) as model:
        found = model(batch).logits
    assert_as_good_as(np.concatenate(found), np.concatenate(exact), np.concatenate(rough))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_predictions_of_masked_tokens(folder: Path, dtype: str) -> None:
    """The model was trained for this, so most are right in every dtype; random weights have one right of 591."""
    cases = masked(folder)
    with fastattn.AutoModelForMaskedLM.from_pretrained(folder, dtype=dtype) as model:
        logits = model([ids for ids, _, _ in cases]).logits
    right = [row[position].argmax() == token for row, (_, position, token) in zip(logits, cases, strict=True)]
    assert sum(right) > len(right) // 2
