"""bfloat16, int8 and int4 models: every op matches the numpy executor, whole models as closely as float32 allows.

Op by op, on the same inputs as the C++, only the roundings of float32 differ. In a whole model they can change the
rounding of an activation. That moves the result far more than the roundings themselves, but is rare in models as small
as these. So the naive float32 formula runs several times with different roundings, and its largest error is the bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.api.model import load_executor
from fastattn.checkpoint import ArraySource, WeightSource, open_checkpoint, read_tensor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.executor import Executor
from fastattn.graph.ir import Program, Step
from fastattn.graph.quantize import weight_formats
from fastattn.models.registry import BuiltModel, build
from tests.reference.bounds import eps
from tests.reference.op_by_op import check_every_op

pytest.importorskip("torch")
pytest.importorskip("transformers")
from tests.reference import hf

pytestmark = pytest.mark.torch

DTYPES = ("bfloat16", "int8", "int4")
# Widths that are not multiples of 4, 32 or 64, and matrices of more than 64 rows, so that all of them are rounded.
GPT2 = {"vocab_size": 131, "n_positions": 140, "n_embd": 78, "n_head": 3, "n_layer": 2}
BERT = {
    "vocab_size": 131,
    "hidden_size": 78,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 101,
    "max_position_embeddings": 140,
}
DISTIL = {"vocab_size": 131, "dim": 78, "n_heads": 3, "n_layers": 2, "hidden_dim": 101, "max_position_embeddings": 140}
MODERN = {
    **BERT,
    "num_labels": 3,
    "layer_types": ["full_attention", "sliding_attention"],
    "local_attention": 8,
    "pad_token_id": 0,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
DEBERTA = {**BERT, "relative_attention": True, "pos_att_type": "p2c|c2p", "position_buckets": 32, "share_att_key": True}
CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "causal-lm", GPT2),
    "gpt2-untied": ("GPT2LMHeadModel", "causal-lm", {**GPT2, "tie_word_embeddings": False, "n_inner": 101}),
    "bert": ("BertModel", "encoder", BERT),
    "bert-classify": ("BertForSequenceClassification", "sequence-classification", {**BERT, "num_labels": 3}),
    "distilbert": ("DistilBertForSequenceClassification", "sequence-classification", DISTIL),
    "roberta": ("RobertaForSequenceClassification", "sequence-classification", {**BERT, "num_labels": 5}),
    "camembert": ("CamembertModel", "encoder", BERT),
    "electra": ("ElectraForSequenceClassification", "sequence-classification", {**BERT, "embedding_size": 70}),
    "albert": ("AlbertModel", "encoder", {**BERT, "embedding_size": 70}),
    "mpnet": ("MPNetModel", "encoder", BERT),
    "modernbert": ("ModernBertForSequenceClassification", "sequence-classification", MODERN),
    "nomic": ("NomicBertModel", "encoder", BERT),
    "deberta": ("DebertaV2Model", "encoder", DEBERTA),
}
LENGTHS = (1, 7, 130)
N_NAIVE = 8
N_ROUNDINGS = 8


@pytest.fixture(params=CASES)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> BuiltModel:
    model_class, task, options = CASES[request.param]
    checkpoint = open_checkpoint(hf.save(hf.make(model_class, **options), tmp_path))
    return build(checkpoint.config, checkpoint.tensors, task)


def ragged(rng: np.random.Generator) -> Step:
    ends = np.cumsum([0, *LENGTHS]).astype(np.int32)
    return Step(
        token_ids=rng.integers(5, 131, ends[-1]).astype(np.int32),
        cu_seqlens=ends,
        positions=np.concatenate([np.arange(n) for n in LENGTHS]).astype(np.int32),
        wanted=np.arange(ends[-1], dtype=np.int32),
    )


def specification(built: BuiltModel, dtype: str) -> NumpyExecutor:
    return NumpyExecutor(built.program, built.tensors, dtype=dtype)


def weights_alone(program: Program, built: BuiltModel, dtype: str) -> Executor:
    """Return an executor with float32 keys and values, as in the numpy executor."""
    return load_executor(program, built.tensors, dtype=dtype, kv_dtype="float32", device="cpu", threads=2)


def naive(built: BuiltModel, dtype: str, run: int) -> NumpyExecutor:
    """Return the plain float32 formula. Except in the first run, norms and biases are off by about N_ROUNDINGS."""
    vectors = {part for weight in built.program.weights.values() if weight.use == "vector" for part in weight.parts}
    rng = np.random.default_rng(run)

    def source(part: str) -> WeightSource:
        if part not in vectors or run == 0:
            return built.tensors[part]
        tensor = read_tensor(built.tensors[part])
        return ArraySource(part, tensor * (1 + N_ROUNDINGS * eps(np.float32) * rng.uniform(-1, 1, tensor.shape)))

    sources = {part: source(part) for weight in built.program.weights.values() for part in weight.parts}
    return NumpyExecutor(built.program, sources, dtype=dtype, precision=np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_op(built: BuiltModel, dtype: str, rng: np.random.Generator) -> None:
    formats = weight_formats(built.program, dtype)
    assert {formats[op.weights[0]] for op in built.program.ops if op.kind == "linear"} >= {dtype}
    check_every_op(built, ragged(rng), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_models(built: BuiltModel, dtype: str, rng: np.random.Generator) -> None:
    step = ragged(rng)
    found = weights_alone(built.program, built, dtype).run(step)
    exact = specification(built, dtype).run(step)
    runs = [naive(built, dtype, run).run(step) for run in range(N_NAIVE)]
    for name, value in exact.items():
        ours, theirs = distance(found[name], value), max(distance(run[name], value) for run in runs)
        assert 0 < ours <= 2 * theirs, f"{name}: expected at most twice {theirs:.3g}, got {ours:.3g}"


def distance(a: Any, b: Any) -> float:
    """Return the root mean square of the differences."""
    difference: NDArray[np.float64] = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(np.sqrt(np.mean(difference**2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_shows(built: BuiltModel, dtype: str, rng: np.random.Generator) -> None:
    """A model that silently stayed in float32 would pass as a very accurate one, so check the size of the weights."""
    of_dtype, full = (
        load_executor(built.program, built.tensors, dtype=name, device="cpu", threads=1) for name in (dtype, "float32")
    )
    bytes_of = {"bfloat16": 2, "int8": 1, "int4": 33 / 64}
    matrices = sum(w.shape[0] * w.shape[1] for w in built.program.weights.values() if w.use == "matrix")
    step = ragged(rng)
    assert of_dtype.weight_bytes < full.weight_bytes - matrices * (4 - bytes_of[dtype]) / 2
    assert any(distance(of_dtype.run(step)[name], value) > 0 for name, value in full.run(step).items())
