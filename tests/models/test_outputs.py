"""Outputs work like transformers': by name, by key, by index, as a tuple."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from fastattn.errors import DTypeError, InputError
from fastattn.models.outputs import EncoderOutput
from tests.reference.checkpoints import write_bert, write_distilbert, write_gpt2


@pytest.fixture
def output(tmp_path: Path) -> EncoderOutput:
    with AutoModel.from_pretrained(write_bert(tmp_path), device="numpy") as model:
        return model([[1, 2], [3, 4]], output_attentions=True)


def test_by_key_number_and_tuple(output: EncoderOutput) -> None:
    names = ["last_hidden_state", "pooler_output", "attentions"]  # those that are not None, in order
    assert list(output) == list(output.keys()) == names
    assert len(output) == 3
    for i, name in enumerate(names):
        assert output[i] is output[name] is getattr(output, name) is output.get(name)
        assert name in output
    assert output[-1] is output.attentions
    assert output[np.int64(1)] is output.pooler_output
    assert output[:2] == output.to_tuple()[:2] == (output.last_hidden_state, output.pooler_output)
    first, *rest = output.to_tuple()
    assert first is output.last_hidden_state
    assert len(rest) == 2
    assert dict(**output) == dict(output.items())
    assert [id(value) for value in output.values()] == [id(value) for value in output.to_tuple()]
    assert "hidden_states" not in output
    assert output.hidden_states is None
    assert output.get("hidden_states") is None


def test_what_is_not_there_is_named(output: EncoderOutput) -> None:
    with pytest.raises(KeyError, match="hidden_states"):
        output["hidden_states"]
    with pytest.raises(IndexError):
        output[3]
    with pytest.raises(AttributeError, match=r"EncoderOutput has no 'last_hidden'; did you mean 'last_hidden_state'"):
        _ = output.last_hidden  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no cache is returned"):
        _ = output.past_key_values  # type: ignore[attr-defined]
    assert not hasattr(output, "loss")


def test_outputs_are_compared_by_identity_copied_and_pickled(output: EncoderOutput) -> None:
    assert output == output
    assert len({output, output}) == 1
    for other in (copy.copy(output), copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
        assert other != output
        assert np.array_equal(other[0], output[0])


def test_return_dict(tmp_path: Path) -> None:
    for auto, folder in (
        (AutoModelForCausalLM, write_gpt2(tmp_path / "g")),
        (AutoModel, write_bert(tmp_path / "b")),
        (AutoModelForSequenceClassification, tmp_path / "b"),
    ):
        with auto.from_pretrained(folder, device="numpy") as model:
            anyhow: Any = model
            expected = anyhow([[1, 2]])
            for same in (anyhow([[1, 2]], return_dict=None), anyhow([[1, 2]], return_dict=True)):
                assert type(same) is type(expected)
            found = anyhow([[1, 2]], return_dict=False)
            assert type(found) is tuple
            assert len(found) == len(expected)
            assert np.array_equal(found[0], expected[0])
            with pytest.raises(DTypeError, match="return_dict: expected True or False, got str 'no'"):
                anyhow([[1, 2]], return_dict="no")


def test_flags_of_config_json_are_the_defaults(tmp_path: Path) -> None:
    folder = write_distilbert(tmp_path, output_hidden_states=True)
    with AutoModel.from_pretrained(folder, device="numpy") as model:
        assert list(model([1])) == ["last_hidden_state", "hidden_states"]
        assert list(model([1], output_hidden_states=False, output_attentions=True)) == [
            "last_hidden_state",
            "attentions",
        ]
    with AutoModel.from_pretrained(folder, device="numpy", output_hidden_states=False, output_attentions=True) as model:
        assert list(model([1])) == ["last_hidden_state", "attentions"]


def test_keywords_that_change_nothing(tmp_path: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path), device="numpy") as model:
        expected = model([1, 2]).logits
        names = ("past_key_values", "cache", "labels", "inputs_embeds", "head_mask", "position_ids", "use_cache")
        for options in ({"use_cache": True}, {"use_cache": False}, dict.fromkeys(names)):
            found: Any = model([1, 2], **options)
            assert np.array_equal(found.logits, expected)
        for name, value, hint in (
            ("labels", [1, 2], "no loss is computed"),
            ("past_key_values", (), "have a cache of their own"),
            ("inputs_embeds", np.zeros((1, 2, 12)), "pass input_ids"),
            ("attention_masks", [1, 1], "did you mean 'attention_mask'"),
            ("x" * 10_000, 1, "unknown keyword 'xxx"),
        ):
            with pytest.raises(InputError, match=hint) as caught:
                model([1, 2], **{name: value})
            assert len(str(caught.value)) < 300
        with pytest.raises(DTypeError, match=r"use_cache: expected True or False"):
            model([1, 2], use_cache="yes")
        with pytest.raises(DTypeError, match=r"input_ids: .* got dict; call model\(\*\*encoding\)"):
            model({"input_ids": [1, 2]})
        with pytest.raises(DTypeError, match=r"input_ids: .* got DataFrame; pass input_ids=table\.to_numpy\(\)"):
            model(pandas_frame())


def pandas_frame() -> Any:
    """Return how a pandas DataFrame displays itself."""
    return type("DataFrame", (dict,), {"__array__": lambda self: np.zeros((1, 2), np.int64)})()


@pytest.mark.torch
def test_as_transformers_outputs_do() -> None:
    """The same expressions work on both."""
    torch = pytest.importorskip("torch")
    modeling_outputs = pytest.importorskip("transformers.modeling_outputs")
    theirs = modeling_outputs.BaseModelOutputWithPooling(
        last_hidden_state=torch.zeros(1), pooler_output=None, attentions=(torch.ones(1),)
    )
    ours = EncoderOutput(np.zeros(1), None, None, (np.ones(1),))
    for expression in (
        "list(o)", "tuple(o)", "len(o)", "list(o.keys())", "'attentions' in o", "'pooler_output' in o",
        "o[1] is o.attentions", "o['attentions'] is o.attentions", "o[-1] is o.attentions", "len(o[:1])", "bool(o)",
        "len(o.to_tuple())", "o.get('pooler_output')", "[k for k, v in o.items()]", "o.pooler_output", "sorted({**o})",
        "hasattr(o, 'loss')",
    ):  # fmt: skip
        assert eval(expression, {"o": ours}) == eval(expression, {"o": theirs}), expression
    for expression in ("o['pooler_output']", "o['nothing']", "o[2]", "o.nothing"):
        with pytest.raises((KeyError, IndexError, AttributeError)) as expected:
            eval(expression, {"o": theirs})
        with pytest.raises(expected.type):
            eval(expression, {"o": ours})
