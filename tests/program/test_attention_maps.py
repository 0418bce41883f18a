"""attention_probs of some heads: the maps of all heads, without the others, on every executor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastattn.errors import ConfigError
from fastattn.executors.cpu import CpuExecutor
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph.cost import StepShape
from fastattn.graph.ir import Program
from fastattn.graph.rewrites import optimize, with_maps, with_outputs
from fastattn.graph.step_cost import op_cost
from tests.program.test_attention_relative import VARIANTS, made_with
from tests.reference.decoder_program import decoder_program, step_of

EXECUTORS = {"numpy": NumpyExecutor, "cpu": CpuExecutor}
HEADS = [3, 0, 2]  # of 4, which share 2 heads of keys


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("causal", [False, True])
def test_maps_of_some_heads_have_the_bits_of_all(dtype: str, variant: str, causal: bool, device: str) -> None:
    made, step = made_with(variant, causal=causal), step_of(3, 0, 5, 1, 70)
    whole = EXECUTORS[device](optimize(with_outputs(made.program, attentions=True)), made.sources, dtype=dtype)
    expected = whole.run(step)
    program = optimize(with_maps(made.program, [1, 0], HEADS))
    assert list(program.outputs) == [f"attentions.{layer}.{head}" for layer in (0, 1) for head in HEADS]
    found = EXECUTORS[device](program, made.sources, dtype=dtype).run(step)
    for layer in (0, 1):
        for head in HEADS:
            maps = found[f"attentions.{layer}.{head}"]
            assert [one.shape for one in maps] == [(1, n, n) for n in (3, 0, 5, 1, 70)]
            for ours, theirs in zip(maps, expected[f"attentions.{layer}"], strict=True):
                assert ours[0].tobytes() == theirs[head].tobytes()


def test_a_program_stops_after_the_last_map() -> None:
    """Neither the values of that layer nor what comes after it are computed."""
    program = optimize(with_maps(made_with("both").program, [0], [1]))
    assert [op.kind for op in program.ops].count("attention") == 0
    assert program.ops[-1].kind == "attention_probs"
    assert len(program.ops) < len(optimize(made_with("both").program).ops) / 2


def test_cached_keys_count(device: str) -> None:
    made = made_with("both")
    executor = EXECUTORS[device](optimize(with_outputs(made.program, attentions=True)), made.sources)
    some = with_maps(made.program, [0, 1], HEADS)
    other = executor.with_program(optimize(replace(some, outputs={**some.outputs, "y": made.program.outputs["y"]})))
    caches = executor.new_cache(), executor.new_cache()
    for begin, length in ((0, 1), (1, 66), (67, 3)):
        expected = executor.run(step_of(length, first=begin, caches=caches[:1]))
        found = other.run(step_of(length, first=begin, caches=caches[1:]))
        for layer in (0, 1):
            for head in HEADS:
                ours, theirs = found[f"attentions.{layer}.{head}"][0], expected[f"attentions.{layer}"][0]
                assert ours.shape == (1, length, begin + length)
                assert ours[0].tobytes() == theirs[head].tobytes()


def changed(program: Program, **attrs: int) -> Program:
    ops = [replace(op, attrs={**op.attrs, **attrs}) if op.kind == "attention_probs" else op for op in program.ops]
    return replace(program, ops=tuple(ops))


@pytest.mark.parametrize(("first_head", "n_maps"), [(-1, 1), (2, 1), (1, 2), (0, 0), (2**31 - 1, 1), (0, 2**31 - 1)])
def test_heads_that_do_not_exist(first_head: int, n_maps: int) -> None:
    made = decoder_program(heads=2)
    program = changed(optimize(with_maps(made.program, [0], [0])), first_head=first_head, n_maps=n_maps)
    with pytest.raises(ConfigError, match=f"attention_probs: expected maps of heads 0 to 1, got {n_maps} from "):
        CpuExecutor(program, made.sources)


def test_only_the_chosen_heads_cost_something() -> None:
    made = made_with("window")
    some, whole = with_maps(made.program, [1], [2]), with_outputs(made.program, attentions=True)
    costs = []
    for program in (some, whole):
        op = next(op for op in program.ops if op.kind == "attention_probs" and op.attrs["layer"] == 1)
        costs.append(op_cost(program, op, StepShape((7,))).multiply_adds)
    assert costs[1] == 4 * costs[0] > 0
