"""Whole models on the CUDA executor: the CPU's bits in float32, close to the specification in 16 bits.

Float32 products use the built-in kernel here, which sums like the CPU. With cuBLASLt only the bounds are tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.api.model import load_executor
from fastattn.checkpoint import ArraySource, ComputedSource, WeightSource, array_sources, open_checkpoint, read_tensor
from fastattn.executors.cuda import CudaExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.ir import Program, Step
from fastattn.graph.rewrites import optimize, with_outputs
from fastattn.models.registry import BuiltModel, build
from tests.reference import checkpoints
from tests.reference.bounds import assert_close, eps
from tests.reference.checkpoints import write_bert, write_gpt2

# Widths that are not multiples of 8, 16 or 64; matrices of more than 64 rows, which are rounded in 16 bits.
GPT2 = {"vocab_size": 131, "n_positions": 140, "n_embd": 78, "n_head": 3, "n_layer": 2}
BERT = {
    "vocab_size": 131,
    "hidden_size": 78,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "intermediate_size": 101,
    "max_position_embeddings": 140,
}
CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gpt2": (write_gpt2, "causal-lm", GPT2),
    "gpt2-encoder": (write_gpt2, "encoder", {**GPT2, "activation_function": "gelu"}),
    "bert": (write_bert, "encoder", BERT),
    "bert-classify": (write_bert, "sequence-classification", {**BERT, "hidden_act": "relu"}),
}
LENGTHS = (1, 7, 0, 70)
N_NAIVE = 8
N_ROUNDINGS = 8


@pytest.fixture(params=CASES)
def built(request: pytest.FixtureRequest, tmp_path: Path) -> BuiltModel:
    write, task, options = CASES[request.param]
    checkpoint = open_checkpoint(write(tmp_path, **options))
    return build(checkpoint.config, checkpoint.tensors, task)


def ragged(rng: np.random.Generator, lengths: tuple[int, ...] = LENGTHS) -> Step:
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    return Step(
        token_ids=rng.integers(5, 131, ends[-1]).astype(np.int32),
        cu_seqlens=ends,
        positions=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        wanted=np.arange(0, ends[-1], 2, dtype=np.int32),
    )


def part(step: Step, sequence: int) -> Step:
    """Return one sequence of a step, with its wanted rows."""
    begin, end = step.cu_seqlens[sequence : sequence + 2]
    wanted = step.wanted[(step.wanted >= begin) & (step.wanted < end)] - begin
    return Step(step.token_ids[begin:end], np.array([0, end - begin], np.int32), step.positions[begin:end], wanted)


def cuda(built: BuiltModel, program: Program | None = None, **options: Any) -> CudaExecutor:
    return CudaExecutor(program or built.program, built.tensors, **{"library": False, **options})


def equal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        for ours, theirs in zip(found[name], value, strict=True):
            assert np.array_equal(ours, theirs, equal_nan=True), name


def distance(a: Any, b: Any) -> float:
    """Return the root mean square of the differences."""
    difference: NDArray[np.float64] = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(np.sqrt(np.mean(difference**2)))


def test_float32_has_the_bits_of_the_cpu(gpu: str, built: BuiltModel, rng: np.random.Generator) -> None:
    """All outputs, including attention maps, in steps with and without a graph, each run three times."""
    program = optimize(with_outputs(built.traced, hidden_states=True, attentions=True))
    ours = cuda(built)
    theirs = load_executor(built.program, built.tensors, dtype="float32", device="cpu", threads=1)
    for executor, other in ((ours, theirs), (ours.with_program(program), theirs.with_program(program))):
        for lengths in (LENGTHS, (5, 0, 3), (1, 1), (0,), ()):
            step = ragged(rng, lengths) if lengths else ragged(rng, (0,))
            expected = other.run(step)
            for _ in range(3):
                equal(executor.run(step), expected)


def computed(name: str, array: NDArray[np.float32]) -> ComputedSource:
    return ComputedSource(name, array.shape, lambda begin, end: array[begin:end], slice_rows=5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_from_arrays_and_functions_are_those_of_the_file(
    gpu: str, built: BuiltModel, dtype: str, rng: np.random.Generator
) -> None:
    step = ragged(rng)
    expected = cuda(built, dtype=dtype).run(step)
    arrays = {name: read_tensor(source) for name, source in built.tensors.items()}
    functions = {name: computed(name, array) for name, array in arrays.items()}
    for sources in (array_sources(arrays), functions):
        found = CudaExecutor(built.program, sources, dtype=dtype, library=False).run(step)
        for name, value in expected.items():
            assert np.array_equal(np.asarray(found[name]), np.asarray(value))


def test_float32_is_within_the_bound_of_the_specification(
    gpu: str, built: BuiltModel, rng: np.random.Generator
) -> None:
    """With cuBLASLt, if available."""
    step = ragged(rng)
    exact = NumpyExecutor(built.program, built.tensors).run(step)
    for name, value in cuda(built, library=True).run(step).items():
        assert_close(np.asarray(value), np.asarray(exact[name]), built.program, longest=max(LENGTHS))


def test_bfloat16_is_close_to_the_specification(gpu: str, built: BuiltModel, rng: np.random.Generator) -> None:
    """Keys and values are float32, as in the numpy executor; see tests/models/test_dtypes.py for the bound."""
    step = ragged(rng)
    found = cuda(built, dtype="bfloat16", kv_dtype="float32").run(step)
    exact = NumpyExecutor(built.program, built.tensors, dtype="bfloat16").run(step)
    runs = [naive(built, run).run(step) for run in range(N_NAIVE)]
    for name, value in exact.items():
        ours, most = distance(found[name], value), max(distance(run[name], value) for run in runs)
        assert 0 < ours <= 2 * most, f"{name}: expected at most twice {most:.3g}, got {ours:.3g}"


def naive(built: BuiltModel, run: int) -> NumpyExecutor:
    """Return the plain float32 formula. Except in the first run, norms and biases are off by about N_ROUNDINGS."""
    vectors = {part for weight in built.program.weights.values() if weight.use == "vector" for part in weight.parts}
    rng = np.random.default_rng(run)

    def source(name: str) -> WeightSource:
        if name not in vectors or run == 0:
            return built.tensors[name]
        tensor = read_tensor(built.tensors[name])
        return ArraySource(name, tensor * (1 + N_ROUNDINGS * eps(np.float32) * rng.uniform(-1, 1, tensor.shape)))

    sources = {name: source(name) for weight in built.program.weights.values() for name in weight.parts}
    return NumpyExecutor(built.program, sources, dtype="bfloat16", precision=np.float32)


def test_sixteen_bits_are_as_far_from_float64_as_they_should_be(
    gpu: str, built: BuiltModel, rng: np.random.Generator
) -> None:
    """bfloat16, including keys and values, is at most twice as far off as the CPU's.

    float16 has 8 times its resolution, and is closer.
    """
    step = ragged(rng)
    exact = NumpyExecutor(built.program, built.tensors).run(step)
    theirs = load_executor(built.program, built.tensors, dtype="bfloat16", device="cpu", threads=1).run(step)
    wide, fine = (cuda(built, dtype=dtype).run(step) for dtype in ("bfloat16", "float16"))
    for name, value in exact.items():
        reference = distance(theirs[name], value)
        assert 0 < distance(wide[name], value) <= 2 * reference
        assert 0 < distance(fine[name], value) <= reference / 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("library", [False, True])
def test_a_sequence_has_its_bits_whatever_the_batch(
    gpu: str, built: BuiltModel, rng: np.random.Generator, dtype: str, library: bool
) -> None:
    step, executor = ragged(rng), cuda(built, dtype=dtype, library=library)
    together = executor.run(step)
    for sequence, length in enumerate(LENGTHS):
        if not length:
            continue
        begin, end = step.cu_seqlens[sequence : sequence + 2]
        rows = {
            "tokens": slice(begin, end),
            "wanted": (step.wanted >= begin) & (step.wanted < end),
            "sequences": slice(sequence, sequence + 1),
        }
        for name, value in executor.run(part(step, sequence)).items():
            kind = built.program.values[built.program.outputs[name]].rows
            assert np.array_equal(np.asarray(value), np.asarray(together[name])[rows[kind]]), name


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "float16"])
def test_a_nan_stays_in_its_sequence(gpu: str, tmp_path: Path, rng: np.random.Generator, kv_dtype: str) -> None:
    """The embedding of one token is NaN, and so is its column of the logits; pages that it used do no harm later."""
    config = {**checkpoints.GPT2, **GPT2}
    tensors = checkpoints.gpt2_tensors(config)
    tensors["wte.weight"][130] = np.nan
    checkpoint = open_checkpoint(checkpoints.write(tmp_path, config, tensors))
    executor = cuda(build(checkpoint.config, checkpoint.tensors, "causal-lm"), kv_dtype=kv_dtype)
    step = ragged(rng, (9, 3, 70))
    ids = step.token_ids % 130
    poisoned = ids.copy()
    poisoned[10] = 130
    # The row before it does not see it either: causal.
    rows = (step.wanted >= 10) & (step.wanted < 12)

    def logits(token_ids: NDArray[np.int32], caches: bool) -> NDArray[Any]:
        held = tuple(executor.new_cache() for _ in range(3)) if caches else None
        found = executor.run(Step(token_ids, step.cu_seqlens, step.positions, step.wanted, caches=held))["logits"]
        return np.asarray(found)[:, :130]

    expected = logits(ids, False)
    assert np.isfinite(expected).all()
    for caches in (False, True):
        found = logits(poisoned, caches)
        assert np.isnan(found[rows]).all()
        assert np.array_equal(found[~rows], expected[~rows])
        assert np.array_equal(logits(ids, caches), expected)
