"""The table of cosines and sines, the rotary op in Programs, and rms_norm and multiply beside it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.errors import ConfigError, InputError
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.cost import Formats, StepShape
from fastattn.graph.ir import Program, Step
from fastattn.graph.kinds import attention, embedding, gather_rows, linear, rms_norm, rotary
from fastattn.graph.kinds.rotary import pairs
from fastattn.graph.quantize import weight_formats
from fastattn.graph.rewrites import optimize
from fastattn.graph.rotary_table import RotaryTable
from fastattn.graph.step_cost import op_cost
from fastattn.graph.tensor import Tensor, Tokens, Tracer, Weights
from fastattn.models.rope import Rope
from tests import tolerances
from tests.reference.bounds import assert_close
from tests.reference.decoder_program import AllNames, sources_of, step_of

PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")
HEADS, HEAD_DIM, POSITIONS = 2, 12, 40
FREQUENCIES = tuple(10000.0 ** (-i / 6) for i in range(6))


def cosine_and_sine(angle: Decimal) -> tuple[float, float]:
    """Sum the Taylor series with 80 digits."""
    with localcontext(Context(prec=80)):
        angle = angle % (2 * PI)
        terms, k = [Decimal(1)], 0
        while abs(terms[-1]) > Decimal(10) ** -60:
            k += 1
            terms.append(terms[-1] * angle / k)
        cosine = sum(term * (-1) ** (k // 2) for k, term in enumerate(terms) if k % 2 == 0)
        sine = sum(term * (-1) ** (k // 2) for k, term in enumerate(terms) if k % 2 == 1)
        return float(cosine), float(sine)


@pytest.mark.parametrize("interleaved", [False, True])
def test_table_is_accurate_at_every_position(interleaved: bool) -> None:
    """A float32 angle would be wrong by 2^-8 at position 131,071."""
    frequencies = (*(500000.0 ** (-i / 16) for i in range(16)), 0.0)
    table = RotaryTable(frequencies=frequencies, positions=2**20, factor=1.25, interleaved=interleaved)
    first, second = pairs(table.shape[1], interleaved=interleaved)
    for position in (0, 1, 255, 256, 1000, 8191, 131071, 131072, 1000003, 2**20 - 1):
        row = table.rows(position, position + 1)[0].astype(np.float64)
        angles = [Decimal(position) * Decimal(frequency) for frequency in frequencies]
        exact = 1.25 * np.array([cosine_and_sine(angle) for angle in angles])
        for found, expected in ((row[first], exact[:, 0]), (row[second], exact[:, 1])):
            bound = tolerances.rotary_table(np.array(angles, np.float64), expected, factor=1.25)
            assert (np.abs(found - expected) <= bound).all()


def test_rows_of_the_table_do_not_depend_on_the_others() -> None:
    table = RotaryTable(frequencies=FREQUENCIES, positions=1500)
    whole = table.rows(0, 1500)
    for begin, end in ((0, 0), (0, 1), (100, 700), (255, 257), (256, 512), (1499, 1500)):
        assert table.rows(begin, end).tobytes() == whole[begin:end].tobytes()


def test_angles_that_are_too_large() -> None:
    RotaryTable(frequencies=(1.0,), positions=2**20)
    with pytest.raises(ConfigError, match="expected angles up to 2\\^20 radians, got 1048577 for 1048577 positions"):
        RotaryTable(frequencies=(1.0, 0.1), positions=2**20 + 1)
    with pytest.raises(ConfigError, match="expected angles up to"):
        RotaryTable(frequencies=(float("nan"),), positions=1)


class Model:
    """A Program with queries and keys that rotate, and its weights."""

    def __init__(self, *, interleaved: bool = False, dimensions: int = 8, which: str | None = None) -> None:
        tracer = Tracer()
        w, width = Weights(tracer, AllNames()), HEADS * HEAD_DIM
        options = {"dimensions": dimensions, "max_positions": POSITIONS, "interleaved": interleaved}
        x = self.embedded = embedding_of(w, width)
        normed = rms_norm(x, w["norm"], 1e-6)
        q, k, v = (linear(normed, w[name], width, bias=False) for name in "qkv")
        q = rotary(rms_norm(q, w["q_norm"], 1e-5, groups=HEADS), w["angles"], n_head=HEADS, **options)
        k = rotary(k, w["angles"], n_head=HEADS, **options)
        y = x + attention(q, k, v, layer=0, n_head=HEADS, causal=True)
        y = linear(normed, w["up"], width, bias=False) * y
        outputs = {"y": y if which is None else gather_rows(y, which)}
        self.program = tracer.program(outputs, POSITIONS)
        rope = Rope(FREQUENCIES[: dimensions // 2])
        self.table = RotaryTable(frequencies=rope.frequencies, positions=POSITIONS, interleaved=interleaved)

        self.sources = sources_of(self.program, self.table)

    def run(self, step: Step, program: Program | None = None) -> NDArray[np.float64]:
        return np.asarray(NumpyExecutor(program or self.program, self.sources).run(step)["y"])


def embedding_of(w: Weights, width: int) -> Tensor:
    return embedding(w["wte"], Tokens().ids, 50, width)


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_the_distance_only(interleaved: bool) -> None:
    """The property that rotary is for: moving all positions changes a score only by the roundings of the table."""
    model = Model(interleaved=interleaved, dimensions=HEAD_DIM)
    executor = NumpyExecutor(model.program, model.sources)
    op = next(op for op in model.program.ops if op.kind == "rotary")
    q, k = np.random.default_rng(1).standard_normal((2, 7, HEADS * HEAD_DIM))

    def scores(first: int) -> NDArray[np.float64]:
        step = step_of(7, first=first)
        a, b = (np.asarray(executor.evaluate(op, step, x)).reshape(7, HEADS, HEAD_DIM) for x in (q, k))
        return np.einsum("ihd,jhd->hij", a, b)

    # A rotated element is wrong by less than U times the magnitudes of its pair.
    first, second = pairs(HEAD_DIM, interleaved=interleaved)
    sizes = [np.abs(x[..., first]) + np.abs(x[..., second]) for x in (q.reshape(7, HEADS, -1), k.reshape(7, HEADS, -1))]
    bound = 2 * 2 * tolerances.gamma(2) * np.einsum("ihd,jhd->hij", *sizes)
    assert (np.abs(scores(0) - scores(30)) <= bound).all()
    assert not np.array_equal(scores(0), scores(30))


@pytest.mark.parametrize("which", ["wanted", "first", "last"])
def test_only_the_gathered_rows_are_rotated(which: str) -> None:
    """The rewrite computes rotary for the rows that are read, with the positions of their tokens."""
    model = Model(which=which)
    step = step_of(3, 0, 5, 1, wanted=[2, 4, 8])
    optimized = optimize(model.program)
    assert [op.attrs["rows"] for op in optimized.ops if op.kind == "rotary"] == [which, "tokens"]
    assert [op.kind for op in optimized.ops].count("linear") == 2  # q, k and v are one
    expected = model.run(step)
    assert_close(model.run(step, optimized), expected, model.program, longest=5, scale=8 * np.abs(expected).max())
    assert optimize(optimized) == optimized


def test_tables_stay_in_float32_and_are_counted_once() -> None:
    program = Model().program
    for dtype in ("bfloat16", "int8", "int4"):
        formats = weight_formats(program, dtype)
        assert formats["angles.weight"] == "float32"
        assert formats["wte.weight"] != "float32"
    shape = StepShape((5, 2))
    costs = [op_cost(program, op, shape, Formats()).weight_bytes for op in program.ops if op.kind == "rotary"]
    assert costs == [7 * 8 * 4, 0]
    norms = [op_cost(program, op, shape, Formats()).weight_bytes for op in program.ops if op.kind == "rms_norm"]
    assert norms == [HEADS * HEAD_DIM * 4, HEAD_DIM * 4]


def test_positions_that_the_table_does_not_have() -> None:
    step = replace(step_of(3), positions=np.array([0, POSITIONS, 1], np.int32))
    with pytest.raises(InputError, match="positions: expected 0 to 39, got 40 in row 1"):
        Model().run(step)


def test_shapes_that_do_not_fit() -> None:
    w = Weights(Tracer(), AllNames())
    x = embedding_of(w, 24)
    for n_head, dimensions in ((2, 7), (2, 14), (2, 0), (5, 4)):
        with pytest.raises(ConfigError, match="rotary: expected one row per token and an even number of dimensions"):
            rotary(x, w["angles"], n_head=n_head, dimensions=dimensions, max_positions=9)
    with pytest.raises(ConfigError, match="rms_norm: expected a width divisible by 5, got 24"):
        rms_norm(x, w["norm"], 1e-6, groups=5)
    with pytest.raises(ConfigError, match="multiply: expected two values of one shape"):
        x * gather_rows(x, "last")
