"""What type checkers see of generation and pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reference.type_checker import check

SAMPLE = """
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastattn as fa
from fastattn.models.outputs import GenerateOutput
from fastattn.generation.text_stream import TextStream
from fastattn.tasks.pipelines import Prediction

model = fa.AutoModelForCausalLM.from_pretrained("x")
one: NDArray[np.int32] = model.generate([1, 2], max_new_tokens=3)
many: list[NDArray[np.int32]] = model.generate([[1, 2], [3]], num_return_sequences=2, do_sample=True)
output: GenerateOutput = model.generate([1, 2], return_dict_in_generate=True)
pieces: TextStream = model.stream("x", max_new_tokens=3, seed=1)
text: str = next(pieces)

generate = fa.pipeline("text-generation", "x", device=-1, max_new_tokens=3)
written: str = generate("x", num_return_sequences=2)[0]["generated_text"]
lists: str = generate(["x", "y"])[0][0]["generated_text"]
ids: list[int] = generate("x", return_tensors=True)[0]["generated_token_ids"]

classify = fa.pipeline("text-classification", "x", top_k=None)
labels: list[Prediction] = classify("x", truncation=True)
all_labels: list[list[Prediction]] = classify(["x"], top_k=None)
pair: Prediction = classify({"text": "x", "text_pair": "y"})
score: float = labels[0]["score"]

extract = fa.pipeline("feature-extraction", "x")
number: float = extract("x")[0][0][0]
array: NDArray[np.floating[Any]] = extract("x", return_tensors=True)
names: Mapping[int, str] = classify.model.id2label
"""
WRONG = [
    "model.generate([1], max_newtokens=3)",
    'model.stream("x", num_beams="4")',
    'classify("x", topk=3)',
    "x: str = model.generate([1, 2])",
    'y: int = classify("x")[0]["score"]',
    'fa.pipeline("text-generation", "x", dtyp="int8")',
]


def test_results_have_types(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    found = check(tmp_path, SAMPLE + "\n".join(WRONG) + "\n")
    first = SAMPLE.count("\n") + 1
    lines = {int(line.split(":")[1]) - first for line in found if line.startswith("sample.py:") and "error:" in line}
    assert sorted(lines) == list(range(len(WRONG))), found
