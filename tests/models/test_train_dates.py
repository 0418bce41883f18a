"""The script that trains a recurrent model for dates, and the model that it wrote."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn as fa

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def script() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    spec = importlib.util.spec_from_file_location("train_dates", EXAMPLES / "train_dates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.torch
def test_the_script_writes_a_folder_that_gives_what_torch_gives(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    models, dates = [], script.Dates
    monkeypatch.setattr(script, "Dates", lambda: models.append(dates()) or models[-1])
    monkeypatch.setattr(sys, "argv", ["train_dates.py", str(tmp_path / "dates"), "--steps", "2"])
    monkeypatch.setattr(script, "BATCH", 8)
    script.main()
    assert "step 2: loss" in capsys.readouterr().out
    found = fa.RecurrentSeq2Seq.from_pretrained(tmp_path / "dates").generate("3rd of May 2021", max_new_tokens=5)
    model = models[0].half().double()  # the numbers in the file
    source = torch.tensor([[script.SOURCE.index(c) for c in "3rd of May 2021"]])
    fed = [script.BOS, *found.sequences[0]]
    with torch.no_grad():
        logits = model(source, torch.tensor([15]), torch.tensor([fed]))[0]
    logprobs = torch.log_softmax(logits, 1).numpy()[: 5 if len(fed) == 6 else len(fed)]
    chosen = logprobs.argmax(axis=1)
    assert chosen.tolist()[: len(fed) - 1] == found.sequences[0]
    assert abs(found.scores[0] - logprobs.max(axis=1).mean()) <= 1e-4  # five steps in float32


@pytest.mark.torch
def test_the_model_of_the_examples_writes_dates(script: Any) -> None:
    rng, model = random.Random(7), fa.RecurrentSeq2Seq.from_pretrained(EXAMPLES / "dates")
    pairs = [script.pair(rng) for _ in range(200)]
    found = model.generate([written for written, _ in pairs], max_new_tokens=12).texts
    assert found is not None
    assert np.mean([text == date for text, (_, date) in zip(found, pairs, strict=True)]) >= 0.98
    assert (EXAMPLES / "dates" / "model.safetensors").stat().st_size < 1 << 20
