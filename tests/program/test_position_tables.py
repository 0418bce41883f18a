"""Attention with tables of relative positions in Programs: near the formulas, with equal bits."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.checkpoint import ArraySource
from fastattn.errors import ConfigError, ContextLengthError, InputError
from fastattn.executors.cpu import CpuExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.cost import ALL_FLOAT32, StepShape
from fastattn.graph.kinds import KINDS, attention, embedding
from fastattn.graph.position_tables import Columns, PositionTables, column_reach
from fastattn.graph.quantize import weight_formats
from fastattn.graph.rewrites import optimize, with_outputs
from fastattn.graph.tensor import Tokens, Tracer, Weights
from tests.program.test_decoder_ops import alone, executor_of
from tests.reference.bounds import assert_close
from tests.reference.decoder_program import POSITIONS, AllNames, DecoderProgram, step_of
from tests.reference.op_by_op import check_program
from tests.reference.positioned_program import HEAD_DIM, HEADS, columns, positioned_program
from tests.reference.targets import assert_same_on_targets, printed_on_targets

KINDS_OF_TABLES = ("k", "q", "kq")
FORMATS = (("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "int8"), ("int4", "int8"))
LENGTHS = (1, 6, 17, 63, 64, 65, 130, 200)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kinds", KINDS_OF_TABLES)
@pytest.mark.parametrize("which", [None, "wanted", "first", "last"])
def test_every_op(dtype: str, kinds: str, which: str | None) -> None:
    made = positioned_program(kinds=kinds, which=which)
    for program in (made.program, optimize(made.program)):
        check_program(program, made.sources, step_of(3, 0, 5, 1, 150, 0, wanted=[2, 4, 8, 30, 31, 98, 150]), dtype)


@pytest.mark.parametrize("linear_part", [0, 15, 16, 63, 64, 200])
@pytest.mark.parametrize("window", [0, 17, 64])
def test_columns_of_one_or_more_distances(linear_part: int, window: int) -> None:
    made = positioned_program(linear_part=linear_part, window=window, layers=1)
    check_program(made.program, made.sources, step_of(POSITIONS, 1, 64), "float32")


@pytest.mark.parametrize("positions", [1, 2, 63, 64, 65, 100])
def test_texts_as_long_as_the_table(positions: int) -> None:
    made = positioned_program(positions=positions, layers=1)
    check_program(made.program, made.sources, step_of(positions, 1), "float32")


@pytest.mark.parametrize(("dtype", "kv_dtype"), FORMATS)
@pytest.mark.parametrize("kinds", KINDS_OF_TABLES)
@pytest.mark.parametrize("which", [None, "last"])
def test_same_bits(dtype: str, kv_dtype: str, kinds: str, which: str | None) -> None:
    """Alone, in a batch in any order, on any number of threads, fused or not."""
    made = positioned_program(kinds=kinds, which=which)
    options = {"dtype": dtype, "kv_dtype": kv_dtype}
    expected = {n: alone(executor_of(made, threads=1, **options), n) for n in LENGTHS}
    for threads in (1, 2, 3):
        executor = executor_of(made, threads=threads, **options)
        for order in (LENGTHS, LENGTHS[::-1]):
            batch = executor.run(step_of(*order))["y"]
            rows = [n if which is None else 1 for n in order]
            for n, found in zip(order, np.split(batch, np.cumsum(rows)[:-1]), strict=True):
                assert found.tobytes() == expected[n].tobytes()
        # With fewer than four heads per thread, query rows are split too.
        assert alone(executor, 200).tobytes() == expected[200].tobytes()
    plain = CpuExecutor(made.program, made.sources, threads=2, **options)
    assert alone(plain, 130).tobytes() == expected[130].tobytes()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_wanted_rows_have_the_bits_of_all_rows(dtype: str) -> None:
    wanted = [0, 1, 5, 62, 63, 64, 100, 140, 141, 142, 199]
    whole = alone(executor_of(positioned_program(), dtype=dtype), 200)
    executor = executor_of(positioned_program(which="wanted"), dtype=dtype)
    assert executor.run(step_of(200, wanted=wanted))["y"].tobytes() == whole[wanted].tobytes()


PRINT = """
import hashlib
from fastattn import _core
from tests.program.test_decoder_ops import alone, executor_of
from tests.program.test_position_tables import FORMATS, KINDS_OF_TABLES
from tests.reference.positioned_program import positioned_program
for kinds in KINDS_OF_TABLES:
    for dtype, kv_dtype in FORMATS:
        if dtype != "bfloat16" or _core.bfloat16_sums(_core.active_target()) == "portable":
            executor = executor_of(positioned_program(kinds=kinds), dtype=dtype, kv_dtype=kv_dtype)
            print(hashlib.sha256(alone(executor, 150).tobytes()).hexdigest())
"""


def test_all_targets_have_the_same_bits() -> None:
    assert_same_on_targets(printed_on_targets(PRINT), count=12, without_bfloat16=9)


@pytest.mark.parametrize("kinds", KINDS_OF_TABLES)
def test_attention_maps(kinds: str) -> None:
    made = positioned_program(kinds=kinds, window=70)
    marked = with_outputs(made.program, attentions=True)
    executor = CpuExecutor(optimize(marked), made.sources, threads=2)
    step = step_of(5, 0, 100)
    found, exact = executor.run(step), NumpyExecutor(marked, made.sources).run(step)
    for layer in range(2):
        for ours, theirs in zip(found[f"attentions.{layer}"], exact[f"attentions.{layer}"], strict=True):
            assert_close(ours, theirs, marked, longest=100, scale=float(np.abs(exact["y"]).max()))
            assert not ours[theirs == 0].any()


def test_nan_reaches_only_the_rows_that_see_it() -> None:
    made, length, at, window = positioned_program(window=8, layers=1), 45, 20, 8  # no id occurs twice in 50 tokens
    clean = alone(executor_of(made), length)
    table = NumpyExecutor(made.program, made.sources).values("wte.weight").astype(np.float32)
    table[step_of(length).token_ids[at]] = np.nan
    poisoned = DecoderProgram(made.program, {**made.sources, "wte.weight": ArraySource("wte.weight", table)})
    found = alone(executor_of(poisoned), length)
    near = slice(at - window + 1, at + window)
    assert np.isnan(found[near]).all()
    for rows in (slice(0, near.start), slice(near.stop, length)):
        assert found[rows].tobytes() == clean[rows].tobytes()


def test_columns() -> None:
    """A panel ends at relative position 0. Equal neighbors share a column; the columns ascend by 0 or 1."""
    made = Columns(index=(3, 2, 2, 1, 1, 0, 0))
    assert (made.positions, made.n_columns) == (4, 128)
    assert made.indices.tolist() == [-1] * 61 + [3, 2, 1, 0] + [-1] * 63
    table, reach = made.rows(0, 1)[0], column_reach(4)
    assert made.shape == (1, 2 * reach + 1)
    assert table[reach - 3 : reach + 4].tolist() == [61, 62, 62, 63, 63, 64, 64]
    assert set(table[: reach - 3]) == {61}
    assert set(table[reach + 4 :]) == {64}
    every = Columns(index=tuple(range(5, -6, -1)))
    assert every.n_columns == 128
    assert np.diff(every.rows(0, 1)[0]).tolist().count(1) == 10
    with pytest.raises(ConfigError, match="columns: expected as many relative positions before 0 as after, got 2"):
        Columns(index=(1, 0))


def test_texts_beyond_the_table() -> None:
    made = positioned_program(positions=70)
    for executor in (executor_of(made), NumpyExecutor(made.program, made.sources)):
        with pytest.raises(ContextLengthError, match="sequence 1: 71 positions, "):
            executor.run(step_of(1, 71))
    longer = replace(made.program, max_positions=90)
    with pytest.raises(ConfigError, match="attention: expected columns for 90 positions, got 70"):
        CpuExecutor(longer, made.sources)


def test_caches_are_refused() -> None:
    executor = executor_of(positioned_program())
    with pytest.raises(InputError, match="caches: expected none, because attention has tables of positions"):
        executor.run(step_of(3, caches=[executor.new_cache()]))


def changed(made: DecoderProgram, **attrs: int | bool) -> None:
    ops = [replace(op, attrs={**op.attrs, **attrs}) if op.kind == "attention" else op for op in made.program.ops]
    CpuExecutor(replace(made.program, ops=tuple(ops)), made.sources)


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"n_columns": 0}, "expected n_columns as a multiple of 64, got 0"),
        ({"n_columns": 65}, "expected n_columns as a multiple of 64, got 65"),
        ({"n_columns": 2**31 - 64}, "expected n_columns as a multiple of 64, got 2147483584"),
        ({"n_columns": 64}, "weight h.0.keys.weight does not fit its op"),
        ({"causal": True}, "expected position tables only without causal and bias"),
        ({"has_position_keys": False}, "expected 2 weights, got 3"),
        ({"has_columns": False}, "expected 2 weights, got 3"),
        ({"has_bias": True, "bias_positions": POSITIONS}, "expected 4 weights, got 3"),
        ({"column_positions": POSITIONS + 64}, "weight columns.weight does not fit its op"),
        ({"column_positions": 5}, "expected columns for 320 positions, got 5"),
    ],
)
def test_programs_that_do_not_fit(attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        changed(positioned_program(), **attrs)


def test_columns_without_tables_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected columns only with position keys or position queries"):
        changed(_without_tables(), n_columns=64)


def _without_tables() -> DecoderProgram:
    made = positioned_program(layers=1)
    attrs = {"has_columns": False, "has_position_keys": False, "has_position_queries": False, "column_positions": 0}
    ops = [
        replace(op, weights=(), attrs={**op.attrs, **attrs, "n_columns": 0}) if op.kind == "attention" else op
        for op in made.program.ops
    ]
    return DecoderProgram(replace(made.program, ops=tuple(ops)), made.sources)


@pytest.mark.parametrize(
    ("at", "value"), [(0, -1.0), (5, 0.5), (9, np.nan), (400, 1e9), (-1, 0.0), (50, np.inf), (3, 640.0)]
)
def test_a_table_of_columns_with_other_numbers(at: int, value: float) -> None:
    """A file may have any numbers; attention reads memory by them."""
    made = positioned_program()
    table: NDArray[np.float32] = columns().rows(0, 1).copy()
    table[0, at] = value
    with pytest.raises(ConfigError, match=r"attention: columns: expected integers from 0 to \d+, each the same as"):
        CpuExecutor(made.program, {**made.sources, "columns.weight": ArraySource("columns.weight", table)})


def test_arguments_that_do_not_fit() -> None:
    tracer = Tracer()
    w = Weights(tracer, AllNames())
    x = embedding(w["wte"], Tokens().ids, 50, 24)
    tables = PositionTables(columns=w["columns"], keys=w["keys"], queries=None, n_columns=64, positions=7)
    for wrong in ({"causal": True}, {"causal": False, "bias": w["bias"], "bias_positions": 7}):
        with pytest.raises(ConfigError, match="attention: expected position tables only without causal and bias"):
            attention(x, x, x, layer=0, n_head=2, tables=tables, **wrong)


def test_formats_of_the_tables() -> None:
    """The columns stay in float32. The others have the format of the weights; int4 has int8."""
    program = positioned_program().program
    for dtype, expected in (("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "int8"), ("int4", "int8")):
        formats = weight_formats(program, dtype)
        assert formats["columns.weight"] == "float32"
        assert formats["h.0.keys.weight"] == formats["h.1.queries.weight"] == expected


@pytest.mark.parametrize(("kinds", "n_tables"), [("k", 1), ("q", 1), ("kq", 2)])
def test_cost(kinds: str, n_tables: int) -> None:
    """Products with the columns that a text needs, on top of those with keys and values."""
    program = positioned_program(kinds=kinds, layers=1).program
    op = next(op for op in program.ops if op.kind == "attention")
    plain = replace(op, attrs={**op.attrs, "has_columns": False}, weights=())
    shape = StepShape((10, 3))
    cost, without = (KINDS["attention"].cost(program, o, shape, ALL_FLOAT32) for o in (op, plain))
    assert cost.multiply_adds - without.multiply_adds == n_tables * (10 * 10 + 3 * 3) * HEADS * HEAD_DIM
    assert cost.weight_bytes == 4 * (19 + n_tables * HEADS * 19 * HEAD_DIM)
