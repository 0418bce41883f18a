"""Steps in which only the first tokens of a sequence are attended to: the others still get an output."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.errors import InputError
from fastattn.executors.cpu import CpuExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.ir import Step
from fastattn.graph.kinds import attention, embedding, linear
from fastattn.graph.rewrites import optimize
from fastattn.graph.tensor import Tokens, Tracer, Weights
from tests.reference.bounds import assert_close
from tests.reference.decoder_program import AllNames, DecoderProgram, decoder_program, random_sources, step_of
from tests.reference.op_by_op import check_program
from tests.reference.positioned_program import positioned_program
from tests.reference.targets import assert_same_on_targets, printed_on_targets

HEADS, HEAD_DIM, POSITIONS = 4, 20, 320
DTYPES = ("float32", "bfloat16", "int8", "int4")
LENGTHS, COUNTS = (7, 0, 64, 130, 1, 65, 100), (3, 0, 64, 65, 1, 1, 63)


def encoder(window: int = 0) -> DecoderProgram:
    tracer = Tracer()
    w, width = Weights(tracer, AllNames()), HEADS * HEAD_DIM
    x = embedding(w["wte"], Tokens().ids, 50, width)
    for layer in range(2):
        b = w[f"h.{layer}"]
        q, k, v = (linear(x, b[name], width, bias=False) for name in "qkv")
        y = attention(q, k, v, layer=layer, n_head=HEADS, causal=False, window=window)
        x = x + linear(y, b["o"], width, bias=False)
    program = tracer.program({"y": x}, POSITIONS)
    return DecoderProgram(program, random_sources(program, scaled=True))


def executor_of(made: DecoderProgram, *, dtype: str = "float32", threads: int = 2) -> CpuExecutor:
    return CpuExecutor(optimize(made.program), made.sources, dtype=dtype, threads=threads)


def counted(lengths: tuple[int, ...], counts: tuple[int, ...]) -> Step:
    return replace(step_of(*lengths), key_counts=np.array(counts, np.int32))


def rows_of(made: DecoderProgram, lengths: tuple[int, ...], counts: tuple[int, ...], dtype: str) -> NDArray[np.float32]:
    found: NDArray[np.float32] = executor_of(made, dtype=dtype).run(counted(lengths, counts))["y"]
    return found


def test_the_formula() -> None:
    """In float64, the last tokens change nothing for the first ones, and each of them sees only the first ones."""
    made = encoder()
    executor = NumpyExecutor(made.program, made.sources)
    found = executor.run(counted((9,), (4,)))["y"]
    assert isinstance(found, np.ndarray)
    expected = np.asarray(executor.run(step_of(4))["y"])
    assert_close(found[:4], expected, made.program, longest=4, scale=float(np.abs(expected).max()))
    other = replace(counted((9,), (4,)), token_ids=np.array([3, 10, 17, 24, 31, 0, 1, 2, 3], np.int32))
    assert np.array_equal(np.asarray(executor.run(other)["y"])[:5], found[:5])
    assert not np.array_equal(np.asarray(executor.run(step_of(9))["y"])[:4], found[:4])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, 130])
def test_every_op(dtype: str, window: int) -> None:
    made = encoder(window)
    check_program(optimize(made.program), made.sources, counted(LENGTHS, COUNTS), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits(dtype: str) -> None:
    """Alone, in a batch, on any number of threads; and the first tokens as if there were no others."""
    made = encoder()
    expected = {(n, count): rows_of(made, (n,), (count,), dtype) for n, count in zip(LENGTHS, COUNTS, strict=True) if n}
    for (_, count), rows in expected.items():
        assert rows[:count].tobytes() == executor_of(made, dtype=dtype).run(step_of(count))["y"].tobytes()
    for threads in (1, 2, 3):
        executor = executor_of(made, dtype=dtype, threads=threads)
        for order in (slice(None), slice(None, None, -1)):
            lengths, counts = LENGTHS[order], COUNTS[order]
            batch = np.split(executor.run(counted(lengths, counts))["y"], np.cumsum(lengths)[:-1])
            for key, found in zip(zip(lengths, counts, strict=True), batch, strict=True):
                assert not key[0] or found.tobytes() == expected[key].tobytes()


PRINT = """
import hashlib
from fastattn import _core
from tests.program.test_key_counts import COUNTS, LENGTHS, encoder, rows_of
for dtype in ("float32", "int8", "int4", "bfloat16"):
    if dtype == "bfloat16" and _core.bfloat16_sums(_core.active_target()) != "portable":
        continue
    print(hashlib.sha256(rows_of(encoder(), LENGTHS, COUNTS, dtype).tobytes()).hexdigest())
"""


def test_all_targets_have_the_same_bits() -> None:
    assert_same_on_targets(printed_on_targets(PRINT), count=4, without_bfloat16=3)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((3, 3, 3), "key_counts: expected one per sequence"),
        ((0, 2), "key_counts: expected 1 to 5 for sequence 0, got 0"),
        ((5, 3), "key_counts: expected 1 to 2 for sequence 1, got 3"),
        ((-1, 2), "key_counts: expected 1 to 5 for sequence 0, got -1"),
    ],
)
def test_wrong_counts(counts: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        executor_of(encoder()).run(counted((5, 2), counts))


def test_other_attention_is_refused() -> None:
    with pytest.raises(InputError, match="expected at most 8 tokens, the window of attention, in sequence 1, got 9"):
        executor_of(encoder(8)).run(counted((8, 9), (4, 4)))
    executor_of(encoder(8)).run(counted((8, 9), (4, 9)))  # all keys of the longer one are attended to
    for made in (decoder_program(), positioned_program(), decoder_program(causal=False, bias="alibi")):
        with pytest.raises(InputError, match="expected none with causal attention, a bias or tables of positions"):
            executor_of(made).run(counted((5,), (4,)))
