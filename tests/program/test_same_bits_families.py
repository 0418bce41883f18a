"""The numerics contract for every family and head: a row depends only on its own sequence (docs/numerics.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastattn
from fastattn.api.auto import AUTO_CLASSES
from fastattn.executors.cpu import CpuExecutor
from fastattn.graph.ir import Step
from fastattn.models.registry import FAMILIES
from fastattn.models.tasks import Task
from tests.reference.families import VARIANTS, VOCAB_SIZE, heads, write_variant

DTYPES = ("float32", "bfloat16", "int8", "int4")
LENGTHS = (1, 17, 64, 65, 130, 6)
CASES = [pytest.param(name, task, id=f"{name}-{task}") for name, task in heads()]


def texts() -> list[NDArray[np.int32]]:
    rng = np.random.default_rng(3)
    return [rng.integers(2, VOCAB_SIZE, n).astype(np.int32) for n in LENGTHS]


def rows(model: Any, batch: list[NDArray[np.int32]], task: Task) -> list[list[bytes]]:
    """Return the bytes of all outputs of each text."""
    if task == "multiple-choice":
        return [[row.tobytes()] for row in model([[text] for text in batch]).logits]
    out = model([text.tolist() for text in batch])
    return [[out[name][i].tobytes() for name in out] for i in range(len(batch))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "task"), CASES)
def test_alone_in_a_batch_and_on_any_threads(name: str, task: Task, dtype: str, tmp_path: Path) -> None:
    folder, batch = write_variant(tmp_path, name, task), texts()
    with AUTO_CLASSES[task].from_pretrained(folder, dtype=dtype, threads=1) as model:
        alone = [rows(model, [text], task)[0] for text in batch]
    assert len({one[0] for one in alone}) == len(batch)
    with AUTO_CLASSES[task].from_pretrained(folder, dtype=dtype, threads=3) as model:
        assert rows(model, batch[::-1], task)[::-1] == alone


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_quantized_folder_and_plain_ops_give_the_same_bits(name: str, task: Task, tmp_path: Path) -> None:
    folder, batch = write_variant(tmp_path / "a", name, task), texts()
    small = fastattn.quantize(folder, tmp_path / "b", dtype="int8")
    with AUTO_CLASSES[task].from_pretrained(folder, dtype="int8", threads=2) as model:
        with AUTO_CLASSES[task].from_pretrained(small, threads=1) as again:
            assert rows(again, batch, task) == rows(model, batch, task)
            assert again.num_parameters() == model.num_parameters()
        built: Any = model._built
        plain = CpuExecutor(built.traced, built.tensors, dtype="int8", threads=2)
        ends = np.cumsum([0, *LENGTHS]).astype(np.int32)
        positions = np.concatenate([np.arange(n) for n in LENGTHS]).astype(np.int32)
        step = Step(np.concatenate(batch), ends, positions, wanted=ends[1:] - 1)
        found = model.executor.run(step)
        for output, value in plain.run(step).items():
            assert np.asarray(found[output]).tobytes() == np.asarray(value).tobytes()


def test_every_family_is_here() -> None:
    """Those with an encoder and a decoder are in tests/models/test_seq2seq.py."""
    families = [variant.family for variant in VARIANTS.values()]
    assert all(family in families for family in FAMILIES.values() if family.tasks != ("seq2seq-lm",))
