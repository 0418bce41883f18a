"""The sampler: its numpy specification against transformers' filters, and the C++ sampler against the specification."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fastattn.errors import NonFiniteError
from fastattn.generation.numpy_sampler import SAMPLE_PARAMS, philox4x32, sample, uniform


def params(n: int = 1, **values: Any) -> np.ndarray:
    record = np.zeros(n, SAMPLE_PARAMS)
    defaults = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "do_sample": 1}
    for name, value in {**defaults, **values}.items():
        record[name] = value
    return record


def draw(logits: np.ndarray, history: list[int] | None = None, **values: Any) -> list[int]:
    n = len(logits)
    past = np.array((history or []) * n, np.int32)
    offsets = np.arange(n + 1, dtype=np.int64) * len(history or [])
    return sample(logits, params(n, **values), past, offsets)[0].tolist()


def test_philox_known_answers() -> None:
    """From the Random123 distribution's kat_vectors."""
    ones = 0xFFFFFFFF
    assert philox4x32((0, 0), (0, 0, 0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32((ones, ones), (ones,) * 4) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    digits = philox4x32((0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344))
    assert digits == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_uniform_is_in_range() -> None:
    values = [uniform(seed, counter) for seed in range(50) for counter in range(50)]
    assert 0 <= min(values) < 0.01
    assert 0.99 < max(values) < 1
    assert len(set(values)) > 2400


def test_greedy_and_ties() -> None:
    logits = np.array([[1.0, 3.0, 3.0, 2.0]])
    assert draw(logits, do_sample=0) == [1]
    assert draw(logits, temperature=0) == [1]
    assert draw(logits, do_sample=0, history=[1], repetition_penalty=2) == [2]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p", "temperature"),
    [(0, 1, 0, 1), (5, 1, 0, 1), (0, 0.7, 0, 1), (0, 1, 0.2, 1), (7, 0.8, 0.05, 0.6), (3, 0.9, 0, 2.5), (1, 0, 1, 1)],
)
def test_candidates_are_transformers(top_k: int, top_p: float, min_p: float, temperature: float) -> None:
    """The ids that can be drawn, found by drawing with many seeds, are those that transformers' processors leave."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers").generation.logits_process
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(1, 20)) * 1.5
    history = [2, 3, 5]
    scores = torch.from_numpy(logits)
    warpers = [
        process.RepetitionPenaltyLogitsProcessor(1.4),
        process.TemperatureLogitsWarper(float(temperature)),
        *([process.TopKLogitsWarper(top_k)] if top_k else []),
        *([process.TopPLogitsWarper(float(top_p))] if top_p < 1 else []),
        *([process.MinPLogitsWarper(float(min_p))] if min_p > 0 else []),
    ]
    for warper in warpers:
        scores = warper(torch.tensor([history]), scores)
    expected = scores.softmax(-1).numpy()[0]
    n = 4000
    drawn = draw(
        np.repeat(logits, n, axis=0), history, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature,
        repetition_penalty=1.4, seed=np.arange(n),
    )  # fmt: skip
    counts = np.bincount(drawn, minlength=20)
    assert (counts[expected == 0] == 0).all()
    assert (counts[expected > 0.01] > 0).all()
    spread = np.sqrt(n * expected * (1 - expected))
    assert (np.abs(counts - n * expected) <= 5 * spread).all()  # five standard deviations of a binomial


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_fault_56_non_finite(bad: list[float]) -> None:
    logits = np.array([[0.0, 1.0], bad])
    with pytest.raises(NonFiniteError, match=r"logits\[1\]"):
        draw(logits)


def test_minus_infinity_is_never_drawn() -> None:
    logits = np.full((500, 8), -np.inf)
    logits[:, [2, 5]] = 0
    assert set(draw(logits, seed=np.arange(500))) == {2, 5}


@pytest.mark.parametrize("top_p", [0.9, 1.0])
@pytest.mark.parametrize("row", [[-3e38, -2e38, -3e38], [2e38, 3e38, 2.5e38]], ids=["low", "high"])
def test_logits_that_leave_float32_give_the_highest(row: list[float], top_p: float) -> None:
    """Divided by the temperature all are -inf, or several are +inf: there is nothing to draw from."""
    logits = np.array([row], np.float32)
    record, none, offsets = params(temperature=0.5, top_p=top_p), np.zeros(0, np.int32), np.zeros(2, np.int64)
    assert sample(logits, record, none, offsets)[0].tolist() == [1]
    from fastattn import _core

    assert _core.sample(logits, record, none, offsets)[0].tolist() == [1]


def test_the_compiled_sampler_follows_the_specification() -> None:
    from fastattn import _core

    rng = np.random.default_rng(8)
    n, vocab = 400, 300
    logits = (rng.normal(size=(n, vocab)) * 3).astype(np.float32)
    record = params(n, seed=rng.integers(0, 2**63, n), counter=np.arange(n))
    record["top_k"] = rng.choice([0, 1, 7, 50, 1000], n)
    record["top_p"] = rng.choice([0, 0.5, 0.95, 1], n)
    record["min_p"] = rng.choice([0, 0.05], n)
    record["temperature"] = rng.choice([0, 0.5, 1, 1.7], n)
    record["repetition_penalty"] = rng.choice([1, 1.3], n)
    record["do_sample"] = rng.choice([0, 1], n, p=[0.2, 0.8])
    lengths = rng.integers(0, 20, n)
    history = rng.integers(0, vocab, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    expected, expected_logprobs = sample(logits, record, history, offsets)
    ids, logprobs = _core.sample(logits, record, history, offsets)
    # Boundaries between candidates are float32 sums: about once in 10^5, a draw may fall on the other side of one.
    assert (ids == expected).sum() >= n - 1
    same = ids == expected
    bound = 16 * np.spacing(np.abs(expected_logprobs[same]).max())
    assert np.abs(logprobs[same] - expected_logprobs[same]).max() <= bound
    for bad in (np.nan, np.inf):
        logits[3, 4] = bad
        with pytest.raises(NonFiniteError, match="3"):
            _core.sample(logits, record, history, offsets)


def exact_draw(row: np.ndarray, params: np.void, history: np.ndarray) -> int:
    """Draw with the softmax kernel's float32 probabilities, summed in integers of 2^-62."""
    from fastattn._core import kernels

    scores = row.copy()
    seen = np.unique(history)
    penalty = params["repetition_penalty"]
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    highest = int(scores.argmax())
    if not params["do_sample"] or params["temperature"] == 0:
        return highest
    with np.errstate(over="ignore"):
        scores /= params["temperature"]
    if not np.isfinite(scores.max()):
        return highest
    order = np.lexsort((np.arange(len(scores)), -scores))
    order = order[: np.count_nonzero(scores > -np.inf)]
    if 0 < params["top_k"] < len(order):
        scores[scores < scores[order[params["top_k"] - 1]]] = -np.inf
        order = order[: np.count_nonzero(scores > -np.inf)]
    probs = kernels.softmax_f32("scalar", scores[None])[0][order]
    running = list(itertools.accumulate(int(Fraction(float(p)) * 2**62) for p in probs))
    kept = len(order)
    if params["top_p"] < 1:
        limit = Fraction(float(params["top_p"])) * 2**62
        kept = next((i + 1 for i, total in enumerate(running) if total >= limit), kept)
    if params["min_p"] > 0:
        kept = min(kept, int((probs >= params["min_p"] * probs[0]).sum()))
    words = philox4x32((int(params["seed"]) & 0xFFFFFFFF, int(params["seed"]) >> 32), (int(params["counter"]), 0, 0, 0))
    drawn = Fraction(words[0] >> 8, 2**24) * running[kept - 1]
    return int(order[next(i for i, total in enumerate(running) if total > drawn)])


@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "holes", "far apart", "two groups"])
def test_the_compiled_sampler_is_exact(kind: str) -> None:
    """Ids equal those of sums without rounding, in whatever order the kernels process the candidates."""
    from fastattn import _core

    rng = np.random.default_rng(11)
    for vocab in (1, 2, 17, 64, 300):
        n = 200
        logits = rng.normal(size=(n, vocab)) * rng.choice([0.1, 1, 4], (n, 1))
        if kind == "ties":
            logits = np.round(logits)
        elif kind == "equal":
            logits[:] = 0.25
        elif kind == "holes":
            logits[rng.random(logits.shape) < 0.5] = -np.inf
            logits[:, vocab // 2] = 1
        elif kind == "far apart":
            logits *= 1e37
        elif kind == "two groups":
            logits[:, : vocab // 2] += 42
        record = params(n, seed=rng.integers(0, 2**64, n, dtype=np.uint64), counter=np.arange(n))
        record["top_k"] = rng.choice([0, 1, 3, 50, 299], n)
        record["top_p"] = rng.choice([0, 0.1, 0.5, 0.95, 0.9999999, 1], n)
        record["min_p"] = rng.choice([0, 0, 0.05, 1], n)
        record["temperature"] = rng.choice([0, 0.3, 1, 1.7, 1e20, 1e38], n)
        record["repetition_penalty"] = rng.choice([1, 1, 1.3, 1e-6, 1e6], n)
        record["do_sample"] = rng.choice([0, 1], n, p=[0.1, 0.9])
        lengths = rng.integers(0, 9, n)
        history = rng.integers(0, vocab, lengths.sum()).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        rows = logits.astype(np.float32)
        with np.errstate(over="ignore"):
            expected = [exact_draw(rows[i], record[i], history[offsets[i] : offsets[i + 1]]) for i in range(n)]
        assert _core.sample(rows, record, history, offsets)[0].tolist() == expected
