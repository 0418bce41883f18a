"""Every deterministic option of decoding gives transformers' tokens, in a ragged batch.

transformers has no presence_penalty and frequency_penalty; a logits processor in PyTorch takes their place. It no
longer has groups of beams: `test_diverse_groups` compares them with the formula. `test_filters` compares what remains
after each filter of sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.models.outputs import GenerateOutput
from tests.tasks.tiny import write_gpt2_model

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
hf = pytest.importorskip("tests.reference.hf")

VOCAB = 40
EOS = 7
PROMPTS = [[3], [5, 6, 3, 5, 6, 3, 5], [1, 2, 3, 4, 5, 6, 8, 9, 1, 2, 3], [9, 9], [30, 31, 32, 33, 30, 31]]
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "reward": {"repetition_penalty": 0.6},
    "no_repeat_1": {"no_repeat_ngram_size": 1, "max_new_tokens": 12},
    "no_repeat_2": {"no_repeat_ngram_size": 2},
    "no_repeat_3": {"no_repeat_ngram_size": 3},
    "bias": {"sequence_bias": [[[3], -6.0], [[12], 4.0], [[12, 12], -5.5], [[5, 6], 3.0]]},
    "bad_words": {"bad_words_ids": [[3], [12], [5, 6], [12, 13, 14], [EOS], [0]]},
    "suppress": {"suppress_tokens": [0, 1, 2, 12, 39]},
    "begin": {"begin_suppress_tokens": list(range(20))},
    "forced_bos": {"forced_bos_token_id": 17},
    "forced_bos_begin": {"forced_bos_token_id": 17, "begin_suppress_tokens": [12, 13]},
    "forced_eos": {"forced_eos_token_id": EOS},
    "forced_eos_list": {"forced_eos_token_id": [9, EOS]},
    "min_new": {"min_new_tokens": 9, "eos_token_id": [EOS, 12, 13, 14, 15]},
    "several_eos": {"eos_token_id": [EOS, 12, 13, 14, 15]},
    "decay": {"exponential_decay_length_penalty": (3, 1.3)},
    "min_length": {"min_length": 14, "eos_token_id": [EOS, 12, 13, 14, 15]},
    "max_length": {"max_length": 15, "max_new_tokens": None},
    "both_lengths": {"max_length": 17, "min_length": 13, "max_new_tokens": None, "eos_token_id": [EOS, 12, 13, 14, 15]},
    "logit_bias": {"logit_bias": {3: -6.0, 12: 4.0, 18: -2.5}},
    "presence": {"presence_penalty": 1.1},
    "frequency": {"frequency_penalty": 0.7},
    "presence_and_frequency": {"presence_penalty": -0.4, "frequency_penalty": 0.9},
    "all": {
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "sequence_bias": [[[4], 1.5], [[8], -1.0]],
        "bad_words_ids": [[1, 2], [10]], "suppress_tokens": [30], "begin_suppress_tokens": [20, 21, 22],
        "forced_eos_token_id": EOS, "exponential_decay_length_penalty": (2, 1.1),
    },
}  # fmt: skip
BEAMS: dict[str, dict[str, Any]] = {
    "2": {"num_beams": 2},
    "4": {"num_beams": 4},
    "4_best": {"num_beams": 4, "num_return_sequences": 4},
    "4_true": {"num_beams": 4, "early_stopping": True, "num_return_sequences": 2},
    "4_never": {"num_beams": 4, "early_stopping": "never", "num_return_sequences": 4},
    "longer": {"num_beams": 3, "length_penalty": 2.0, "num_return_sequences": 3},
    "longer_never": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": "never", "num_return_sequences": 3},
    "shorter": {"num_beams": 3, "length_penalty": -1.0, "num_return_sequences": 3},
    "none": {"num_beams": 3, "length_penalty": 0.0, "early_stopping": "never", "num_return_sequences": 3},
    "one_token": {"num_beams": 3, "max_new_tokens": 1, "num_return_sequences": 3},
    "many": {"num_beams": 12, "num_return_sequences": 12},
}
ENDS: list[dict[str, Any]] = [{"eos_token_id": EOS}, {"eos_token_id": [EOS, 12, 13, 14, 15, 16, 17, 18]}, {}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, CausalLM]]:
    theirs = hf.make(
        "GPT2LMHeadModel", seed=3, vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4,
    )  # fmt: skip
    folder = hf.save(theirs, tmp_path_factory.mktemp("gpt2"))
    with AutoModelForCausalLM.from_pretrained(folder, threads=1) as ours:
        yield theirs, ours


def expected(model: Any, prompt: list[int], **options: Any) -> Any:
    """Return transformers' output for one prompt, without padding."""
    ids = torch.tensor([prompt])
    if "logit_bias" in options:
        options["sequence_bias"] = [[[i], bias] for i, bias in options.pop("logit_bias").items()]
    presence, frequency = options.pop("presence_penalty", 0.0), options.pop("frequency_penalty", 0.0)
    if presence or frequency:

        def penalize(seen: Any, scores: Any) -> Any:
            counts = torch.nn.functional.one_hot(seen[:, len(prompt) :], VOCAB).sum(1)
            return scores - presence * (counts > 0) - frequency * counts

        options["logits_processor"] = [penalize]
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), pad_token_id=0, do_sample=False, return_dict_in_generate=True,
        output_scores=True, output_logits=True, **{"max_new_tokens": 20, "eos_token_id": EOS, **options},
    )  # fmt: skip


def rows_of(found: Any, prompt: list[int], eos: Any) -> list[list[int]]:
    """Return the sequences without the padding after the end."""
    ends = {eos} if isinstance(eos, int) else set(eos or ())
    rows = []
    for row in found.sequences.tolist():
        new = row[len(prompt) :]
        stop = next((i + 1 for i, token in enumerate(new) if token in ends), len(new))
        rows.append(row[: len(prompt) + stop])
    return rows


@pytest.mark.parametrize("name", OPTIONS)
def test_greedy_tokens_are_those_of_transformers(models: tuple[Any, CausalLM], name: str) -> None:
    theirs, ours = models
    options = {"max_new_tokens": 20, "eos_token_id": EOS, **OPTIONS[name]}
    found = ours.generate(PROMPTS, return_dict_in_generate=True, output_scores=True, output_logits=True, **options)
    plain = ours.generate(PROMPTS, **options)
    assert found.scores is not None
    assert found.logits is not None
    for i, prompt in enumerate(PROMPTS):
        reference = expected(theirs, prompt, **options)
        assert [found.sequences[i].tolist()] == rows_of(reference, prompt, options["eos_token_id"]), prompt
        assert found.sequences[i].tolist() == plain[i].tolist()
        for ours_of, theirs_of in ((found.scores[i], reference.scores), (found.logits[i], reference.logits)):
            assert len(ours_of) == len(found.sequences[i]) - len(prompt)
            for row, wanted in zip(ours_of, theirs_of, strict=True):
                assert_close(row, wanted[0].numpy())


def assert_close(found: Any, wanted: Any) -> None:
    """Equal where infinite, and within the rounding of float32 elsewhere."""
    assert found.dtype == np.float32
    assert (np.isneginf(found) == np.isneginf(wanted)).all()
    finite = np.isfinite(wanted)
    scale = np.abs(wanted[finite]).max(initial=1.0)
    assert np.abs(found[finite] - wanted[finite]).max(initial=0.0) < 256 * scale * np.finfo(np.float32).eps


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, CausalLM]]:
    """Return a model with a tokenizer of bytes."""
    transformers = pytest.importorskip("transformers")
    folder = write_gpt2_model(tmp_path_factory.mktemp("writer"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with AutoModelForCausalLM.from_pretrained(folder, threads=1) as ours:
        yield theirs, transformers.AutoTokenizer.from_pretrained(folder), ours


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_stop_strings_end_where_those_of_transformers_begin(
    writers: tuple[Any, Any, CausalLM], length: int, beams: int
) -> None:
    """transformers returns the stop string too. The tokens are those that lie before it."""
    theirs, tokenizer, ours = writers
    prompts = [tokenizer.encode(text) for text in ("the", "hello world", "a b c d e f", "q")]
    letters = [
        i for i in range(len(tokenizer)) if tokenizer.decode([i]).isascii() and tokenizer.decode([i]).isprintable()
    ]
    options: dict[str, Any] = {
        "max_new_tokens": 16, "num_beams": beams, "repetition_penalty": 1.4,
        "suppress_tokens": [i for i in range(len(tokenizer)) if i not in letters],
    }  # fmt: skip
    plain = [tokenizer.decode(expected(theirs, p, **options).sequences[0][len(p) :]) for p in prompts]
    stops = [text[begin : begin + length] for text, begin in zip(plain, (3, 6, 9, 5), strict=True)]
    found = ours.generate(prompts, stop_strings=stops, return_dict_in_generate=True, **options)
    assert found.texts is not None
    n_stopped = 0
    for i, prompt in enumerate(prompts):
        reference = expected(theirs, prompt, stop_strings=stops, tokenizer=tokenizer, **options)
        new = reference.sequences[0].tolist()[len(prompt) :]
        text = tokenizer.decode(new)
        at = min((place for place in map(text.find, stops) if place >= 0), default=len(text))
        whole = max(n for n in range(len(new) + 1) if len(tokenizer.decode(new[:n])) <= at)
        assert found.texts[i] == text[:at]
        assert found.sequences[i].tolist() == [*prompt, *new[:whole]]
        assert (found.finish_reasons[i] == "stop_string") == (at < len(text))
        n_stopped += at < len(text)
    assert n_stopped == len(prompts) if beams == 1 else n_stopped  # the best beam may be one without a stop string


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("name", BEAMS)
def test_beams_are_those_of_transformers(models: tuple[Any, CausalLM], name: str, ends: dict[str, Any]) -> None:
    theirs, ours = models
    options = {"max_new_tokens": 14, "eos_token_id": None, **ends, **BEAMS[name]}
    found = ours.generate(
        PROMPTS, return_dict_in_generate=True, **{**options, "eos_token_id": options["eos_token_id"] or -1}
    )
    check_beams(found, theirs, options)


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("greedy", "no_repeat_1")])
def test_beams_with_processors_are_those_of_transformers(models: tuple[Any, CausalLM], name: str) -> None:
    theirs, ours = models
    options = {"max_new_tokens": 12, "eos_token_id": EOS, "num_beams": 3, "num_return_sequences": 2, **OPTIONS[name]}
    check_beams(ours.generate(PROMPTS, return_dict_in_generate=True, **options), theirs, options)


def check_beams(found: GenerateOutput, theirs: Any, options: dict[str, Any]) -> None:
    n = options.get("num_return_sequences", 1)
    assert found.sequences_scores is not None
    assert found.beam_indices is not None
    for i, prompt in enumerate(PROMPTS):
        reference = expected(theirs, prompt, **options)
        part = slice(i * n, (i + 1) * n)
        scores = reference.sequences_scores.numpy()
        np.testing.assert_allclose(found.sequences_scores[part], scores, rtol=2e-5)
        wanted = zip(
            rows_of(reference, prompt, options["eos_token_id"]),
            [[index for index in row if index >= 0] for row in reference.beam_indices.tolist()],
            strict=True,
        )
        ours = zip(
            [row.tolist() for row in found.sequences[part]],
            [row.tolist() for row in found.beam_indices[part]],
            strict=True,
        )
        assert in_order(list(ours), scores) == in_order(list(wanted), scores), prompt


def in_order(beams: list[Any], scores: Any) -> list[Any]:
    """Return the beams; sort those with the same score up to float32 rounding, whose order is a matter of chance."""
    ends = np.flatnonzero(np.diff(scores) < -2 * np.finfo(np.float32).eps * np.abs(scores[1:])) + 1
    parts = np.split(np.arange(len(beams)), ends)
    return [sorted(beams[i] for i in part) for part in parts]


@pytest.mark.parametrize("options", [{}, {"num_beams": 4, "num_return_sequences": 3, "early_stopping": True}])
def test_a_left_padded_batch_of_transformers_gives_the_same(
    models: tuple[Any, CausalLM], options: dict[str, Any]
) -> None:
    theirs, ours = models
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    reference = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0, eos_token_id=EOS, **options
    )
    found = ours.generate(PROMPTS, max_new_tokens=10, eos_token_id=EOS, **options)
    n = options.get("num_return_sequences", 1)
    for i, row in enumerate(found):
        new = reference[i].tolist()[width:]
        stop = new.index(EOS) + 1 if EOS in new else len(new)
        assert row.tolist()[len(PROMPTS[i // n]) :] == new[:stop]
