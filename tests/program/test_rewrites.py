"""Each rewrite: the Program before and after gives the same numbers, and the saved work is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.checkpoint import array_sources
from fastattn.executors.numpy_executor import NumpyExecutor
from fastattn.graph import rewrites
from fastattn.graph.ir import Program, Step
from fastattn.graph.rewrites import optimize, with_outputs, with_pooling
from fastattn.graph.tensor import Tracer, Weights
from fastattn.models import bert, distilbert, gpt2, roberta
from fastattn.models.names import Layout
from fastattn.models.tasks import Task
from tests.reference.bounds import assert_close
from tests.reference.checkpoints import BERT, GPT2

DISTIL = {"vocab_size": 31, "dim": 12, "n_heads": 3, "n_layers": 2, "hidden_dim": 20, "max_position_embeddings": 16}


class AllNames:
    """A checkpoint that has any requested tensor, except a separate head if it is tied."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def has(self, name: str) -> bool:
        return name != "lm_head.weight"

    def repeats(self, name: str) -> bool:
        return False

    def transposed(self, name: str) -> bool:
        return bool(self.layout.transposed) and name.endswith(self.layout.transposed)


def trace(family: str, task: Task) -> Program:
    """Trace a tiny model of a family, without optimization."""
    module: Any = {"gpt2": gpt2, "bert": bert, "distilbert": distilbert, "roberta": roberta}[family]
    raw = {"gpt2": GPT2, "bert": BERT, "distilbert": DISTIL, "roberta": {**BERT, "pad_token_id": 1}}[family]
    config = module.read_config({**raw, "model_type": family})
    program: Program = module.build(config, Weights(Tracer(), AllNames(module.LAYOUT)), task)
    return program


def weights_of(program: Program, rng: np.random.Generator) -> Mapping[str, NDArray[np.float64]]:
    """Return random tensors for all parts of an unoptimized Program."""
    tensors = {}
    for weight in program.weights.values():
        shape = weight.shape[::-1] if weight.transposed else weight.shape
        tensors[weight.parts[0]] = rng.normal(size=shape) / (shape[-1] ** 0.5 if len(shape) > 1 else 2)
    return tensors


def ragged_step(rng: np.random.Generator, lengths: tuple[int, ...] = (3, 1, 7), *, kept: int = 2) -> Step:
    """Return sequences of these lengths; the last `kept` rows of each are wanted."""
    ends = np.cumsum(lengths)
    wanted = [np.arange(max(end - length, end - kept), end) for end, length in zip(ends, lengths, strict=True)]
    return Step(
        token_ids=rng.integers(0, 31, int(ends[-1])).astype(np.int32),
        cu_seqlens=np.concatenate([[0], ends]).astype(np.int32),
        positions=np.concatenate([np.arange(length) for length in lengths]).astype(np.int32),
        wanted=np.concatenate(wanted).astype(np.int32),
        token_type_ids=rng.integers(0, 2, int(ends[-1])).astype(np.int32),
    )


def assert_same(before: Program, after: Program, rng: np.random.Generator) -> None:
    """Assert that all outputs of the two agree on a ragged step, within float64 rounding."""
    tensors, step = weights_of(before, rng), ragged_step(rng)
    expected = NumpyExecutor(before, array_sources(tensors)).run(step)
    found = NumpyExecutor(after, array_sources(tensors)).run(step)
    assert list(found) == list(expected)
    for name, value in expected.items():
        pairs = zip(found[name], value, strict=True) if isinstance(value, list) else [(found[name], value)]
        for ours, theirs in pairs:
            assert_close(np.asarray(ours), np.asarray(theirs), before, longest=7, scale=8 * np.abs(theirs).max())


ALL: list[tuple[str, Task]] = [
    ("gpt2", "causal-lm"),
    ("gpt2", "encoder"),
    ("gpt2", "sequence-classification"),
    ("bert", "encoder"),
    ("bert", "sequence-classification"),
    ("distilbert", "encoder"),
    ("distilbert", "sequence-classification"),
    ("roberta", "encoder"),
    ("roberta", "sequence-classification"),
]
STEPS = ("fuse_activation", "fuse_residual", "merge_qkv", "sink_gathers", "drop_dead", "optimize")


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(("family", "task"), ALL)
def test_a_rewrite_changes_no_output(name: str, family: str, task: Task, rng: np.random.Generator) -> None:
    rewrite: Callable[[Program], Program] = getattr(rewrites, name)
    before = replace(trace(family, task), marks={})
    assert_same(before, rewrite(before), rng)


@pytest.mark.parametrize(("family", "task"), ALL)
def test_marked_outputs_change_nothing(family: str, task: Task, rng: np.random.Generator) -> None:
    marked = with_outputs(trace(family, task), hidden_states=True, attentions=True)
    assert_same(marked, optimize(marked), rng)
    hidden = [name for name in marked.outputs if name.startswith("hidden_states.")]
    assert hidden == [f"hidden_states.{i}" for i in range(3)]
    assert {"attentions.0", "attentions.1"} < set(marked.outputs)


@pytest.mark.parametrize(("family", "task"), ALL)
def test_variants_share_their_weights(family: str, task: Task) -> None:
    """The packed weights are the same for any requested outputs."""
    traced = trace(family, task)
    fast = optimize(traced)
    for hidden_states, attentions in ((True, False), (False, True), (True, True)):
        variant = optimize(with_outputs(traced, hidden_states=hidden_states, attentions=attentions))
        assert dict(variant.weights) == dict(fast.weights)


def kinds(program: Program) -> list[str]:
    return [op.kind for op in program.ops]


def test_everything_is_fused() -> None:
    """No separate activation or add of a linear is left, and BERT's q, k and v are one product."""
    for family, task in ALL:
        program = optimize(trace(family, task))
        assert "activation" not in kinds(program)
        assert kinds(program).count("add") == {"gpt2": 1, "distilbert": 1}.get(family, 2)
        assert kinds(program).count("slice") == 6
        assert "gather_rows" in kinds(program) or task == "encoder"


@pytest.mark.parametrize(("family", "task"), [pair for pair in ALL if pair[1] != "encoder"])
def test_the_last_layer_runs_for_the_rows_that_are_read(family: str, task: Task) -> None:
    program = optimize(trace(family, task))
    q_rows = [op.attrs["q_rows"] for op in program.ops if op.kind == "attention"]
    selection = "wanted" if family == "gpt2" else "first"
    assert q_rows == ["tokens", selection]
    last = max(i for i, op in enumerate(program.ops) if op.kind == "attention")
    for op in program.ops[last:]:
        assert program.values[op.output].rows == ("wanted" if family == "gpt2" else "sequences")


def test_a_value_that_is_an_output_is_not_sunk() -> None:
    program = optimize(trace("bert", "encoder"))
    assert [op.attrs["q_rows"] for op in program.ops if op.kind == "attention"] == ["tokens", "tokens"]
    assert program.values[program.outputs["last_hidden_state"]].rows == "tokens"
    assert program.values[program.outputs["pooler_output"]].rows == "sequences"


def test_dead_ops_and_their_weights_go() -> None:
    program = trace("bert", "encoder")
    hidden = {"last_hidden_state": program.outputs["last_hidden_state"]}
    left = optimize(replace(program, outputs=hidden))
    assert not any(key.startswith("pooler") for key in left.weights)
    assert [op.output for op in left.ops] == list(range(len(left.values)))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "max", "mean_sqrt_len", "first", "last"])
def test_pooling(pooling: str, normalize: bool, rng: np.random.Generator) -> None:
    traced = trace("bert", "encoder")
    pooled = with_pooling(traced, pooling, normalize=normalize)
    assert_same(pooled, optimize(pooled), rng)
    tensors, step = weights_of(traced, rng), ragged_step(rng)
    states = np.asarray(NumpyExecutor(traced, array_sources(tensors)).run(step)["last_hidden_state"])
    found = np.asarray(NumpyExecutor(optimize(pooled), array_sources(tensors)).run(step)["embedding"])
    for row, (start, end) in zip(found, ((0, 3), (3, 4), (4, 11)), strict=True):
        part = states[start:end]
        expected = {
            "mean": part.mean(axis=0),
            "max": part.max(axis=0),
            "mean_sqrt_len": part.sum(axis=0) / len(part) ** 0.5,
            "first": part[0],
            "last": part[-1],
        }[pooling]
        if normalize:
            expected = expected / np.linalg.norm(expected)
        assert_close(row, expected, traced, longest=7, scale=8 * np.abs(states).max())


def test_merged_weights_are_stacked_parts() -> None:
    program = optimize(trace("bert", "encoder"))
    part = "encoder.layer.0.attention.self."
    weight = program.weights[f"{part}query.weight+{part}key.weight+{part}value.weight"]
    assert weight.parts == (f"{part}query.weight", f"{part}key.weight", f"{part}value.weight")
    assert weight.shape == (36, 12)
    assert weight.use == "matrix"


def test_tied_embeddings_are_one_matrix() -> None:
    program = optimize(trace("gpt2", "causal-lm"))
    assert program.weights["wte.weight"].use == "matrix"
    assert program.weights["wpe.weight"].use == "table"
    assert program.weights["h.0.attn.c_attn.weight"].transposed
