"""Compares multiply-adds and bytes with numbers counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import fastattn as fa
from fastattn.executors.cpu import CpuExecutor
from fastattn.graph.cost import Cost, Formats, StepShape
from fastattn.graph.ir import Op, Program
from fastattn.graph.step_cost import op_cost, op_format, step_cost
from tests.reference.checkpoints import write_bert, write_gpt2
from tests.reference.decoder_program import decoder_program


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Width 12, 2 layers of 3 heads, 31 ids."""
    return fa.AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path_factory.mktemp("gpt2"))).executor.program


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """Width 12, inner width 20, 2 layers of 3 heads, 3 labels."""
    path = write_bert(tmp_path_factory.mktemp("bert"))
    return fa.AutoModelForSequenceClassification.from_pretrained(path).executor.program


def named(program: Program, kind: str, name: str = "") -> Op:
    return next(op for op in program.ops if op.kind == kind and (not name or name in op.weights[0]))


def test_a_linear(gpt2: Program) -> None:
    op, shape = named(gpt2, "linear", "h.0.mlp.c_fc"), StepShape((3, 4))
    assert op_cost(gpt2, op, shape) == Cost(7 * 12 * 48, 12 * 48 * 4 + 48 * 4)
    # int8 and int4 have one scale per row, int4 also one byte per group of 32; the bias is float32.
    sizes = {"bfloat16": 12 * 48 * 2, "int8": 12 * 48 + 48 * 4, "int4": 12 * 48 * (1 / 2 + 1 / 32) + 48 * 4}
    for kept, n_bytes in sizes.items():
        assert op_cost(gpt2, op, shape, Formats({op.weights[0]: kept})) == Cost(7 * 12 * 48, n_bytes + 48 * 4)
        assert op_format(op, Formats({op.weights[0]: kept})) == kept
    assert op_format(op, Formats()) == "float32"
    head = named(gpt2, "linear", "wte")
    assert op_cost(gpt2, head, StepShape((3, 4), wanted=1)) == Cost(2 * 12 * 31, 12 * 31 * 4)
    assert op_cost(gpt2, head, StepShape((3, 4), wanted=0)) == Cost(7 * 12 * 31, 12 * 31 * 4)
    assert op_cost(gpt2, head, StepShape((3, 1), wanted=2)) == Cost(3 * 12 * 31, 12 * 31 * 4)


def test_what_is_read_and_not_multiplied(gpt2: Program) -> None:
    shape = StepShape((3, 4))
    assert op_cost(gpt2, named(gpt2, "embedding", "wte"), shape) == Cost(0, 7 * 12 * 4)
    assert op_cost(gpt2, named(gpt2, "embedding", "wte"), shape, Formats({"wte.weight": "int8"})) == Cost(
        0, 7 * (12 + 4)
    )
    assert op_cost(gpt2, named(gpt2, "layer_norm", "ln_f"), shape) == Cost(0, 2 * 12 * 4)
    assert op_cost(gpt2, named(gpt2, "add"), shape) == Cost()


def test_causal_attention(gpt2: Program) -> None:
    op = named(gpt2, "attention")
    # 3 tokens see 1 + 2 + 3 positions, 4 see 10; two products of head_dim 4 in each of 3 heads.
    assert op_cost(gpt2, op, StepShape((3, 4))) == Cost(2 * 12 * (6 + 10))
    # After 5 positions, 2 tokens see 6 + 7; keys and values of 5 positions are read, 12 floats each.
    assert op_cost(gpt2, op, StepShape((2,), (5,))) == Cost(2 * 12 * 13, 0, 2 * 12 * 5 * 4)
    assert op_cost(gpt2, op, StepShape((2, 0), (5, 9))).multiply_adds == 2 * 12 * 13


def test_attention_of_the_wanted_rows(gpt2: Program) -> None:
    last = [op for op in gpt2.ops if op.kind == "attention"][-1]
    assert last.attrs["q_rows"] == "wanted"
    assert op_cost(gpt2, last, StepShape((3, 4), wanted=1)) == Cost(2 * 12 * (3 + 4))
    assert op_cost(gpt2, last, StepShape((3, 4), wanted=2)) == Cost(2 * 12 * (2 + 3 + 3 + 4))
    assert op_cost(gpt2, last, StepShape((4,), (10,), wanted=2)).multiply_adds == 2 * 12 * (13 + 14)


def test_an_encoder(bert: Program) -> None:
    first, last = (op for op in bert.ops if op.kind == "attention")
    assert op_cost(bert, first, StepShape((3, 4))) == Cost(2 * 12 * (9 + 16))
    assert last.attrs["q_rows"] == "first"
    assert op_cost(bert, last, StepShape((3, 4))) == Cost(2 * 12 * (3 + 4))
    qkv = named(bert, "linear", "layer.0.attention.self.query")
    assert op_cost(bert, qkv, StepShape((3, 4))) == Cost(7 * 12 * 36, 12 * 36 * 4 + 36 * 4)
    # In the last layer, everything after the attention only runs on the first token of each sequence.
    up = named(bert, "linear", "layer.1.intermediate")
    assert op_cost(bert, up, StepShape((3, 4))).multiply_adds == 2 * 12 * 20


def test_attention_with_a_window(gpt2: Program, bert: Program) -> None:
    op = named(gpt2, "attention")
    op = replace(op, attrs={**op.attrs, "window": 3})
    # 5 tokens see 1 + 2 + 3 + 3 + 3 positions.
    assert op_cost(gpt2, op, StepShape((5,))) == Cost(2 * 12 * 12)
    # A token after 9 positions sees 3, two of them in the cache.
    assert op_cost(gpt2, op, StepShape((1,), (9,))) == Cost(2 * 12 * 3, 0, 2 * 12 * 2 * 4)
    assert op_cost(gpt2, op, StepShape((4,), (1.5,))) == Cost(2 * 12 * (2.5 + 3 + 3 + 3), 0, 2 * 12 * 1.5 * 4)
    # The last two of four tokens see three positions each, only one of them in the cache.
    last = replace(op, attrs={**op.attrs, "q_rows": "wanted"})
    assert op_cost(gpt2, last, StepShape((3,), (5,), wanted=2)) == Cost(2 * 12 * 6, 0, 2 * 12 * 1 * 4)
    first, last = (op for op in bert.ops if op.kind == "attention")
    # 4 tokens see 2 positions on each side: 3 + 4 + 4 + 3. The first one sees 3.
    assert op_cost(bert, replace(first, attrs={**first.attrs, "window": 3}), StepShape((4,))) == Cost(2 * 12 * 14)
    assert op_cost(bert, replace(last, attrs={**last.attrs, "window": 3}), StepShape((4,))) == Cost(2 * 12 * 3)


def test_attention_biases_are_read_once() -> None:
    program = decoder_program(layers=2, heads=4, bias="alibi").program
    first, second = (op for op in program.ops if op.kind == "attention")
    # Four heads, and the relative positions of the longest sequence.
    assert op_cost(program, first, StepShape((1, 1), (7, 9))).weight_bytes == 4 * 10 * 4
    assert op_cost(program, second, StepShape((1, 1), (7, 9))).weight_bytes == 0
    both = decoder_program(layers=2, heads=4, bias="alibi", causal=False, window=4).program
    assert op_cost(both, named(both, "attention"), StepShape((3, 9))).weight_bytes == 4 * 7 * 4
    assert op_cost(both, named(both, "attention"), StepShape((3, 2))).weight_bytes == 4 * 5 * 4


def test_a_whole_step_of_gpt2(gpt2: Program) -> None:
    """One token after 9: every matrix once, the head once, ten positions seen in two layers."""
    matrices = 2 * (12 * 36 + 12 * 12 + 2 * 12 * 48) + 12 * 31
    vectors = 2 * (36 + 12 + 48 + 12 + 4 * 12) + 2 * 12
    cost = step_cost(gpt2, StepShape((1,), (9,), wanted=1))
    assert cost.multiply_adds == matrices + 2 * 2 * 12 * 10
    assert cost.weight_bytes == 4 * (matrices + vectors + 2 * 12)  # and a row of each embedding
    assert cost.kv_bytes == 2 * 2 * 12 * 9 * 4
    assert cost.operations == 2 * cost.multiply_adds
    assert cost.bytes == cost.weight_bytes + cost.kv_bytes


def test_nothing_to_do_costs_nothing(gpt2: Program) -> None:
    assert step_cost(gpt2, StepShape(())) == Cost()
    assert step_cost(gpt2, StepShape((0,), (7,))).multiply_adds == 0


def test_keys_and_values_have_a_format_of_their_own(gpt2: Program) -> None:
    op, shape = named(gpt2, "attention"), StepShape((2,), (5,))
    full = op_cost(gpt2, op, shape, Formats(dict.fromkeys(gpt2.weights, "int8")))
    assert full == op_cost(gpt2, op, shape)
    # Keys and values of 5 positions in 3 heads of 4 elements; in int8 each has a scale.
    for kept, n_bytes in {"float32": 4 * 4, "bfloat16": 4 * 2, "int8": 4 + 4}.items():
        assert op_format(op, Formats(kv=kept)) == kept
        assert op_cost(gpt2, op, shape, Formats(kv=kept)) == Cost(full.multiply_adds, 0, 2 * 3 * 5 * n_bytes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_the_bytes_counted_are_at_most_those_in_memory(tmp_path: Path, dtype: str) -> None:
    """A decode reads every matrix and vector, and one row of each table: never more than there is in memory."""
    path = write_gpt2(tmp_path / "m", n_embd=96, vocab_size=200)
    executor = fa.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).executor
    assert isinstance(executor, CpuExecutor)
    cost = step_cost(executor.program, StepShape((1,), (9,), wanted=1), executor.formats)
    assert 0 < cost.weight_bytes <= executor.weight_bytes
    full = step_cost(executor.program, StepShape((1,), (9,), wanted=1))
    assert (cost.weight_bytes < full.weight_bytes) == (dtype != "float32")


def test_attention_maps_read_keys_alone(tmp_path: Path) -> None:
    model = fa.AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path / "m"))
    program = model._variant(False, True).program
    probs = named(program, "attention_probs")
    assert op_cost(program, probs, StepShape((3,))) == Cost(12 * 6)
    assert op_cost(program, probs, StepShape((1,), (4,))) == Cost(12 * 5, 0, 12 * 4 * 4)
