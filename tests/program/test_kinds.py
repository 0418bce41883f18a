"""The table of the kinds of op: each declares itself fully, and an op that does not fit its kind is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastattn.checkpoint import open_checkpoint
from fastattn.errors import ConfigError
from fastattn.graph.ir import Op
from fastattn.graph.kinds import KINDS
from fastattn.graph.rewrites import optimize, with_outputs, with_pooling
from fastattn.models.registry import build
from fastattn.tasks.demo import demo_model

LINEAR = Op("linear", (0, 1), 2, ("w", "b"), {"activation": "gelu_erf", "has_bias": True, "has_residual": True})


def test_an_op_that_fits() -> None:
    KINDS["linear"].check(LINEAR)
    KINDS["linear"].check(replace(LINEAR, inputs=(0,), attrs={**LINEAR.attrs, "has_residual": False}))


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (replace(LINEAR, inputs=(0,)), "expected 2 inputs, got 1"),
        (replace(LINEAR, weights=("w",)), "expected 2 weights, got 1"),
        (replace(LINEAR, attrs={**LINEAR.attrs, "activation": "gelu"}), "activation: expected one of 'none'"),
        (replace(LINEAR, attrs={**LINEAR.attrs, "has_bias": 1}), "has_bias: expected bool, got 1"),
        (replace(LINEAR, attrs={"activation": "none"}), "expected attrs ['activation', 'has_bias', 'has_residual']"),
        (Op("layer_norm", (0,), 1, ("w", "b"), {"eps": True}), "eps: expected float, got True"),
        (Op("layer_norm", (0,), 1, ("w", "b"), {"eps": "1"}), "eps: expected float, got '1'"),
        (Op("slice", (0,), 1, (), {"offset": 1.0, "width": 2}), "offset: expected int, got 1.0"),
    ],
)
def test_an_op_that_does_not_fit(op: Op, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{op.kind}: {message}")):
        KINDS[op.kind].check(op)


def test_cpp_has_the_same_kinds() -> None:
    folder = Path(__file__).resolve().parents[2] / "csrc" / "program" / "kinds"
    names = [name for path in folder.glob("*.cpp") for name in re.findall(r'\.name = "(\w+)"', path.read_text())]
    assert sorted(names) == sorted(KINDS)


def test_rewrites_give_ops_that_fit() -> None:
    checkpoint = open_checkpoint(demo_model("text-classification"))
    traced = build(checkpoint.config, checkpoint.tensors, "encoder").traced
    pooled = [with_pooling(traced, pooling, normalize=True) for pooling in ("mean", "first")]
    used = set()
    for program in (optimize(with_outputs(traced, hidden_states=True, attentions=True)), *map(optimize, pooled)):
        for op in program.ops:
            KINDS[op.kind].check(op)
            used.add(op.kind)
    others = {"rms_norm", "rotary", "multiply", "window_rows", "scale", "lora"}  # of other families
    others |= {"features", "concat", "lstm", "gru", "sequence_probs", "weighted_sum"}
    assert used == set(KINDS) - {"activation"} - others  # an activation is always fused here
