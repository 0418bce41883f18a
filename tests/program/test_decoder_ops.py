"""rms_norm, rotary and multiply in Programs on the CPU: near the formulas, and the same bits however they run."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.errors import ConfigError, InputError
from fastattn.executors.cpu import CpuExecutor
from fastattn.graph.rewrites import optimize
from tests.reference.decoder_program import POSITIONS, DecoderProgram, decoder_program, step_of
from tests.reference.op_by_op import check_program
from tests.reference.targets import assert_same_on_targets, printed_on_targets

DTYPES = ("float32", "bfloat16", "int8", "int4")


def executor_of(
    made: DecoderProgram, *, dtype: str = "float32", kv_dtype: str | None = None, threads: int = 2
) -> CpuExecutor:
    return CpuExecutor(optimize(made.program), made.sources, dtype=dtype, kv_dtype=kv_dtype, threads=threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("which", [None, "wanted", "first", "last"])
def test_every_op(dtype: str, interleaved: bool, which: str | None) -> None:
    made = decoder_program(interleaved=interleaved, dimensions=10, which=which, layers=2, heads=4, scaled=True)
    for program in (made.program, optimize(made.program)):
        check_program(program, made.sources, step_of(3, 0, 5, 1, 90, 0, wanted=[2, 4, 8, 98]), dtype)


LENGTHS = (1, 6, 17, 64, 65, 130)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [None, "wanted", "first", "last"])
def test_same_bits(dtype: str, which: str | None) -> None:
    """Alone, in a batch in any order, on any number of threads, fused or not."""
    made = decoder_program(which=which, layers=2, heads=4)
    expected = {n: alone(executor_of(made, dtype=dtype, threads=1), n) for n in LENGTHS}
    for threads in (1, 2, 3):
        executor = executor_of(made, dtype=dtype, threads=threads)
        for order in (LENGTHS, LENGTHS[::-1], LENGTHS[2:] + LENGTHS[:2]):
            wanted = None if which != "wanted" else [end - 1 for end in itertools.accumulate(order)]
            batch = executor.run(step_of(*order, wanted=wanted))["y"]
            rows = [n if which is None else 1 for n in order]
            for n, found in zip(order, np.split(batch, np.cumsum(rows)[:-1]), strict=True):
                assert found.tobytes() == expected[n][-len(found) :].tobytes()
    plain = CpuExecutor(made.program, made.sources, dtype=dtype, threads=2)
    assert alone(plain, 65).tobytes() == expected[65].tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_with_a_cache_have_the_same_bits(dtype: str, chunk: int) -> None:
    executor = executor_of(decoder_program(layers=2, heads=4), dtype=dtype)
    assert in_chunks(executor, 130, chunk).tobytes() == alone(executor, 130).tobytes()


def alone(executor: CpuExecutor, length: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = executor.run(step_of(length))["y"]
    return found


def in_chunks(executor: CpuExecutor, length: int, chunk: int) -> NDArray[np.float32]:
    cache = executor.new_cache()
    steps = (step_of(min(chunk, length - at), first=at, caches=[cache]) for at in range(0, length, chunk))
    return np.concatenate([executor.run(step)["y"] for step in steps])


PRINT = """
import hashlib
from fastattn import _core
from tests.program.test_decoder_ops import alone, executor_of
from tests.reference.decoder_program import decoder_program
for interleaved in (False, True):
    for dtype in ("float32", "int8", "int4", "bfloat16"):
        if dtype == "bfloat16" and _core.bfloat16_sums(_core.active_target()) != "portable":
            continue
        made = decoder_program(interleaved=interleaved, layers=2, heads=4)
        print(hashlib.sha256(alone(executor_of(made, dtype=dtype), 70).tobytes()).hexdigest())
"""


def test_all_targets_have_the_same_bits() -> None:
    assert_same_on_targets(printed_on_targets(PRINT), count=8, without_bfloat16=6)


def test_positions_beyond_the_table() -> None:
    made = decoder_program()
    executor = executor_of(made)
    assert alone(executor, POSITIONS).shape == (POSITIONS, 24)
    with pytest.raises(InputError, match=f"positions: expected 0 to {POSITIONS - 1}, got {POSITIONS} at token 1"):
        executor.run(step_of(2, first=POSITIONS - 1))
    with pytest.raises(InputError, match="positions: expected 0 to"):
        executor.run(step_of(1, first=-1))


def changed(made: DecoderProgram, kind: str, **attrs: int) -> None:
    ops = [replace(op, attrs={**op.attrs, **attrs}) if op.kind == kind else op for op in made.program.ops]
    CpuExecutor(replace(made.program, ops=tuple(ops)), made.sources)


def test_programs_that_do_not_fit() -> None:
    made = decoder_program()
    with pytest.raises(ConfigError, match="rms_norm: expected a width divisible by the groups"):
        changed(made, "rms_norm", groups=5)
    with pytest.raises(ConfigError, match="rotary: expected an even number of dimensions"):
        changed(made, "rotary", dimensions=7)
    with pytest.raises(ConfigError, match="does not fit its op"):
        changed(made, "rotary", dimensions=6)
