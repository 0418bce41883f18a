"""Scores of continuations, surprisal and perplexity: transformers' log-probabilities, and the prefix only once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import ConfigError, ContextLengthError, DTypeError, InputError, NonFiniteError
from fastattn.generation.scoring import score, surprisal
from tests.tasks.tiny import write_gpt2_model
from tests.tasks.toy import ToyModel

PREFIX = [5, 6, 7, 8, 9]
TAILS = [[1, 2, 3], [1], [4, 5, 6, 7, 8, 9, 10, 11], [1, 2, 9], []]
CLOSE = 64 * float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, CausalLM]]:
    transformers = pytest.importorskip("transformers")
    folder = write_gpt2_model(tmp_path_factory.mktemp("gpt2"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval().double()
    with AutoModelForCausalLM.from_pretrained(folder, threads=1) as ours:
        yield theirs, ours


def reference(theirs: Any, ids: list[int]) -> NDArray[np.float64]:
    """Return the log-probability of each token after the first."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].double()
    rows = torch.log_softmax(logits, -1).numpy()
    return np.array([rows[i, token] for i, token in enumerate(ids[1:])])


@pytest.mark.torch
def test_scores_are_those_of_transformers(models: tuple[Any, CausalLM]) -> None:
    theirs, ours = models
    found = ours.score(PREFIX, TAILS)
    assert [row.tolist() for row in found.token_ids] == TAILS
    for tail, logprobs in zip(TAILS, found.logprobs, strict=True):
        wanted = reference(theirs, PREFIX + tail)[len(PREFIX) - 1 :]
        assert logprobs.dtype == np.float32
        np.testing.assert_allclose(logprobs, wanted, rtol=CLOSE, atol=CLOSE)
    np.testing.assert_allclose(found.sums, [row.sum(dtype=np.float64) for row in found.logprobs])
    assert found.best == 4  # no token is certain
    assert found.means[1] == found.logprobs[1][0]


@pytest.mark.torch
def test_scores_have_the_bits_of_one_continuation_alone(models: tuple[Any, CausalLM]) -> None:
    _, ours = models
    together = ours.score(PREFIX, TAILS)
    for i, tail in enumerate(TAILS):
        alone = ours.score(PREFIX, [tail])
        assert alone.logprobs[0].tobytes() == together.logprobs[i].tobytes()
        whole = ours.surprisal(PREFIX + tail)
        assert whole.logprobs[len(PREFIX) :].tobytes() == together.logprobs[i].tobytes()
    (drawn,) = ours.generate([PREFIX], max_new_tokens=6, eos_token_id=-1)
    output = ours.generate([PREFIX], max_new_tokens=6, eos_token_id=-1, return_dict_in_generate=True)
    best = ours.score(PREFIX, [drawn[len(PREFIX) :], TAILS[0]])
    assert best.is_greedy == [True, False]
    assert best.best == 0
    assert best.logprobs[0].tobytes() == output.logprobs[0].tobytes()


@pytest.mark.torch
def test_texts_are_split_with_the_prefix(models: tuple[Any, CausalLM]) -> None:
    theirs, ours = models
    tokenizer = ours.tokenizer
    assert tokenizer is not None
    for prefix, tails in (("the he", ["llo", " or", ""]), ("", ["the", "hello the"])):
        found = ours.score(prefix, tails)
        for tail, ids, logprobs in zip(tails, found.token_ids, found.logprobs, strict=True):
            whole = list(tokenizer.encode(prefix + tail)) if prefix + tail else []
            if not prefix:
                whole = [265, *whole]
            assert whole[len(whole) - len(ids) :] == ids.tolist()
            wanted = reference(theirs, whole)[len(whole) - 1 - len(ids) :] if len(whole) > 1 else np.zeros(0)
            np.testing.assert_allclose(logprobs, wanted, rtol=CLOSE, atol=CLOSE)


class Merging:
    """A tokenizer of single letters in which "ab" and "ac" are one token each."""

    def encode(self, text: str, **options: Any) -> list[int]:
        ids = {"ab": 10, "ac": 11, "a": 1, "b": 2, "c": 3, "d": 4}
        found = []
        while text:
            token = text[:2] if text[:2] in ids else text[:1]
            found.append(ids[token])
            text = text[len(token) :]
        return found


def test_a_token_that_spans_the_whole_prefix_is_scored_after_the_start() -> None:
    model: Any = ToyModel()
    model.tokenizer, model.bos_token_id = Merging(), 30
    tails = ["b", "d", "cd", "", "bdd"]
    wholes = [[30, 10], [1, 4], [30, 11, 4], [1], [30, 10, 4, 4]]
    found = score(model, "a", tails)
    for i, whole in enumerate(wholes):
        alone = score(model, whole[:1], [whole[1:]])
        assert found.token_ids[i].tolist() == whole[1:]
        assert found.logprobs[i].tolist() == alone.logprobs[0].tolist()
        assert len(found.logprobs[i]) == len(whole) - 1
        assert found.is_greedy[i] == alone.is_greedy[0]
    assert model.executor.open_caches == 0


def test_the_prefix_is_fed_once() -> None:
    model = ToyModel(max_positions=600)
    prefix = [i % 32 for i in range(500)]
    tails = [[i, 1, 2, 3, 4, 5] for i in range(16)]
    found = score(model, prefix, tails)
    fed = sum(model.executor.sizes)
    assert fed == 500 + 16 * 5
    assert 16 * (500 + 5) / fed > 8
    assert model.executor.open_caches == 0
    assert len(found.logprobs) == 16
    model.executor.sizes.clear()
    score(model, prefix, [[1, 2, 3, i] for i in range(16)])
    assert sum(model.executor.sizes) == 500 + 16 * 3  # the end of the prefix is where the scores begin


@pytest.mark.torch
@pytest.mark.parametrize("stride", [None, 1, 7, 32, 64])
@pytest.mark.parametrize("length", [2, 64, 65, 66, 150])
def test_surprisal_and_perplexity_of_windows(models: tuple[Any, CausalLM], length: int, stride: int | None) -> None:
    if stride == 1 and length == 150:
        length = 70
    theirs, ours = models
    ids = np.random.default_rng(length).integers(0, 266, length).tolist()
    found = ours.surprisal(ids, stride=stride)
    torch, step = pytest.importorskip("torch"), 32 if stride is None else stride
    wanted, begin = np.full(length, np.nan), 0
    while np.isnan(wanted[1:]).any():
        with torch.no_grad():
            logits = theirs(torch.tensor([ids[begin : begin + 64]])).logits[0].double()
        rows = torch.log_softmax(logits, -1).numpy()
        for i in range(begin + 1, min(begin + 65, length)):
            if np.isnan(wanted[i]):
                wanted[i] = rows[i - 1 - begin, ids[i]]
        begin += step
    assert found.token_ids.tolist() == ids
    assert math.isnan(found.logprobs[0])
    np.testing.assert_allclose(found.logprobs[1:], wanted[1:], rtol=CLOSE, atol=CLOSE)
    np.testing.assert_allclose(found.bits[1:], -wanted[1:] / np.log(2), rtol=CLOSE, atol=CLOSE)
    assert ours.perplexity(ids, stride=stride) == pytest.approx(np.exp(-wanted[1:].mean()), rel=CLOSE)


def test_one_token_has_no_perplexity() -> None:
    model = ToyModel()
    assert surprisal(model, [3]).logprobs.shape == (1,)
    assert len(surprisal(model, []).logprobs) == 0


def test_errors_of_scoring() -> None:
    model = ToyModel()
    cases: list[tuple[Any, Any, type[Exception], str]] = [
        (PREFIX, "abc", DTypeError, "continuations: expected a list"),
        (PREFIX, 3, DTypeError, "continuations: expected a list"),
        (PREFIX, ["a"], DTypeError, "continuations: expected texts after a text, and ids after ids"),
        ("a", [[1]], DTypeError, "continuations: expected texts after a text, and ids after ids"),
        ("a", ["b"], ConfigError, "score: expected a tokenizer"),
        (PREFIX, [[32]], InputError, r"continuations\[0\]\[0\]: expected a token id from 0 to 31"),
        ([[1], [2]], [[3]], InputError, "prefix: expected one sequence"),
        ([[1], [2, 3]], [[3]], InputError, "prefix: expected one sequence"),
        ({1: 2}, [[3]], DTypeError, "prefix: expected token ids"),
        (
            [1] * 64,
            [[1, 2]],
            ContextLengthError,
            r"continuations\[0\]: expected at most 65 tokens with the prefix, got 66",
        ),
        ([], [[1]], InputError, "prefix: expected at least one id"),
    ]
    for prefix, tails, error, message in cases:
        with pytest.raises(error, match=f"^{message}"):
            score(model, prefix, tails)
    assert model.executor.sizes == []
    with pytest.raises(InputError, match="stride: expected 1 to 64, got 0"):
        surprisal(model, PREFIX, stride=0)
    model.executor.logits_of = lambda ids: np.full(32, np.nan)
    with pytest.raises(NonFiniteError):
        score(model, PREFIX, TAILS)
    assert model.executor.open_caches == 0
    assert score(model, PREFIX, []).logprobs == []
