"""Fault 56: logits with NaN or infinity, or all -inf, and the effect of `nan=` on generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import InputError, NonFiniteError
from fastattn.generation import scheduler
from fastattn.generation.generate import GenerateOutput, generate
from tests.reference.checkpoints import GPT2, gpt2_tensors, write
from tests.tasks.toy import ToyModel

SIZES = {"vocab_size": 90, "n_positions": 32, "n_embd": 48, "n_layer": 1, "n_head": 3}
PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3], [8], [7, 9]]
NEW = 12
BROKEN_ID = 70
BROKEN_POSITION = 9
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalty": {"repetition_penalty": 0.5},
    "top-k": {"do_sample": True, "temperature": 0.5, "top_k": 7, "seed": 3},
    "all": {"do_sample": True, "temperature": 3.0, "top_k": 0, "seed": 3},
    "top-p, min-p": {"do_sample": True, "top_k": 0, "top_p": 0.9, "min_p": 0.01, "seed": 3},
}


def gpt2(folder: Path, device: str, weight: str = "", at: Any = None, value: float = 0.0) -> CausalLM:
    """Return a small GPT-2 with one row or number of a weight replaced."""
    config = {**GPT2, **SIZES}
    tensors = gpt2_tensors(config)
    if weight:
        tensors[weight][at] = value
    return AutoModelForCausalLM.from_pretrained(write(folder, config, tensors), device=device)


def texts(model: Any, prompts: Any = PROMPTS, **options: Any) -> GenerateOutput:
    found = generate(
        model, prompts, **{"max_new_tokens": NEW, "eos_token_id": -1, **options}, return_dict_in_generate=True
    )
    assert isinstance(found, GenerateOutput)
    return found


def assert_equal(found: GenerateOutput, expected: GenerateOutput) -> None:
    for ours, theirs in zip(found.sequences, expected.sequences, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("policy", ["finite", "propagate"])
@pytest.mark.parametrize("name", OPTIONS)
def test_fault_56_a_token_without_a_number_is_never_drawn(tmp_path: Path, device: str, name: str, policy: Any) -> None:
    """The result equals that with the token suppressed."""
    never = {"eos_token_id": BROKEN_ID, "min_new_tokens": NEW}
    with gpt2(tmp_path / "clean", device) as model:
        expected = texts(model, **OPTIONS[name], **never)
    with gpt2(tmp_path / "broken", device, "wte.weight", BROKEN_ID, np.nan) as model:
        with pytest.raises(NonFiniteError):
            texts(model, **OPTIONS[name])
        found = texts(model, nan=policy, **OPTIONS[name])
        alone = texts(model, PROMPTS[:1], nan=policy, max_batch_size=1, **OPTIONS[name])
    if policy == "propagate":
        assert all(np.isnan(logprobs).all() for logprobs in found.logprobs)
        found.logprobs[:] = expected.logprobs
    assert_equal(found, expected)
    np.testing.assert_array_equal(alone.sequences[0], expected.sequences[0])


@pytest.mark.parametrize("name", OPTIONS)
def test_fault_56_no_number_at_all(tmp_path: Path, device: str, name: str) -> None:
    """From one position on all logits are NaN: each request is normal up to there, and then draws the lowest id."""
    with gpt2(tmp_path / "clean", device) as model:
        clean = texts(model, **OPTIONS[name])
    with gpt2(tmp_path / "broken", device, "wpe.weight", BROKEN_POSITION, np.nan) as model:
        for policy in ("raise", "finite"):
            with pytest.raises(NonFiniteError):
                texts(model, nan=policy, **OPTIONS[name])
        found = texts(model, nan="propagate", **OPTIONS[name])
        held = texts(model, nan="propagate", eos_token_id=[0, 1], min_new_tokens=NEW, **OPTIONS[name])
        assert texts(model, PROMPTS[0], max_new_tokens=3).sequences[0].tolist()[:3] == PROMPTS[0]  # it still works
    for i, prompt in enumerate(PROMPTS):
        first = BROKEN_POSITION + 1  # of the tokens that follow one at the broken position
        good = first - len(prompt)
        np.testing.assert_array_equal(found.sequences[i][:first], clean.sequences[i][:first])
        np.testing.assert_array_equal(found.logprobs[i][:good], clean.logprobs[i][:good])
        assert found.sequences[i][first:].tolist() == [0] * (NEW - good)
        assert np.isnan(found.logprobs[i][good:]).all()
        assert held.sequences[i][first:].tolist() == [2] * (NEW - good)


def plus_infinity(ids: list[int]) -> np.ndarray:
    """Return logits with two ids at +inf, one at NaN and one at -inf if the sequence has five tokens."""
    row = ToyModel().executor.random_logits(ids)
    if len(ids) == 5:
        row[[4, 20]], row[2], row[7] = np.inf, np.nan, -np.inf
    return row


@pytest.mark.parametrize("name", OPTIONS)
def test_fault_56_plus_infinity(name: str) -> None:
    """ "finite" draws from the other ids, "propagate" only from the infinite ones."""
    broken, clean = ToyModel(), ToyModel()
    broken.executor.logits_of = plus_infinity

    def without(ids: list[int]) -> np.ndarray:
        row = plus_infinity(ids)
        return np.where(np.isfinite(row), row, -np.inf)

    clean.executor.logits_of = without
    assert_equal(texts(broken, nan="finite", **OPTIONS[name]), texts(clean, **OPTIONS[name]))
    options = {**OPTIONS[name], "seed": list(range(40))}
    found = texts(broken, [[1, 2, 3, 4, 5]] * 40, nan="propagate", max_new_tokens=1, **options)
    drawn = {int(sequence[-1]) for sequence in found.sequences}
    # A temperature below 1 makes the largest number overflow; then the first of the highest is drawn.
    assert drawn == ({4, 20} if name in ("all", "top-p, min-p") else {4})
    assert all(np.isnan(logprobs).all() for logprobs in found.logprobs)


def test_fault_56_plus_infinity_of_a_model(tmp_path: Path) -> None:
    """The +inf id is drawn; its embedding then makes everything NaN."""
    with gpt2(tmp_path, "cpu", "wte.weight", (BROKEN_ID, 0), np.inf) as model:
        found = texts(model, nan="propagate")
        drawn = [sequence[len(prompt) :].tolist() for sequence, prompt in zip(found.sequences, PROMPTS, strict=True)]
    after = [tokens[tokens.index(BROKEN_ID) + 1 :] for tokens in drawn if BROKEN_ID in tokens]
    assert after
    assert all(not any(tokens) for tokens in after)


@pytest.mark.parametrize("policy", ["finite", "propagate"])
def test_fault_56_finite_rows_are_drawn_inside_the_step(tmp_path: Path, policy: Any, monkeypatch: Any) -> None:
    with gpt2(tmp_path, "cpu") as model:
        expected = texts(model)
        monkeypatch.setattr(scheduler, "draw_each", None)
        assert_equal(texts(model, nan=policy), expected)


def test_fault_56_policies_of_models_streams_and_pipelines() -> None:
    with fastattn.pipeline("text-generation") as pipe:
        model = pipe.model
        expected = list(model.stream("Once upon a time", max_new_tokens=5))
        assert list(model.stream("Once upon a time", max_new_tokens=5, nan="propagate")) == expected
        pipe("Once upon a time", max_new_tokens=5, nan="finite")
        for call in (model.stream, pipe):
            with pytest.raises(InputError, match="nan: expected one of 'raise', 'finite', 'propagate', got 'no'"):
                call("Once upon a time", nan="no")
        with pytest.raises(InputError, match="nan: expected"):
            model.generate([1, 2], nan="no")
