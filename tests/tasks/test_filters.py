"""The filters of sampling: transformers' candidates, and draws in proportion to their probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastattn.generation.filters import filtered
from fastattn.generation.generate import generate
from fastattn.generation.options import GenerationOptions
from tests.tasks.toy import ToyModel

FILTERS: list[dict[str, Any]] = [
    {"temperature": 0.6},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.07},
    {"typical_p": 0.3},
    {"typical_p": 0.9},
    {"epsilon_cutoff": 0.02},
    {"eta_cutoff": 0.05},
    {"top_h": 0.4},
    {"top_k": 12, "typical_p": 0.7, "temperature": 1.4},
    {
        "top_h": 0.9,
        "top_k": 9,
        "top_p": 0.9,
        "min_p": 0.05,
        "typical_p": 0.8,
        "epsilon_cutoff": 0.03,
        "eta_cutoff": 0.1,
    },
]


@pytest.mark.torch
@pytest.mark.parametrize("options", FILTERS)
@pytest.mark.parametrize("vocab", [5, 40, 400])
def test_the_candidates_are_those_of_transformers(options: dict[str, Any], vocab: int) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.GenerationConfig(do_sample=True, **{"top_k": 0, **options})
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=8))
    warp = model._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    ours = GenerationOptions(do_sample=True, **{"top_k": 0, **options})
    for seed in range(20):
        row = np.random.default_rng(seed).normal(size=vocab) * 3
        wanted = warp(torch.tensor([[1]]), torch.tensor(row[None])).numpy()[0]
        found = filtered(row, ours)
        assert np.flatnonzero(np.isneginf(found)).tolist() == np.flatnonzero(np.isneginf(wanted)).tolist()
        kept = np.isfinite(wanted)
        np.testing.assert_allclose(found[kept], wanted[kept], rtol=1e-12)


@pytest.mark.parametrize("options", FILTERS)
def test_tokens_are_drawn_in_proportion(options: dict[str, Any]) -> None:
    model = ToyModel(vocab_size=40)
    kept = filtered(model.executor.random_logits([1, 2]), GenerationOptions(do_sample=True, **{"top_k": 0, **options}))
    probs = np.exp(kept - kept.max())
    probs /= probs.sum()
    n = 4000
    rows = generate(
        model, [1, 2], do_sample=True, num_return_sequences=n, max_new_tokens=1, seed=12, max_batch_size=500,
        **{"top_k": 0, **options},
    )  # fmt: skip
    counts = np.bincount([int(row[-1]) for row in rows], minlength=40)
    assert not counts[probs == 0].any()
    likely = probs * n >= 5
    chi2 = ((counts[likely] - n * probs[likely]) ** 2 / (n * probs[likely])).sum()
    assert chi2 < likely.sum() + 6 * np.sqrt(2 * likely.sum())


def test_a_temperature_that_overflows_leaves_the_highest() -> None:
    row = np.array([1e30, 2e30, -np.inf], np.float32)
    found = filtered(row, GenerationOptions(do_sample=True, temperature=1e-6 * 2, top_k=0))
    assert found.argmax() == 1
    assert np.isneginf(found[[0, 2]]).all() or np.isfinite(found[1])
