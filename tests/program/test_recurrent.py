"""lstm, gru and attention of one query: near the formulas and torch, and the same bits however they run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.errors import ConfigError, InputError
from fastattn.executors.cpu import CpuExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.cost import ALL_FLOAT32, StepShape
from fastattn.graph.ir import Program
from fastattn.graph.kinds import (
    KINDS,
    Projection,
    embedding,
    features,
    gather_rows,
    gru,
    linear,
    lstm,
    sequence_probs,
    weighted_sum,
)
from fastattn.graph.kinds import window_rows as windows
from fastattn.graph.rewrites import optimize
from fastattn.graph.tensor import Tokens, Tracer, Weights
from fastattn.tasks.op_errors import every_value
from tests.reference.decoder_program import AllNames, DecoderProgram, random_sources, step_of
from tests.reference.recurrent_program import HIDDEN, PROJECTED, recurrent_program, recurrent_step
from tests.reference.targets import assert_same_on_targets, printed_on_targets

WIDE = 900
CELLS = ("lstm", "gru", "elmo")
DTYPES = ("float32", "bfloat16", "int8", "int4")
LENGTHS = (1, 2, 17, 40)


def executor_of(made: DecoderProgram, *, dtype: str = "float32", threads: int = 2) -> CpuExecutor:
    return CpuExecutor(optimize(made.program), made.sources, dtype=dtype, threads=threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_every_step_is_near_the_formula(kind: str, dtype: str) -> None:
    """Each row of a recurrence is near the formula of one step from the state that the CPU computed before it."""
    made = recurrent_program(kind)
    program, step = every_value(optimize(made.program)), recurrent_step(3, 0, 9, 1)
    values = CpuExecutor(program, made.sources, dtype=dtype, threads=2).run(step)
    exact = NumpyExecutor(program, made.sources, dtype=dtype)
    ops = [op for op in program.ops if op.kind == kind and not op.attrs["has_state"]]
    by_value = {index: np.asarray(values[name], np.float64) for name, index in program.outputs.items()}
    assert {op.attrs["reverse"] for op in ops} == {False, True}
    for op in ops:
        one = replace(op, inputs=(*op.inputs, op.inputs[0]), attrs={**op.attrs, "has_state": True})
        gates, found = by_value[op.inputs[0]], by_value[op.output]
        for start, end in ((0, 3), (3, 12), (12, 13)):
            order = range(end - 1, start - 1, -1) if op.attrs["reverse"] else range(start, end)
            state = np.zeros((1, found.shape[1]))
            for row in order:
                expected = np.asarray(exact.evaluate(one, step_of(1), gates[row : row + 1], state))
                # sums of HIDDEN terms of magnitude below 4 over gates with slopes of at most 1, and few functions
                assert np.abs(found[row] - expected[0]).max() <= (HIDDEN + 40) * 4 * 2.0**-24
                state = found[row : row + 1]


@pytest.mark.parametrize("kind", CELLS)
def test_the_program_is_near_the_formulas(kind: str) -> None:
    made, step = recurrent_program(kind, bias=kind != "gru"), recurrent_step(3, 1, 20, 0, 2)
    expected = NumpyExecutor(made.program, made.sources).run(step)
    found = executor_of(made).run(step)
    single = NumpyExecutor(made.program, made.sources, precision=np.float32).run(step)
    for name, value in expected.items():
        error = np.abs(np.asarray(single[name], np.float64) - value).max()
        assert error > 0.0  # of the plain formula in float32
        assert np.abs(np.asarray(found[name]) - value).max() <= 4 * error + 2.0**-22


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", CELLS)
def test_same_bits(kind: str, dtype: str) -> None:
    """Alone, in a batch in any order, on any number of threads, fused or not."""
    made = recurrent_program(kind)
    first = executor_of(made, dtype=dtype, threads=1)
    expected = {n: first.run(recurrent_step(n)) for n in LENGTHS}
    for threads in (1, 2, 3):
        executor = executor_of(made, dtype=dtype, threads=threads)
        for order in (LENGTHS, LENGTHS[::-1], LENGTHS[2:] + LENGTHS[:2] + (0,)):
            batch: dict[str, Any] = executor.run(recurrent_step(*order))
            for name in ("y", "probs"):
                for n, rows in zip(order, np.split(batch[name], np.cumsum(order)[:-1]), strict=True):
                    assert n == 0 or rows.tobytes() == np.asarray(expected[n][name]).tobytes()
            for n, row in zip(order, batch["z"], strict=True):
                assert n == 0 or row.tobytes() == np.asarray(expected[n]["z"]).tobytes()
    plain = CpuExecutor(made.program, made.sources, dtype=dtype, threads=2).run(recurrent_step(17))
    assert np.asarray(plain["z"]).tobytes() == np.asarray(expected[17]["z"]).tobytes()


def wide(kind: str) -> DecoderProgram:
    """Trace one layer whose weights are so large that all threads share them."""
    tracer = Tracer()
    w, x = Weights(tracer, AllNames()), features(tracer, 0, "tokens", 3)
    part = linear(x, w["input"], (3 if kind == "gru" else 4) * WIDE)
    if kind == "gru":
        y = gru(part, w["hidden"], WIDE)
    else:
        down = Projection(w["down"], WIDE - 30, 0.5) if kind == "elmo" else None
        y = lstm(part, w["hidden"], WIDE, reverse=True, cells=True, projection=down)
    program = tracer.program({"y": y}, 100)
    return DecoderProgram(program, random_sources(program, scaled=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", CELLS)
def test_same_bits_of_large_weights(kind: str, dtype: str) -> None:
    made, lengths = wide(kind), (1, 3, 0, 4)
    expected = {n: executor_of(made, dtype=dtype, threads=1).run(recurrent_step(n))["y"] for n in set(lengths)}
    if dtype == "float32":
        exact = np.asarray(NumpyExecutor(made.program, made.sources).run(recurrent_step(4))["y"])
        # four steps, each with sums of WIDE terms whose magnitudes add up to less than 30, and a few functions
        assert np.abs(expected[4] - exact).max() <= 4 * (WIDE + 40) * 30 * 2.0**-24
    for threads in (1, 2):
        found = executor_of(made, dtype=dtype, threads=threads).run(recurrent_step(*lengths))["y"]
        for n, rows in zip(lengths, np.split(found, np.cumsum(lengths)[:-1]), strict=True):
            assert rows.tobytes() == np.asarray(expected[n]).tobytes()


PRINT = """
import hashlib
from fastattn import _core
from tests.program.test_recurrent import executor_of
from tests.reference.recurrent_program import recurrent_program, recurrent_step
for dtype in ("float32", "int8", "int4", "bfloat16"):
    if dtype == "bfloat16" and _core.bfloat16_sums(_core.active_target()) != "portable":
        continue
    digest = hashlib.sha256()
    for kind in ("lstm", "gru", "elmo"):
        found = executor_of(recurrent_program(kind), dtype=dtype).run(recurrent_step(9, 1, 30))
        for name in ("y", "z", "probs"):
            digest.update(found[name].tobytes())
    print(digest.hexdigest())
"""


def test_all_targets_have_the_same_bits() -> None:
    assert_same_on_targets(printed_on_targets(PRINT), count=4, without_bfloat16=3)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_formulas_are_those_of_torch(kind: str) -> None:
    torch = pytest.importorskip("torch")
    made, step = recurrent_program(kind), recurrent_step(6)
    exact = NumpyExecutor(every_value(made.program), made.sources)
    values: dict[str, Any] = exact.run(step)
    module = (torch.nn.GRU if kind == "gru" else torch.nn.LSTM)(27, HIDDEN, bidirectional=True, dtype=torch.float64)
    names = {
        "weight_ih": "input.weight",
        "weight_hh": "hidden.weight",
        "bias_ih": "input.bias",
        "bias_hh": "hidden.bias",
    }
    with torch.no_grad():
        for ending, direction in (("_l0", "forward"), ("_l0_reverse", "backward")):
            for theirs, ours in names.items():
                getattr(module, theirs + ending).copy_(torch.tensor(exact.values(f"{direction}.{ours}")))
        expected = module(torch.tensor(values["concat.0"]))[0].numpy()
    for number, part in enumerate(np.split(expected, 2, axis=1)):
        assert np.abs(values[f"{kind}.{number}"][:, :HIDDEN] - part).max() <= 1e-13


@pytest.mark.torch
def test_windows_inside_give_the_maximum_of_a_convolution_without_padding() -> None:
    torch = pytest.importorskip("torch")
    tracer = Tracer()
    x = embedding(Weights(tracer, AllNames())["wte"], Tokens().ids, 50, 4)
    program = tracer.program({"y": windows(x, 3, inside=True)}, 100)
    table = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    step, sources = step_of(9, 3, 2, 7), DecoderProgram(program, _sources({"wte.weight": table})).sources
    for executor in (CpuExecutor(program, sources), NumpyExecutor(program, sources)):
        rows = np.asarray(executor.run(step)["y"])
        weight = np.random.default_rng(1).standard_normal((5, 4, 3)).astype(np.float32)
        for start, end in ((0, 9), (9, 12), (14, 21)):
            columns = torch.tensor(table[step.token_ids[start:end]].T[None])
            expected = torch.nn.functional.conv1d(columns, torch.tensor(weight))[0].numpy().max(axis=1)
            found = (rows[start:end] @ weight.transpose(0, 2, 1).reshape(5, 12).T).max(axis=0)
            assert np.abs(found - expected).max() <= 1e-5
        assert (rows[12:14, 8:] == 0).all()  # a sequence that is shorter than the window


def _sources(arrays: dict[str, NDArray[np.float32]]) -> Any:
    from fastattn.checkpoint import array_sources

    return array_sources(arrays)


def test_cost() -> None:
    program = recurrent_program("elmo").program
    op = next(op for op in program.ops if op.kind == "lstm")
    cost = KINDS["lstm"].cost(program, op, StepShape((5, 0, 2)), ALL_FLOAT32)
    weights = 4 * HIDDEN * PROJECTED + PROJECTED * HIDDEN
    assert cost.multiply_adds == 7 * weights
    assert cost.weight_bytes == 4 * (weights + 4 * HIDDEN)
    assert KINDS["lstm"].cost(program, op, StepShape((0,)), ALL_FLOAT32).weight_bytes == 0


def test_wrong_features() -> None:
    made = recurrent_program("gru")
    step = recurrent_step(4)
    for executor in (executor_of(made), NumpyExecutor(made.program, made.sources)):
        for given in ((), step.features[:1], (step.features[0][:3], step.features[1]), step.features[::-1]):
            with pytest.raises(InputError, match="features: expected"):
                executor.run(replace(step, features=given))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden": HIDDEN - 1},
        {"hidden": 0},
        {"width": HIDDEN},
        {"width": 0},
        {"has_state": True},
        {"has_bias": False},
        {"has_projection": False},
        {"cells": True},
        {"cell_clip": -1.0},
        {"projection_clip": float("nan")},
    ],
)
def test_wrong_attrs_of_lstm(change: dict[str, Any]) -> None:
    made = recurrent_program("elmo")
    with pytest.raises(ConfigError, match=r"lstm|weight"):
        CpuExecutor(_changed(made.program, "lstm", change), made.sources)


def _changed(program: Program, kind: str, change: dict[str, Any]) -> Program:
    ops = [replace(op, attrs={**op.attrs, **change}) if op.kind == kind else op for op in program.ops]
    return replace(program, ops=tuple(ops))


def test_wrong_shapes() -> None:
    tracer = Tracer()
    w = Weights(tracer, AllNames())
    x, s = features(tracer, 0, "tokens", 12), features(tracer, 1, "sequences", 3)
    with pytest.raises(ConfigError, match="gates: expected 16 columns"):
        lstm(x, w["a"], 4)
    with pytest.raises(ConfigError, match="state: expected 4 columns"):
        gru(x, w["a"], 4, state=s)
    with pytest.raises(ConfigError, match="gates: expected 12 columns for tokens or sequences"):
        gru(gather_rows(x, "wanted"), w["a"], 4)
    with pytest.raises(ConfigError, match="sequence_probs"):
        sequence_probs(s, x)
    with pytest.raises(ConfigError, match="weighted_sum"):
        weighted_sum(x, x)
