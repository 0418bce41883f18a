"""The numerics contract: a row depends only on its own sequence, bit for bit (docs/numerics.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn import _core
from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.api.model import Model
from fastattn.executors import cpu
from fastattn.graph.ir import Program, Step
from tests.reference.checkpoints import write_bert, write_gpt2
from tests.reference.targets import printed_on_targets

GPT2 = {"vocab_size": 131, "n_positions": 300, "n_embd": 96, "n_layer": 3, "n_head": 3}
BERT = {"vocab_size": 131, "hidden_size": 96, "num_attention_heads": 3, "intermediate_size": 200,
        "max_position_embeddings": 300}  # fmt: skip
LENGTHS = (1, 2, 5, 6, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200, 300, 33, 3, 4, 9, 10, 11, 12, 13, 14, 18, 19, 20,
           66, 70, 90, 250, 31)  # fmt: skip
assert len(LENGTHS) == 33
THREADS = (1, 2, 3)
# Dtypes of weights, or of weights / keys and values if they differ from the default for the weights.
DTYPES = ("float32", "bfloat16", "int8", "int4", "float32/bfloat16", "float32/int8", "int8/float32")


def dtypes_of(name: str) -> dict[str, str | None]:
    dtype, _, kv_dtype = name.partition("/")
    return {"dtype": dtype, "kv_dtype": kv_dtype or None}


@dataclass(frozen=True, slots=True)
class Family:
    """A small checkpoint and the class that loads it."""

    name: str
    auto: Any

    def load(self, folder: Path, threads: int | None = 2, *, dtype: str = "float32") -> Model:
        if self.name == "gpt2":
            write_gpt2(folder, **GPT2)
        else:
            write_bert(folder, **BERT)
        model: Model = self.auto.from_pretrained(folder, threads=threads, **dtypes_of(dtype))
        return model


FAMILIES = [
    Family("gpt2", AutoModelForCausalLM),
    Family("bert", AutoModel),
    Family("bert-classification", AutoModelForSequenceClassification),
]


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def texts(rng: np.random.Generator) -> list[NDArray[np.int32]]:
    return [rng.integers(0, 131, n).astype(np.int32) for n in LENGTHS]


def rows(model: Any, batch: Any, **options: Any) -> list[NDArray[np.float32]]:
    """Return the model's output for every sequence: logits or hidden states."""
    out = model(batch, **options)
    found = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return list(found)


def assert_same(actual: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> None:
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_alone_in_a_batch_shuffled(family: Family, dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    model = family.load(tmp_path, dtype=dtype)
    batch = texts(rng)
    together = rows(model, batch)
    alone = [rows(model, [text])[0] for text in batch]
    assert_same(together, alone)
    order = rng.permutation(len(batch))
    shuffled = rows(model, [batch[i] for i in order])
    assert_same(shuffled, [alone[i] for i in order])


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padded_input(family: Family, dtype: str, tmp_path: Path, rng: np.random.Generator, side: str) -> None:
    model = family.load(tmp_path, dtype=dtype)
    batch = texts(rng)[:12]
    width = max(map(len, batch)) + 3
    ids = rng.integers(0, 131, (len(batch), width)).astype(np.int32)
    mask = np.zeros((len(batch), width), np.int32)
    for i, text in enumerate(batch):
        start = {"left": width - len(text), "right": 0, "both": (width - len(text)) // 2}[side]
        ids[i, start : start + len(text)] = text
        mask[i, start : start + len(text)] = 1
    padded = rows(model, ids, attention_mask=mask)
    per_token = padded[0].ndim == 2
    found = [row[mask[i] == 1] if per_token else row for i, row in enumerate(padded)]
    assert_same(found, [rows(model, [text])[0] for text in batch])


def test_threads(family: Family, dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    batch = texts(rng)
    found = [rows(family.load(tmp_path, threads=threads, dtype=dtype), batch) for threads in THREADS]
    for other in found[1:]:
        assert_same(other, found[0])


def feed(model: Any, cache: Any, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """Return the logits of all ids fed after the content of the cache."""
    step = Step(
        token_ids=ids,
        cu_seqlens=np.array([0, len(ids)], np.int32),
        positions=np.arange(cache.length, cache.length + len(ids), dtype=np.int32),
        wanted=np.arange(len(ids), dtype=np.int32),
        caches=(cache,),
    )
    logits: NDArray[np.float32] = model.executor.run(step)["logits"]
    return logits


@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
def test_chunks_and_cache(dtype: str, tmp_path: Path, rng: np.random.Generator, chunk: int) -> None:
    model: Any = FAMILIES[0].load(tmp_path, dtype=dtype)
    text = rng.integers(0, 131, 300).astype(np.int32)
    recomputed = rows(model, [text])[0]
    cache = model.new_cache()
    fed = np.concatenate([feed(model, cache, text[i : i + chunk]) for i in range(0, 300, chunk)])
    assert_same([fed], [recomputed])
    for length in (77, 66, 64, 3):  # ids fed again share words and blocks with those that stayed
        cache.truncate(length)
        branch = cache.fork()
        assert_same([feed(model, cache, text[length:])], [recomputed[length:]])
        assert_same([feed(model, branch, text[length:])], [recomputed[length:]])


def test_wanted_rows_only(dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    model = FAMILIES[0].load(tmp_path, dtype=dtype)
    batch = texts(rng)
    for keep in (1, 3):
        last = rows(model, batch, logits_to_keep=keep)
        assert_same(last, [row[-keep:] for row in rows(model, batch)])


def test_rewrites_change_no_bit(family: Family, dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """The traced Program, op by op, equals the optimized one."""
    model = family.load(tmp_path, dtype=dtype)
    built = model._built
    plain = cpu.CpuExecutor(built.traced, built.tensors, threads=2, **dtypes_of(dtype))
    lengths = [5, 64, 1, 130]
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    step = Step(
        token_ids=rng.integers(0, 131, ends[-1]).astype(np.int32),
        cu_seqlens=ends,
        positions=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        wanted=np.array([3, 4, 68, 69, 150, ends[-1] - 1], np.int32),
    )
    assert len(built.program.ops) < len(built.traced.ops)
    expected = plain.run(step)
    found = model.executor.run(step)
    for name in program_outputs(built.program):
        assert_same([np.asarray(found[name])], [np.asarray(expected[name])])


def program_outputs(program: Program) -> list[str]:
    return list(program.outputs)


OF_A_TARGET = """
import sys, hashlib
import numpy as np
from pathlib import Path
from tests.program.test_same_bits import FAMILIES, rows
from fastattn.executors import cpu
folder = Path(sys.argv[1])
rng = np.random.default_rng(5)
batch = [rng.integers(0, 131, n).astype(np.int32) for n in (1, 6, 17, 65)]
digest = hashlib.sha256()
for family in FAMILIES:
    model = family.load(folder, dtype=sys.argv[2])
    for row in rows(model, batch):
        digest.update(row.tobytes())
    for options in ({}, {"do_sample": True, "temperature": 5.0}, {"do_sample": True, "top_k": 0, "top_p": 0.9}):
        if hasattr(model, "generate"):
            drawn = model.generate(batch, max_new_tokens=20, seed=1, return_dict_in_generate=True, **options)
            for row in (*drawn.sequences, *drawn.logprobs):
                digest.update(row.tobytes())
print(cpu.info()["target_active"], digest.hexdigest())
"""


def test_targets(dtype: str, tmp_path: Path) -> None:
    """scalar, avx2, avx512 (or scalar and neon) give the same bits, each in a separate process.

    The order of bfloat16 sums may be a target's own.
    """
    digests = {}
    for target, (active, digest) in printed_on_targets(OF_A_TARGET, str(tmp_path), dtype).items():
        assert active == target
        if "bfloat16" not in dtype or _core.bfloat16_sums(target) == "portable":
            digests[target] = digest
    assert len(digests) > 1
    assert len(set(digests.values())) == 1, digests
