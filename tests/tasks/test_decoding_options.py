"""Options of decoding: of each request, penalties, functions of the user, records, best-of, beams."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.errors import ContextLengthError, DTypeError, InputError, NonFiniteError
from fastattn.generation.generate import generate, stream
from fastattn.generation.options import request_seed
from fastattn.models.outputs import GenerateOutput
from tests.tasks.toy import ToyModel

PROMPTS = [[5, 6, 7], [1], [2, 3, 4, 5, 6, 7, 8, 2, 3]]
EACH: list[dict[str, Any]] = [
    {"do_sample": True, "temperature": 0.7, "seed": 5, "max_new_tokens": 9},
    {"num_beams": 3, "max_new_tokens": 4, "num_return_sequences": 2},
    {"do_sample": True, "typical_p": 0.6, "seed": 6, "presence_penalty": 1.0},
]


def details(model: ToyModel, ids: Any, **options: Any) -> GenerateOutput:
    found = generate(model, ids, return_dict_in_generate=True, **options)
    assert isinstance(found, GenerateOutput)
    return found


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[:4])
def test_each_prompt_may_have_its_own_options(order: tuple[int, ...]) -> None:
    model = ToyModel()
    model.eos_token_ids = (30,)
    prompts, configs = [PROMPTS[i] for i in order], [EACH[i] for i in order]
    found = details(model, prompts, generation_config=configs, max_batch_size=2)
    at = 0
    for prompt, config in zip(prompts, configs, strict=True):
        alone = details(model, [prompt], **config)
        for j in range(len(alone.sequences)):
            assert found.sequences[at + j].tolist() == alone.sequences[j].tolist()
            assert found.logprobs[at + j].tolist() == alone.logprobs[j].tolist()
            assert found.finish_reasons[at + j] == alone.finish_reasons[j]
        at += len(alone.sequences)
    assert at == len(found.sequences)
    assert model.executor.open_caches == 0


def test_seeds_of_prompts_with_their_own_options() -> None:
    model = ToyModel()
    sample: dict[str, Any] = {"do_sample": True, "max_new_tokens": 6}
    found = details(model, PROMPTS, generation_config=[sample, {**sample, "top_k": 3}, sample], seed=9)
    assert found.seeds == [request_seed(9, i) for i in range(3)]
    found = details(model, PROMPTS, generation_config=[{**sample, "seed": i} for i in (4, 4, 7)])
    assert found.seeds == [4, 4, 7]


def test_settings_of_the_call_in_the_options_of_prompts() -> None:
    model = ToyModel()
    config = {"pad_token_id": 9, "return_dict_in_generate": True, "max_new_tokens": 3}
    found = generate(model, [[9, 9, 2], [5, 6, 9]], generation_config=[config, {**config, "max_new_tokens": 2}])
    assert isinstance(found, GenerateOutput)
    alone = [details(model, [[2]], max_new_tokens=3), details(model, [[5, 6]], max_new_tokens=2)]
    assert [row.tolist() for row in found.sequences] == [one.sequences[0].tolist() for one in alone]
    for other in ({"pad_token_id": 8}, {"return_dict_in_generate": False}):
        (name,) = other
        with pytest.raises(InputError, match=rf"generation_config\[1\]: expected {name} .* all prompts share it, got"):
            generate(model, [[2], [5]], generation_config=[config, {**config, **other}])
    # The arguments of the call come first, and a setting that is off is as good as none.
    found = generate(model, [[2], [5]], generation_config=[{}, {"return_dict_in_generate": False}], pad_token_id=1)
    assert isinstance(found, list)


def test_the_default_length_does_not_count_padding() -> None:
    model = ToyModel(max_positions=16)
    model.pad_token_id = 0
    padded = generate(model, [[0] * 13 + [5, 6, 7]])
    assert padded[0].tolist() == generate(model, [[5, 6, 7]])[0].tolist()
    assert len(padded[0]) == 16


def test_the_overflow_of_one_prompt() -> None:
    model, long = ToyModel(max_positions=16), [3, 4] * 10
    own = [{}, {"overflow": "slide"}]
    found = generate(model, [PROMPTS[0], long], generation_config=own, max_new_tokens=9)
    alone = generate(model, [long], overflow="slide", max_new_tokens=9)
    assert [np.asarray(ids).tolist() for ids in found][1] == np.asarray(alone[0]).tolist()
    with pytest.raises(ContextLengthError, match=r"input_ids\[1\]: expected prompt and max_new_tokens to fit"):
        generate(model, [PROMPTS[0], long], generation_config=[{}, {}], max_new_tokens=9)


def test_a_list_of_seeds_with_own_options() -> None:
    model, sample = ToyModel(), {"do_sample": True, "max_new_tokens": 6}
    configs = [{**sample, "num_return_sequences": 2}, sample, {**sample, "top_k": 3}]
    found = details(model, PROMPTS, generation_config=configs, seed=[4, 5, 6, 7])
    assert found.seeds == [4, 5, 6, 7]
    alone = details(model, PROMPTS[0], num_return_sequences=2, seed=[4, 5], **sample).sequences
    alone += [details(model, PROMPTS[1], seed=6, **sample).sequences[0]]
    alone += [details(model, PROMPTS[2], seed=7, top_k=3, **sample).sequences[0]]
    assert [ids.tolist() for ids in found.sequences] == [ids.tolist() for ids in alone]
    with pytest.raises(InputError, match="seed: expected 4 seeds, one for each request, got 3"):
        generate(model, PROMPTS, generation_config=configs, seed=[4, 5, 6])


def test_an_error_names_the_text_and_not_the_prompt() -> None:
    model = ToyModel()
    model.executor.logits_of = lambda ids: np.full(32, np.nan if ids[0] == 1 else 0.0)
    with pytest.raises(NonFiniteError, match=r"logits\[5\]"):  # the last text of prompt 1
        generate(model, [[5, 6], [1]], do_sample=True, num_return_sequences=3, max_new_tokens=2)


def test_errors_of_own_options() -> None:
    model = ToyModel()
    with pytest.raises(InputError, match=r"generation_config: expected one for each of 3 prompts, got 1"):
        generate(model, PROMPTS, generation_config=[{}])
    with pytest.raises(InputError, match=r"generation_config\[1\]: unknown keyword 'top_kk'"):
        generate(model, PROMPTS, generation_config=[{}, {"top_kk": 1}, {}])
    with pytest.raises(InputError, match=r"generation_config\[2\]: expected no max_batch_size"):
        generate(model, PROMPTS, generation_config=[{}, {}, {"max_batch_size": 3}])
    with pytest.raises(InputError, match=r"generation_config\[1\]: expected no priority"):
        generate(model, PROMPTS, generation_config=[{}, {"priority": 3}, {}])
    with pytest.raises(DTypeError, match=r"generation_config: expected a GenerationConfig or a mapping, got 3"):
        generate(model, PROMPTS, generation_config=[{}, 3, {}])


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0.0), (0.0, 0.7), (-0.4, 1.1)])
def test_presence_and_frequency_penalties_count_the_new_text(presence: float, frequency: float) -> None:
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence."""
    model, ids = ToyModel(vocab_size=6), [1, 2, 3]
    found = details(
        model, [ids], presence_penalty=presence, frequency_penalty=frequency, max_new_tokens=12, output_scores=True
    )
    assert found.scores is not None
    new: list[int] = []
    for scores in found.scores[0]:
        counts = np.bincount(np.array(new, np.int64), minlength=6)
        wanted = model.executor.random_logits([*ids, *new]) - counts * frequency - (counts > 0) * presence
        np.testing.assert_allclose(scores, wanted, rtol=1e-12)
        new.append(int(wanted.argmax()))
    assert found.sequences[0].tolist() == [*ids, *new]


def test_logit_bias_is_a_sequence_bias_of_single_ids() -> None:
    model = ToyModel()
    expected = generate(model, PROMPTS, sequence_bias={(3,): 5.0, (9,): -2.5}, max_new_tokens=8)
    for bias in ({3: 5.0, 9: -2.5}, {"3": 5.0, "9": -2.5}):
        found = generate(model, PROMPTS, logit_bias=bias, max_new_tokens=8)
        assert [row.tolist() for row in found] == [row.tolist() for row in expected]
    banned = generate(model, PROMPTS, logit_bias=dict.fromkeys(range(31), -np.inf), max_new_tokens=3)
    assert all(row.tolist()[-3:] == [31, 31, 31] for row in banned)


@pytest.mark.parametrize(
    "options",
    [
        {"sequence_bias": {(32,): 1.0}},
        {"logit_bias": {32: 1.0}},
        {"bad_words_ids": [[1, 32]]},
        {"suppress_tokens": [32]},
        {"begin_suppress_tokens": [32]},
        {"forced_bos_token_id": 32},
        {"forced_eos_token_id": [1, 32]},
    ],
)
def test_ids_that_the_model_does_not_have(options: dict[str, Any]) -> None:
    model = ToyModel()
    (name,) = options
    with pytest.raises(InputError, match=f"^{name}: expected token ids from 0 to 31, got 32"):
        generate(model, PROMPTS, **options)
    assert model.executor.sizes == []


def test_options_that_leave_nothing() -> None:
    model = ToyModel()
    for more in ({}, {"num_beams": 2}):
        with pytest.raises(InputError, match="leave at least one id to draw, got ones that forbid all after 3 tokens"):
            generate(model, PROMPTS[0], suppress_tokens=range(32), **more)
    assert model.executor.open_caches == 0


def test_processors_of_the_user() -> None:
    model, seen = ToyModel(), list[tuple[Any, Any]]()

    def only_even(input_ids: NDArray[np.int64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        seen.append((input_ids.shape, input_ids.dtype))
        scores[:, 1::2] = -np.inf
        return scores

    found = details(model, PROMPTS, logits_processor=[only_even, lambda ids, scores: scores * 2], max_new_tokens=5)
    assert all(token % 2 == 0 for row, p in zip(found.sequences, PROMPTS, strict=True) for token in row[len(p) :])
    assert ((1, 3), np.dtype(np.int64)) in seen
    assert {shape[0] for shape, _ in seen} == {1}
    single = generate(model, PROMPTS[0], logits_processor=only_even, max_new_tokens=5)
    assert np.asarray(single).tolist() == found.sequences[0].tolist()
    pieces: list[int] = []
    generate(
        model, PROMPTS[0], logits_processor=lambda ids, s: pieces.append(1) or s, max_new_tokens=5, output_scores=True
    )
    assert len(pieces) == 5  # once per token


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda ids, scores: None, DTypeError, "expected it to return an array of floats, got None"),
        (lambda ids, scores: scores[0], InputError, r"expected it to return an array of shape \(1, 32\), got \(32,\)"),
        (lambda ids, scores: scores * np.nan, NonFiniteError, "logits"),
        (lambda ids, scores: 1 / 0, ZeroDivisionError, "division"),
    ],
)
def test_processors_of_the_user_that_are_wrong(function: Any, error: type[Exception], message: str) -> None:
    model = ToyModel()
    with pytest.raises(error, match=message):
        generate(model, PROMPTS, logits_processor=function)
    assert model.executor.open_caches == 0


@pytest.mark.parametrize("options", [{}, {"typical_p": 0.9}, {"num_beams": 2}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_processors_of_the_user_that_return_no_number(options: dict[str, Any], value: float) -> None:
    def process(ids: Any, scores: Any) -> Any:
        scores[0, 7] = value
        return scores

    with pytest.raises(NonFiniteError, match=rf"logits_processor\[0\]: .* got {value}"):
        generate(ToyModel(), PROMPTS[0], do_sample=True, seed=1, logits_processor=process, **options)


@pytest.mark.parametrize(("factor", "dtype"), [(1e300, np.float64), (1e300, np.float32), (1e20, np.float32)])
def test_a_decay_too_large_for_a_float_ends_the_text(factor: float, dtype: Any) -> None:
    model = ToyModel()
    model.executor.logits_of = lambda ids: np.where(np.arange(32) == 6, 9.0, 1.0).astype(dtype)
    decay = (0, factor)
    found = generate(
        model, PROMPTS[0], exponential_decay_length_penalty=decay, eos_token_id=5, min_new_tokens=4, max_new_tokens=9
    )
    assert np.asarray(found)[3:].tolist() == [6, 6, 6, 6, 5]


def test_allowed_tokens_of_the_user() -> None:
    model, calls = ToyModel(), set[int]()

    def allowed(index: int, ids: NDArray[np.int64]) -> list[int]:
        calls.add(index)
        return [index, index + 10]

    found = generate(model, PROMPTS, prefix_allowed_tokens_fn=allowed, max_new_tokens=5)
    for i, (row, prompt) in enumerate(zip(found, PROMPTS, strict=True)):
        assert set(row[len(prompt) :].tolist()) <= {i, i + 10}
    assert calls == {0, 1, 2}
    for wrong, error in (([], InputError), ([32], InputError), ("a", DTypeError)):
        with pytest.raises(error, match=r"^prefix_allowed_tokens_fn"):
            generate(model, PROMPTS, prefix_allowed_tokens_fn=lambda i, ids, wrong=wrong: wrong)


def test_stopping_criteria_of_the_user() -> None:
    model = ToyModel()
    found = details(model, PROMPTS, stopping_criteria=lambda ids, scores: ids.shape[1] >= 7, max_new_tokens=6)
    assert [len(row) for row in found.sequences] == [7, 7, 10]
    assert found.finish_reasons == ["stopping_criteria"] * 3
    assert [len(row) for row in details(model, PROMPTS, stopping_criteria=[lambda ids, _: np.array([False])]).sequences]
    with pytest.raises(DTypeError, match=r"stopping_criteria\[0\]: expected it to return True or False, got 3"):
        generate(model, PROMPTS, stopping_criteria=lambda ids, scores: 3)
    beams = details(model, PROMPTS, stopping_criteria=lambda ids, scores: ids.shape[1] >= 7, num_beams=2)
    assert [len(row) for row in beams.sequences] == [7, 7, 10]
    assert beams.finish_reasons == ["stopping_criteria"] * 3


def test_top_logprobs() -> None:
    model = ToyModel()
    plain = details(model, PROMPTS, max_new_tokens=4, do_sample=True, seed=3)
    found = details(model, PROMPTS, max_new_tokens=4, do_sample=True, seed=3, top_logprobs=5)
    assert [row.tolist() for row in found.sequences] == [row.tolist() for row in plain.sequences]
    assert found.top_logprobs is not None
    for prompt, row, tops in zip(PROMPTS, found.sequences, found.top_logprobs, strict=True):
        for at, (ids, logprobs) in enumerate(tops):
            logits = model.executor.random_logits(row[: len(prompt) + at].tolist())
            wanted = logits - np.log(np.exp(logits).sum())
            assert ids.tolist() == np.argsort(-wanted, kind="stable")[:5].tolist()
            np.testing.assert_allclose(logprobs, np.sort(wanted)[::-1][:5], rtol=1e-6)


def test_best_of_returns_the_likeliest() -> None:
    model = ToyModel()
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 5, "seed": 4}
    every = details(model, PROMPTS, num_return_sequences=6, **options)
    best = details(model, PROMPTS, num_return_sequences=2, best_of=6, **options)
    assert len(best.sequences) == 6
    for i in range(3):
        means = [float(np.mean(row)) for row in every.logprobs[6 * i : 6 * i + 6]]
        order = sorted(range(6), key=lambda j: -means[j])[:2]
        for rank, j in enumerate(order):
            assert best.sequences[2 * i + rank].tolist() == every.sequences[6 * i + j].tolist()
            assert best.seeds[2 * i + rank] == every.seeds[6 * i + j]
    with pytest.raises(InputError, match="best_of: expected at least num_return_sequences 3, got 2"):
        generate(model, PROMPTS, num_return_sequences=3, best_of=2, **options)
    with pytest.raises(InputError, match="best_of: expected 1, got 2; use generate"):
        stream(model, PROMPTS[0], best_of=2, **options)


def logprobs_of(model: ToyModel, ids: list[int]) -> NDArray[np.float32]:
    logits = model.executor.random_logits(ids)
    shifted = logits - logits.max()
    row: NDArray[np.float32] = (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)
    return row


@pytest.mark.parametrize(("groups", "penalty"), [(2, 0.0), (2, 1.5), (3, 0.8), (6, 4.0)])
def test_diverse_groups(groups: int, penalty: float) -> None:
    """Vijayakumar et al. 2016: each group searches on its own, and avoids the tokens of earlier groups in a step."""
    model, n_beams, n_new = ToyModel(), 6, 5
    per = n_beams // groups
    found = details(
        model, PROMPTS, num_beams=n_beams, num_beam_groups=groups, diversity_penalty=penalty,
        num_return_sequences=n_beams, max_new_tokens=n_new,
    )  # fmt: skip
    assert found.sequences_scores is not None
    for i, prompt in enumerate(PROMPTS):
        beams = [[(0.0, list(prompt))] for _ in range(groups)]
        for _ in range(n_new):
            used: list[int] = []
            for g in range(groups):
                counts = np.bincount(np.array(used, np.int64), minlength=32)
                grown = [
                    (score + float(row[t] - penalty * counts[t]), [*ids, t])
                    for score, ids in beams[g]
                    for row in [logprobs_of(model, ids)]
                    for t in range(32)
                ]
                beams[g] = sorted(grown, key=lambda pair: -pair[0])[:per]
                used += [ids[-1] for _, ids in beams[g]]
        wanted = sorted((pair for group in beams for pair in group), key=lambda pair: -pair[0])
        part = slice(i * n_beams, (i + 1) * n_beams)
        assert [row.tolist() for row in found.sequences[part]] == [ids for _, ids in wanted]
        np.testing.assert_allclose(found.sequences_scores[part], [score / n_new for score, _ in wanted], rtol=1e-5)
    assert model.executor.open_caches == 0


def test_beams_do_not_depend_on_the_batch_or_the_seed() -> None:
    model = ToyModel()
    model.eos_token_ids = (30, 31, 3, 4)
    for options in ({"num_beams": 4}, {"num_beams": 4, "do_sample": True, "seed": [1, 2, 3]}):
        found = generate(model, PROMPTS, max_new_tokens=8, **options)
        for batch in (1, 4, 9):
            again = generate(model, PROMPTS, max_new_tokens=8, max_batch_size=batch, **options)
            assert [row.tolist() for row in again] == [row.tolist() for row in found]
        for i, prompt in enumerate(PROMPTS):
            one = generate(
                model, prompt, max_new_tokens=8, **{**options, **({"seed": i + 1} if "seed" in options else {})}
            )
            assert np.asarray(one).tolist() == found[i].tolist()
    assert model.executor.open_caches == 0


def test_beam_sampling_draws_without_replacement() -> None:
    """With one new token, the two best of four candidates drawn without replacement are returned."""
    model = ToyModel(vocab_size=6)
    probs = np.exp(logprobs_of(model, [1, 2]).astype(np.float64))
    probs /= probs.sum()
    wanted: dict[tuple[int, int], float] = {}
    for drawn in itertools.permutations(range(6), 4):
        chance, left = 1.0, 1.0
        for token in drawn:
            chance *= probs[token] / left
            left -= probs[token]
        best = tuple(sorted(drawn, key=lambda token: -probs[token])[:2])
        wanted[best] = wanted.get(best, 0.0) + chance
    n, counts = 3000, dict[tuple[int, int], int]()
    for seed in range(n):
        rows = generate(
            model, [1, 2], num_beams=2, num_return_sequences=2, do_sample=True, top_k=0, max_new_tokens=1, seed=seed
        )
        pair = (int(rows[0][-1]), int(rows[1][-1]))
        counts[pair] = counts.get(pair, 0) + 1
    assert set(counts) <= set(wanted)
    chi2 = sum((counts.get(pair, 0) - n * p) ** 2 / (n * p) for pair, p in wanted.items())
    assert chi2 < len(wanted) + 6 * np.sqrt(2 * len(wanted))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 3, "num_return_sequences": 4}, "num_return_sequences: expected at most num_beams 3, got 4"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups: expected a divisor of num_beams 4, got 3"),
        ({"num_beams": 4, "num_beam_groups": 2, "do_sample": True}, "num_beam_groups: expected 1 with do_sample=True"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "diversity_penalty: expected 0 with one group"),
        ({"num_beams": 4, "best_of": 2, "do_sample": True}, "best_of: expected do_sample=True and no beams"),
    ],
)
def test_options_of_beams_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        generate(ToyModel(), PROMPTS, **options)


def test_the_end_of_a_generator_of_beams_frees_memory() -> None:
    model = ToyModel()

    def broken(ids: list[int]) -> NDArray[np.float64]:
        return np.full(32, np.nan) if len(ids) > 5 else model.executor.random_logits(ids)

    model.executor.logits_of = broken
    with pytest.raises(NonFiniteError):
        generate(model, PROMPTS, num_beams=3)
    assert model.executor.open_caches == 0
