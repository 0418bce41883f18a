"""`model.profile`: what it counts, what it prints, and what it leaves unchanged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastattn as fa
from fastattn.api.causal_lm import CausalLM
from fastattn.api.encoders import SequenceClassifier
from fastattn.errors import ContextLengthError, InputError
from fastattn.executors.cpu import CpuExecutor
from fastattn.profiling.limits import Limits, are_same
from fastattn.profiling.profile import OpProfile, Profile
from tests.reference.checkpoints import write_bert, write_gpt2


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return fa.AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path_factory.mktemp("gpt2")), threads=2)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> SequenceClassifier:
    path = write_bert(tmp_path_factory.mktemp("bert"))
    return fa.AutoModelForSequenceClassification.from_pretrained(path, threads=1)


def test_every_op_once(gpt2: CausalLM) -> None:
    found = gpt2.profile([[1, 2, 3], [4, 5]], seconds=0.001)
    counts = {op.op: op.count for op in found.ops}
    assert counts.pop("(between ops)") == 0
    assert counts == {
        "embedding wte": 1, "embedding wpe": 1, "add": 1, "layer_norm ln_1": 2, "layer_norm ln_2": 2,
        "layer_norm ln_f": 1, "attention": 2, "linear attn.c_attn [36, 12]": 2, "linear attn.c_proj [12, 12]": 2,
        "linear mlp.c_fc [48, 12]": 2, "linear mlp.c_proj [12, 48]": 2, "linear wte [31, 12]": 1, "gather_rows": 2,
    }  # fmt: skip
    assert found.seconds > 0
    assert sum(op.seconds for op in found.ops) == pytest.approx(found.seconds)
    assert sum(op.share for op in found.ops) == pytest.approx(1)
    assert sum(found.shares().values()) == pytest.approx(1)
    assert set(found.shares()) == {"linear", "attention", "layer_norm", "embedding", "add", "gather_rows", "between"}


def test_what_a_prefill_and_a_decode_cost(gpt2: CausalLM) -> None:
    prefill = {op.op: op for op in gpt2.profile([[1, 2, 3], [4, 5]], seconds=0.001).ops}
    # The first layer projects five rows, the last one only those of the two wanted tokens.
    assert prefill["linear attn.c_proj [12, 12]"].operations == 2 * 12 * 12 * (5 + 2)
    assert prefill["linear wte [31, 12]"].operations == 2 * 2 * 12 * 31
    decode = gpt2.profile([[1, 2, 3], [4, 5]], decode=True, seconds=0.001)
    ops = {op.op: op for op in decode.ops}
    assert ops["attention"].operations == 2 * 2 * 2 * 12 * (4 + 3)  # two layers, two products, positions 4 and 3
    assert ops["attention"].bytes == 2 * 2 * 12 * 5 * 4
    assert decode.what == "2 sequences, 1 token each after 5 tokens"


def test_the_table(bert: SequenceClassifier) -> None:
    found = bert.profile([[1, 2, 3], []], seconds=0.001)
    lines = str(found).splitlines()
    assert lines[0] == "1 sequence, 3 tokens, float32, threads: 1"
    assert "% of the limit, which is" in lines[1]
    assert lines[3].split() == ["op", "count", "ms", "share", "rate", "of", "limit"]
    assert any(line.startswith("linear attention.self.query+key+value [36, 12]") for line in lines)
    assert len(lines) == 4 + len(found.ops) + (2 if "~" in str(found) else 0)
    assert json.loads(json.dumps(found.as_dict()))["ops"][0]["op"] == found.ops[0].op


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_other_dtypes(tmp_path: Path, dtype: str) -> None:
    path = write_gpt2(tmp_path / "m", n_embd=96, vocab_size=200)
    found = fa.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).profile([1, 2, 3], decode=True, seconds=0.001)
    assert found.dtype == dtype
    assert found.percent > 0
    ops = {op.op: op for op in found.ops}
    assert ops["linear wte [200, 96]"].bytes < 200 * 96 * 4


def test_rate_and_percent_of_an_op() -> None:
    op = OpProfile("linear a [2, 2]", 1, 2.0, 0.5, operations=6e9, bytes=1e9, limit_seconds=1.0, binds="compute")
    assert (op.rate, op.percent) == ("3.0 GFLOP/s", 50.0)
    op = OpProfile("linear a [2, 2]", 1, 2.0, 0.5, operations=6e9, bytes=1e9, limit_seconds=1.0, binds="memory")
    assert (op.rate, op.percent) == ("0.5 GB/s", 50.0)
    assert (OpProfile("add", 1, 2.0, 0.5).rate, OpProfile("add", 1, 2.0, 0.5).percent) == ("", None)
    assert OpProfile("linear a [2, 2]", 1, 0.0, 0.0, 6e9, 1e9, 1.0, "compute").percent is None


def test_a_busy_machine_is_marked(bert: SequenceClassifier) -> None:
    """`~` marks the percentages if the limits changed, and those above 100, whose limits were not those of the step."""
    ops = (OpProfile("linear a [2, 2]", 1, 1.0, 0.5, limit_seconds=0.5, binds="memory"),)
    limits = Limits(1, {"float32": 10.0}, 5.0)
    steady = Profile("a", "float32", 2.0, 1.0, "memory", limits, ops)
    assert "~" not in str(steady) + repr(steady)
    busy = replace(steady, steady=False)
    assert "~50 % of the limit" in str(busy)
    assert "~50 %" in repr(busy)
    assert str(busy).endswith("\n~ The machine was busy, or its limits changed during the measurement.")
    (op,) = ops
    above = replace(steady, ops=(replace(op, limit_seconds=1.5),))
    assert str(above).count("~150 %") == 1
    assert ", 50 % of the limit" in str(above)


@pytest.mark.parametrize(("after", "same"), [(1.0, True), (0.91, True), (1.09, True), (0.8, False), (1.3, False)])
def test_the_same_limits(after: float, same: bool) -> None:
    assert are_same(1.0, after) is same


def test_the_model_is_as_it_was(gpt2: CausalLM) -> None:
    before = gpt2.generate([1, 2, 3], max_new_tokens=5, eos_token_id=-1)
    gpt2.profile([[1, 2, 3]] * 3, decode=True, seconds=0.001)
    assert np.array_equal(gpt2.generate([1, 2, 3], max_new_tokens=5, eos_token_id=-1), before)
    assert isinstance(gpt2.executor, CpuExecutor)
    assert gpt2.executor.op_seconds() == []


def test_masks_and_types_are_accepted(bert: SequenceClassifier) -> None:
    found = bert.profile(np.array([[1, 2, 0], [3, 4, 5]]), np.array([[1, 1, 0], [1, 1, 1]]), np.zeros((2, 3), int))
    assert found.what == "2 sequences, 5 tokens"


def test_refused(gpt2: CausalLM, bert: SequenceClassifier, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="decode: expected a language model"):
        bert.profile([1, 2], decode=True)
    with pytest.raises(InputError, match="at least one token"):
        bert.profile([[], []])
    for seconds in (0, -1, float("nan"), float("inf"), True):
        with pytest.raises(InputError, match="seconds: expected a number above 0"):
            bert.profile([1, 2], seconds=seconds)
    with pytest.raises(ContextLengthError):
        gpt2.profile([1] * 16, decode=True)
    exact = fa.AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path / "m"), device="numpy")
    with pytest.raises(InputError, match="cpu"):
        exact.profile([1, 2])
