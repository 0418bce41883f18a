"""Attention with windows, soft caps and biases by relative position in Programs: near the formulas, with equal bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastattn.checkpoint import ArraySource
from fastattn.errors import ConfigError, ContextLengthError
from fastattn.executors.cpu import CpuExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.ir import Step
from fastattn.graph.kinds import attention, embedding
from fastattn.graph.quantize import weight_formats
from fastattn.graph.rewrites import optimize, with_outputs
from fastattn.graph.tensor import Tokens, Tracer, Weights
from tests.program.test_decoder_ops import alone, executor_of, in_chunks
from tests.reference.bounds import assert_close
from tests.reference.decoder_program import POSITIONS, AllNames, DecoderProgram, decoder_program, step_of
from tests.reference.op_by_op import check_program
from tests.reference.targets import assert_same_on_targets, printed_on_targets

WINDOWS = (1, 15, 16, 17, 63, 64, 65, 128, 1000)
VARIANTS: Mapping[str, dict[str, Any]] = {
    "window": {"window": 17},
    "alibi": {"bias": "alibi"},
    "learned": {"bias": "learned"},
    "both": {"window": 64, "bias": "learned"},
    "softcap": {"softcap": 1.5, "scaled": True},
    "softcap-window": {"softcap": 0.25, "window": 17},
}
FORMATS = (("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "int8"), ("int4", "int8"))


def made_with(variant: str, **options: Any) -> DecoderProgram:
    return decoder_program(layers=2, heads=4, **VARIANTS[variant], **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("which", [None, "wanted", "first", "last"])
def test_every_op(dtype: str, variant: str, causal: bool, which: str | None) -> None:
    made = made_with(variant, causal=causal, which=which)
    for program in (made.program, optimize(made.program)):
        check_program(program, made.sources, step_of(3, 0, 5, 1, 90, 0, wanted=[2, 4, 8, 98]), dtype)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("causal", [False, True])
def test_edges_of_windows(window: int, causal: bool) -> None:
    made = decoder_program(window=window, causal=causal)
    check_program(made.program, made.sources, step_of(130, 1, 64), "float32")


LENGTHS = (1, 6, 17, 64, 65, 130)


@pytest.mark.parametrize(("dtype", "kv_dtype"), FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("which", [None, "last"])
def test_same_bits(dtype: str, kv_dtype: str, variant: str, causal: bool, which: str | None) -> None:
    """Alone, in a batch in any order, on any number of threads, fused or not."""
    made = made_with(variant, causal=causal, which=which)
    options = {"dtype": dtype, "kv_dtype": kv_dtype}
    expected = {n: alone(executor_of(made, threads=1, **options), n) for n in LENGTHS}
    for threads in (1, 2, 3):
        executor = executor_of(made, threads=threads, **options)
        for order in (LENGTHS, LENGTHS[::-1], LENGTHS[2:] + LENGTHS[:2]):
            batch = executor.run(step_of(*order))["y"]
            rows = [n if which is None else 1 for n in order]
            for n, found in zip(order, np.split(batch, np.cumsum(rows)[:-1]), strict=True):
                assert found.tobytes() == expected[n].tobytes()
    plain = CpuExecutor(made.program, made.sources, threads=2, **options)
    assert alone(plain, 65).tobytes() == expected[65].tobytes()


@pytest.mark.parametrize(("dtype", "kv_dtype"), FORMATS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_with_a_cache_have_the_same_bits(dtype: str, kv_dtype: str, variant: str, chunk: int) -> None:
    executor = executor_of(made_with(variant), dtype=dtype, kv_dtype=kv_dtype)
    assert in_chunks(executor, 200, chunk).tobytes() == alone(executor, 200).tobytes()


@pytest.mark.parametrize("window", WINDOWS)
def test_chunks_at_the_edges_of_windows(window: int) -> None:
    executor = executor_of(decoder_program(window=window, heads=4))
    for chunk in (1, 64):
        assert in_chunks(executor, 200, chunk).tobytes() == alone(executor, 200).tobytes()


def test_sequences_of_several_lengths_decode_together() -> None:
    executor = executor_of(made_with("both"))
    lengths = (1, 63, 64, 100, 129)
    caches = [executor.new_cache() for _ in lengths]
    for cache, length in zip(caches, lengths, strict=True):
        executor.run(step_of(length, caches=[cache]))
    steps = [step_of(1, first=length) for length in lengths]
    together = executor.run(
        Step(
            token_ids=np.concatenate([step.token_ids for step in steps]),
            cu_seqlens=np.arange(len(lengths) + 1, dtype=np.int32),
            positions=np.array(lengths, np.int32),
            wanted=np.arange(len(lengths), dtype=np.int32),
            caches=tuple(caches),
        )
    )["y"]
    for row, length in enumerate(lengths):
        assert together[row].tobytes() == alone(executor, length + 1)[-1].tobytes()


PRINT = """
import hashlib
from fastattn import _core
from tests.program.test_attention_relative import FORMATS, VARIANTS, made_with
from tests.program.test_decoder_ops import alone, executor_of
for variant in VARIANTS:
    for dtype, kv_dtype in FORMATS:
        for causal in (False, True):
            if dtype != "bfloat16" or _core.bfloat16_sums(_core.active_target()) == "portable":
                made = made_with(variant, causal=causal)
                executor = executor_of(made, dtype=dtype, kv_dtype=kv_dtype)
                print(hashlib.sha256(alone(executor, 150).tobytes()).hexdigest())
"""


def test_all_targets_have_the_same_bits() -> None:
    assert_same_on_targets(printed_on_targets(PRINT), count=48, without_bfloat16=36)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [False, True])
def test_attention_maps(variant: str, causal: bool) -> None:
    """They are near the formula, exactly 0 where a row does not see, and the same in chunks."""
    made = made_with(variant, causal=causal)
    marked = with_outputs(made.program, attentions=True)
    executor = CpuExecutor(optimize(marked), made.sources, threads=2)
    step = step_of(5, 100)
    found, exact = executor.run(step), NumpyExecutor(marked, made.sources).run(step)
    for layer in range(2):
        for ours, theirs in zip(found[f"attentions.{layer}"], exact[f"attentions.{layer}"], strict=True):
            assert_close(ours, theirs, marked, longest=100, scale=float(np.abs(exact["y"]).max()))
            assert not ours[theirs == 0].any()
    if causal:
        cache = executor.new_cache()
        parts = [executor.run(step_of(20, first=at, caches=[cache])) for at in range(0, 100, 20)]
        for layer in range(2):
            whole = found[f"attentions.{layer}"][1]
            for at, part in zip(range(0, 100, 20), parts, strict=True):
                assert np.array_equal(part[f"attentions.{layer}"][0], whole[:, at : at + 20, : at + 20])


def test_a_cached_continuation_follows_the_formula() -> None:
    made = made_with("both")
    exact, executor = NumpyExecutor(made.program, made.sources), executor_of(made)
    expected = exact.run(step_of(90))["y"]
    caches = exact.new_cache(), executor.new_cache()
    for begin, length in ((0, 40), (40, 1), (41, 49)):
        found = [
            model.run(step_of(length, first=begin, caches=[cache]))["y"]
            for model, cache in zip((exact, executor), caches, strict=True)
        ]
        for result in found:
            assert_close(result, expected[begin : begin + length], made.program, longest=90)


def test_texts_beyond_the_table() -> None:
    """A Program may have a table for more positions than the model's limit, but not for fewer."""
    made = decoder_program(bias="alibi")
    longer = replace(made.program, max_positions=POSITIONS - 20)
    for executor in (CpuExecutor(longer, made.sources), NumpyExecutor(made.program, made.sources)):
        message = f"sequence 1: {POSITIONS + 1} positions, "
        with pytest.raises(ContextLengthError, match=message):
            executor.run(step_of(1, POSITIONS + 1))
    with pytest.raises(ConfigError, match=f"attention: expected biases for {POSITIONS + 1} positions, got {POSITIONS}"):
        CpuExecutor(replace(made.program, max_positions=POSITIONS + 1), made.sources)


def changed(made: DecoderProgram, **attrs: float | bool) -> None:
    ops = [replace(op, attrs={**op.attrs, **attrs}) if op.kind == "attention" else op for op in made.program.ops]
    CpuExecutor(replace(made.program, ops=tuple(ops)), made.sources)


def test_programs_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match="attention: expected a window of at least 0, got -1"):
        changed(decoder_program(window=3), window=-1)
    for softcap in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="attention: expected a finite softcap of at least 0"):
            changed(decoder_program(), softcap=softcap)
    with pytest.raises(ConfigError, match="attention: expected a finite softcap of at least 0, and 0 with a bias"):
        changed(decoder_program(bias="alibi"), softcap=1.0)
    with pytest.raises(ConfigError, match="attention: expected 1 weights, got 0"):
        changed(decoder_program(), has_bias=True, bias_positions=POSITIONS)
    with pytest.raises(ConfigError, match="attention: expected biases for 320 positions, got 5"):
        changed(decoder_program(), bias_positions=5)
    with pytest.raises(ConfigError, match=r"weight bias\.weight does not fit its op"):
        changed(decoder_program(bias="alibi"), bias_positions=POSITIONS + 1)
    with pytest.raises(ConfigError, match=r"weight bias\.weight does not fit its op"):
        changed(decoder_program(bias="alibi"), causal=False)


def test_arguments_that_do_not_fit() -> None:
    tracer = Tracer()
    w = Weights(tracer, AllNames())
    x = embedding(w["wte"], Tokens().ids, 50, 24)
    options: dict[str, Any] = {"layer": 0, "n_head": 2, "causal": True}
    for wrong in ({"window": -1}, {"bias": w["bias"]}, {"bias_positions": 7}):
        with pytest.raises(ConfigError, match="attention: expected a window of at least 0, and bias_positions"):
            attention(x, x, x, **options, **wrong)
    for wrong in ({"softcap": -1.0}, {"softcap": 1.0, "bias": w["bias"], "bias_positions": 7}):
        with pytest.raises(ConfigError, match="attention: expected a finite softcap of at least 0"):
            attention(x, x, x, **options, **wrong)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_the_table_stays_in_float32(dtype: str) -> None:
    assert weight_formats(decoder_program(bias="learned").program, dtype)["bias.weight"] == "float32"


def test_nan_outside_the_window_changes_no_bit() -> None:
    """The embedding of one token is NaN. The rows whose windows reach it are NaN, and no others."""
    made, length, at, window = decoder_program(window=8), 45, 20, 8  # no id occurs twice in 50 tokens
    clean = alone(executor_of(made), length)
    table = NumpyExecutor(made.program, made.sources).values("wte.weight").astype(np.float32)
    table[step_of(length).token_ids[at]] = np.nan
    poisoned = DecoderProgram(made.program, {**made.sources, "wte.weight": ArraySource("wte.weight", table)})
    found = alone(executor_of(poisoned), length)
    assert np.isnan(found[at : at + window]).all()
    for rows in (slice(0, at), slice(at + window, length)):
        assert found[rows].tobytes() == clean[rows].tobytes()
