"""On the CPU, rewrites and requests for more outputs change no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastattn.api.model import load_executor
from fastattn.checkpoint import open_checkpoint
from fastattn.graph import rewrites
from fastattn.graph.executor import Output
from fastattn.graph.ir import Program
from fastattn.graph.rewrites import optimize, with_outputs
from fastattn.models.registry import BuiltModel, build
from tests.program.test_rewrites import STEPS, ragged_step
from tests.reference.checkpoints import write_bert, write_gpt2

WRITERS = {"causal-lm": write_gpt2, "sequence-classification": write_bert, "encoder": write_bert}
WIDE = {  # every matrix has more than 64 rows, so all dtypes have an effect
    "causal-lm": {"n_embd": 72},
    "sequence-classification": {"hidden_size": 72, "intermediate_size": 80},
    "encoder": {"hidden_size": 72, "intermediate_size": 80},
}
DTYPES = ("float32", "bfloat16", "int8", "int4")


@pytest.fixture(params=sorted(WRITERS))
def built(request: pytest.FixtureRequest, tmp_path: Path) -> BuiltModel:
    checkpoint = open_checkpoint(WRITERS[request.param](tmp_path, **WIDE[request.param]))
    return build(checkpoint.config, checkpoint.tensors, request.param)


def run(program: Program, built: BuiltModel, dtype: str) -> dict[str, Output]:
    executor = load_executor(program, built.tensors, dtype=dtype, device="cpu", threads=2)
    outputs = executor.run(ragged_step(np.random.default_rng(3)))
    executor.close()
    return outputs


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rewrite_changes_no_bit(name: str, built: BuiltModel, dtype: str) -> None:
    expected, found = run(built.traced, built, dtype), run(getattr(rewrites, name)(built.traced), built, dtype)
    assert found.keys() == expected.keys()
    for output, value in expected.items():
        assert np.asarray(value).any()
        assert np.array_equal(np.asarray(found[output]), np.asarray(value))


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_outputs_change_no_bit(built: BuiltModel, dtype: str) -> None:
    marked = with_outputs(built.traced, hidden_states=True, attentions=True)
    fast, unfused, fused = (run(program, built, dtype) for program in (built.program, marked, optimize(marked)))
    for output, value in fast.items():
        assert np.array_equal(np.asarray(fused[output]), np.asarray(value))
    for output, value in unfused.items():
        pairs = zip(fused[output], value, strict=True) if isinstance(value, list) else [(fused[output], value)]
        assert all(np.array_equal(np.asarray(ours), np.asarray(theirs)) for ours, theirs in pairs)
