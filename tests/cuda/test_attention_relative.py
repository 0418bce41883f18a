"""Attention with a window and with biases on the CUDA executor: the CPU's bits in float32, the formula in 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastattn.errors import ContextLengthError, InputError
from fastattn.executors.cpu import CpuExecutor
from fastattn.executors.cuda import CudaExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.rewrites import optimize, with_maps, with_outputs
from tests.cuda.test_decoder_ops import cuda
from tests.cuda.test_models import distance
from tests.program import test_attention_relative as on_cpu
from tests.program.test_attention_relative import made_with
from tests.reference.decoder_program import POSITIONS, decoder_program, step_of

VARIANTS = [name for name, options in on_cpu.VARIANTS.items() if "softcap" not in options]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("which", [None, "wanted", "first", "last"])
def test_float32_has_the_bits_of_the_cpu(gpu: str, variant: str, causal: bool, which: str | None) -> None:
    made = made_with(variant, causal=causal, which=which)
    step = step_of(3, 0, 5, 1, 66, 0, wanted=[2, 4, 8, 70])
    expected = CpuExecutor(optimize(made.program), made.sources, threads=1).run(step)["y"]
    executor = cuda(made)
    for _ in range(2):
        assert executor.run(step)["y"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_16_bits_are_as_far_from_float64_as_they_should_be(gpu: str, variant: str) -> None:
    """bfloat16 is at most twice as far off as the CPU's. float16 has 8 times its resolution, and is closer."""
    made, step = made_with(variant), step_of(3, 70)
    exact = NumpyExecutor(made.program, made.sources).run(step)["y"]
    theirs = CpuExecutor(optimize(made.program), made.sources, dtype="bfloat16", threads=1).run(step)["y"]
    reference = distance(theirs, exact)
    assert 0 < distance(cuda(made, "bfloat16").run(step)["y"], exact) <= 2 * reference
    assert 0 < distance(cuda(made, "float16").run(step)["y"], exact) <= reference / 2


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_cached_continuation_has_the_same_bits(gpu: str, variant: str, dtype: str) -> None:
    executor = cuda(made_with(variant), dtype)
    whole = executor.run(step_of(140))["y"]
    cache = executor.new_cache()
    for begin, length in ((0, 1), (1, 64), (65, 5), (70, 1), (71, 68), (139, 1)):
        part = executor.run(step_of(length, first=begin, caches=[cache]))["y"]
        assert part.tobytes() == whole[begin : begin + length].tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_maps_have_the_bits_of_the_cpu(gpu: str, variant: str, causal: bool) -> None:
    made = made_with(variant, causal=causal)
    marked = optimize(with_outputs(made.program, attentions=True))
    step = step_of(5, 70)
    expected = CpuExecutor(marked, made.sources, threads=1).run(step)
    found = CudaExecutor(marked, made.sources, library=False).run(step)
    some = CudaExecutor(optimize(with_maps(made.program, [0, 1], [2])), made.sources, library=False).run(step)
    for layer in range(2):
        for ours, theirs in zip(found[f"attentions.{layer}"], expected[f"attentions.{layer}"], strict=True):
            assert np.array_equal(ours, theirs)
        for ours, theirs in zip(some[f"attentions.{layer}.2"], expected[f"attentions.{layer}"], strict=True):
            assert np.array_equal(ours[0], theirs[2])


def test_what_does_not_fit(gpu: str) -> None:
    made: Any = decoder_program(bias="alibi")
    executor = cuda(made)
    with pytest.raises(ContextLengthError, match=f"sequence 1: {POSITIONS + 1} positions, the attention bias has"):
        executor.run(step_of(1, POSITIONS + 1))
    short = {**made.sources, "bias.weight": decoder_program(bias="alibi", heads=4).sources["bias.weight"]}
    with pytest.raises(InputError, match=r"bias\.weight: expected a part of a weight \[2, 320\]"):
        CudaExecutor(optimize(made.program), short, library=False)
