"""rms_norm, rotary and multiply in Programs on the CUDA executor: the CPU's bits in float32."""

from __future__ import annotations

import pytest

from fastattn.executors.cpu import CpuExecutor
from fastattn.executors.cuda import CudaExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.rewrites import optimize
from tests.cuda.test_models import distance
from tests.reference.decoder_program import DecoderProgram, decoder_program, step_of

WANTED = [2, 4, 8, 70]


def cuda(made: DecoderProgram, dtype: str = "float32") -> CudaExecutor:
    return CudaExecutor(optimize(made.program), made.sources, dtype=dtype, library=False)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("which", [None, "wanted", "first", "last"])
def test_float32_has_the_bits_of_the_cpu(gpu: str, interleaved: bool, which: str | None) -> None:
    made = decoder_program(interleaved=interleaved, dimensions=10, which=which, layers=2, heads=4, scaled=True)
    step = step_of(3, 0, 5, 1, 66, 0, wanted=WANTED)
    expected = CpuExecutor(optimize(made.program), made.sources, threads=1).run(step)["y"]
    executor = cuda(made)
    for _ in range(2):
        assert executor.run(step)["y"].tobytes() == expected.tobytes()


def test_16_bits_are_as_far_from_float64_as_they_should_be(gpu: str) -> None:
    """bfloat16 is at most twice as far off as the CPU's. float16 has 8 times its resolution, and is closer."""
    made, step = decoder_program(layers=2, heads=4), step_of(3, 70)
    exact = NumpyExecutor(made.program, made.sources).run(step)["y"]
    theirs = CpuExecutor(optimize(made.program), made.sources, dtype="bfloat16", threads=1).run(step)["y"]
    reference = distance(theirs, exact)
    assert 0 < distance(cuda(made, "bfloat16").run(step)["y"], exact) <= 2 * reference
    assert 0 < distance(cuda(made, "float16").run(step)["y"], exact) <= reference / 2


def test_a_cached_continuation_has_the_same_bits(gpu: str) -> None:
    made = decoder_program(layers=2, heads=4)
    for dtype in ("float32", "bfloat16"):
        executor = cuda(made, dtype)
        whole = executor.run(step_of(70))["y"]
        cache = executor.new_cache()
        for begin, length in ((0, 1), (1, 64), (65, 5)):
            part = executor.run(step_of(length, first=begin, caches=[cache]))["y"]
            assert part.tobytes() == whole[begin : begin + length].tobytes()
