"""window_rows, and a convolution made of it: near the formulas, torch's convolution, and the same bits however run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.errors import ConfigError
from fastattn.executors.cpu import CpuExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.kinds import activate, embedding, gather_rows, linear, window_rows
from fastattn.graph.rewrites import optimize
from fastattn.graph.tensor import Tokens, Tracer, Weights
from tests.reference.decoder_program import AllNames, DecoderProgram, random_sources, step_of
from tests.reference.op_by_op import check_program
from tests.reference.targets import assert_same_on_targets, printed_on_targets

WIDTH, POSITIONS = 80, 320  # matrices of fewer than 64 rows are not quantized
DTYPES = ("float32", "bfloat16", "int8", "int4")
LENGTHS = (1, 2, 17, 64, 65, 130)


def convolution(size: int = 3, which: str | None = None) -> DecoderProgram:
    """Trace two convolutions. which: the rows of the output that are gathered."""
    tracer = Tracer()
    w = Weights(tracer, AllNames())
    x = embedding(w["wte"], Tokens().ids, 50, WIDTH)
    for layer in range(2):
        x = x + activate(linear(window_rows(x, size), w[f"conv.{layer}"], WIDTH), "tanh")
    program = tracer.program({"y": x if which is None else gather_rows(x, which)}, POSITIONS)
    return DecoderProgram(program, random_sources(program, scaled=True))


def executor_of(made: DecoderProgram, *, dtype: str = "float32", threads: int = 2) -> CpuExecutor:
    return CpuExecutor(optimize(made.program), made.sources, dtype=dtype, threads=threads)


def alone(executor: CpuExecutor, length: int) -> NDArray[np.float32]:
    found: NDArray[np.float32] = executor.run(step_of(length))["y"]
    return found


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_the_formula(size: int) -> None:
    """Row by row: the neighbors in the same sequence, zeros beyond its ends."""
    made = convolution(size)
    op = next(op for op in made.program.ops if op.kind == "window_rows")
    lengths = (3, 0, 1, 7)
    step = step_of(*lengths)
    x = np.arange(11 * WIDTH, dtype=np.float64).reshape(11, WIDTH) + 1
    found = NumpyExecutor(made.program, made.sources).evaluate(op, step, x)
    assert isinstance(found, np.ndarray)
    starts = np.repeat(np.cumsum((0, *lengths[:-1])), lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    for i, row in enumerate(found.reshape(11, size, WIDTH)):
        for j, part in enumerate(row):
            other = i + j - size // 2
            assert np.array_equal(part, x[other] if starts[i] <= other < ends[i] else np.zeros(WIDTH))


@pytest.mark.torch
@pytest.mark.parametrize("size", [3, 5])
def test_it_is_the_convolution_of_torch(size: int) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(size)
    weight, bias, x = rng.normal(size=(6, WIDTH, size)), rng.normal(size=6), rng.normal(size=(9, WIDTH))
    made = convolution(size)
    op = next(op for op in made.program.ops if op.kind == "window_rows")
    rows = NumpyExecutor(made.program, made.sources).evaluate(op, step_of(9), x)
    assert isinstance(rows, np.ndarray)
    taps = weight.transpose(0, 2, 1).reshape(6, size * WIDTH)
    columns = torch.tensor(x.T[None])
    theirs = torch.nn.functional.conv1d(columns, torch.tensor(weight), torch.tensor(bias), padding=size // 2)
    roundings = (size * WIDTH + 1) * np.finfo(np.float64).eps  # of both sums
    bound = roundings / (1 - roundings) * (np.abs(rows) @ np.abs(taps).T + np.abs(bias))
    assert (np.abs(rows @ taps.T + bias - theirs[0].T.numpy()) <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("which", [None, "wanted", "first", "last"])
def test_every_op(dtype: str, which: str | None) -> None:
    made = convolution(which=which)
    for program in (made.program, optimize(made.program)):
        check_program(program, made.sources, step_of(3, 0, 5, 1, 90, 0, wanted=[2, 4, 8, 98]), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits(dtype: str) -> None:
    """Alone, in a batch in any order, on any number of threads, fused or not."""
    made = convolution()
    expected = {n: alone(executor_of(made, dtype=dtype, threads=1), n) for n in LENGTHS}
    for threads in (1, 2, 3):
        executor = executor_of(made, dtype=dtype, threads=threads)
        for order in (LENGTHS, LENGTHS[::-1], LENGTHS[2:] + LENGTHS[:2]):
            batch = executor.run(step_of(*order))["y"]
            for n, found in zip(order, np.split(batch, np.cumsum(order)[:-1]), strict=True):
                assert found.tobytes() == expected[n].tobytes()
    plain = CpuExecutor(made.program, made.sources, dtype=dtype, threads=2)
    assert alone(plain, 65).tobytes() == expected[65].tobytes()


PRINT = """
import hashlib
from fastattn import _core
from tests.program.test_window_rows import alone, convolution, executor_of
for dtype in ("float32", "int8", "int4", "bfloat16"):
    if dtype == "bfloat16" and _core.bfloat16_sums(_core.active_target()) != "portable":
        continue
    print(hashlib.sha256(alone(executor_of(convolution(), dtype=dtype), 70).tobytes()).hexdigest())
"""


def test_all_targets_have_the_same_bits() -> None:
    assert_same_on_targets(printed_on_targets(PRINT), count=4, without_bfloat16=3)


@pytest.mark.parametrize("size", [0, -1, 2])
def test_wrong_sizes(size: int) -> None:
    with pytest.raises(ConfigError, match=f"an odd size, got tokens and {size}"):
        convolution(size)
    made = convolution()
    ops = [replace(op, attrs={**op.attrs, "size": size}) if op.kind == "window_rows" else op for op in made.program.ops]
    with pytest.raises(ConfigError, match="window_rows: expected an odd size"):
        CpuExecutor(replace(made.program, ops=tuple(ops)), made.sources)


def test_wrong_shapes() -> None:
    made = convolution()
    ops = [replace(op, attrs={**op.attrs, "size": 5}) if op.kind == "window_rows" else op for op in made.program.ops]
    with pytest.raises(ConfigError, match="window_rows"):
        CpuExecutor(replace(made.program, ops=tuple(ops)), made.sources)
    tracer = Tracer()
    w = Weights(tracer, AllNames())
    with pytest.raises(ConfigError, match="expected one row per token"):
        window_rows(gather_rows(embedding(w["wte"], Tokens().ids, 50, WIDTH), "first"), 3)
