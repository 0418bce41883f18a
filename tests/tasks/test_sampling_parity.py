"""Sampled texts are transformers' token by token, if both draw with the same random numbers.

`torch.multinomial` is replaced by the draw of `numpy_sampler`: one number per position and seed, over the candidates in
descending order. So the candidates and probabilities of each step, which are transformers' own, decide the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.generation.numpy_sampler import uniform
from fastattn.generation.options import request_seed
from fastattn.models.outputs import GenerateOutput
from fastattn.tasks.llm import Llm
from tests.tasks.tiny import write_gpt2_model

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
hf = pytest.importorskip("tests.reference.hf")

VOCAB, EOS, N_NEW = 40, 7, 20
PROMPTS = [[3], [5, 6, 3, 5, 6, 3, 5], [1, 2, 3, 4, 5, 6, 8, 9, 1, 2, 3], [9, 9]]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"top_k": 0},
    "temperature": {"temperature": 0.6, "top_k": 0},
    "hot": {"temperature": 1.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.7, "top_k": 0},
    "min_p": {"min_p": 0.15, "top_k": 0},
    "typical_p": {"typical_p": 0.6, "top_k": 0},
    "epsilon": {"epsilon_cutoff": 0.04, "top_k": 0},
    "eta": {"eta_cutoff": 0.08, "top_k": 0},
    "top_h": {"top_h": 0.5, "top_k": 0},
    "all_filters": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
    "repetition": {"repetition_penalty": 1.5},
    "no_repeat": {"no_repeat_ngram_size": 2, "temperature": 0.8},
    "bias": {"sequence_bias": [[[3], -6.0], [[12], 2.0], [[12, 12], -5.5]], "bad_words_ids": [[4], [5, 6]]},
    "suppress": {"suppress_tokens": [0, 1, 2], "begin_suppress_tokens": [10, 11, 12, 13]},
    "ends": {"min_new_tokens": 9, "eos_token_id": [EOS, 12, 13, 14, 15], "forced_eos_token_id": EOS},
    "decay": {"exponential_decay_length_penalty": (3, 1.3)},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, CausalLM]]:
    theirs = hf.make("GPT2LMHeadModel", seed=3, vocab_size=VOCAB, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    folder = hf.save(theirs, tmp_path_factory.mktemp("gpt2"))
    with AutoModelForCausalLM.from_pretrained(folder, threads=1) as ours:
        yield theirs, ours


@pytest.fixture
def sampled(models: tuple[Any, CausalLM], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that samples with transformers. seeds: one per text."""

    def run(prompt: list[int], seeds: list[int], **options: Any) -> Any:
        n_drawn = 0

        def multinomial(probs: Any, num_samples: int) -> Any:
            nonlocal n_drawn
            assert num_samples == 1
            position, n_drawn = len(prompt) + n_drawn, n_drawn + 1
            return torch.tensor([[draw(row, s, position)] for row, s in zip(probs.numpy(), seeds, strict=True)])

        monkeypatch.setattr(torch, "multinomial", multinomial)
        ids = torch.tensor([prompt])
        return models[0].generate(
            ids, attention_mask=torch.ones_like(ids), pad_token_id=0, do_sample=True, return_dict_in_generate=True,
            output_scores=True, output_logits=True, num_return_sequences=len(seeds),
            **{"max_new_tokens": N_NEW, "eos_token_id": EOS, **options},
        )  # fmt: skip

    return run


def draw(probs: Any, seed: int, position: int) -> int:
    order = np.argsort(-probs, kind="stable")
    order = order[probs[order] > 0]
    running = np.cumsum(probs[order], dtype=np.float64)
    found = np.searchsorted(running, uniform(seed, position) * running[-1], side="right")
    return int(order[min(int(found), len(order) - 1)])


def rows_of(found: Any, prompt: list[int], eos: Any = EOS) -> list[list[int]]:
    """Return the sequences without the padding after the end."""
    ends, rows = {eos} if isinstance(eos, int) else set(eos), []
    for row in found.sequences.tolist():
        new = row[len(prompt) :]
        rows.append(row[: len(prompt) + next((i + 1 for i, token in enumerate(new) if token in ends), len(new))])
    return rows


def generated(model: CausalLM, prompts: Any, **options: Any) -> GenerateOutput:
    found = model.generate(
        prompts, return_dict_in_generate=True, **{"max_new_tokens": N_NEW, "eos_token_id": EOS, **options}
    )
    assert isinstance(found, GenerateOutput)
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIONS)
def test_sampled_tokens_are_those_of_transformers(
    models: tuple[Any, CausalLM], sampled: Callable[..., Any], name: str
) -> None:
    """In a ragged batch; with the sampler in C++ where it has the options, and always with the one in numpy."""
    options, seeds = OPTIONS[name], [11, 12, 13, 14]
    found = generated(models[1], PROMPTS, do_sample=True, seed=seeds, **options)
    in_numpy = generated(models[1], PROMPTS, do_sample=True, seed=seeds, output_scores=True, **options)
    n_greedy = 0
    for i, prompt in enumerate(PROMPTS):
        reference = sampled(prompt, [seeds[i]], **options)
        [wanted] = rows_of(reference, prompt, options.get("eos_token_id", EOS))
        assert found.sequences[i].tolist() == wanted
        assert in_numpy.sequences[i].tolist() == wanted
        best = [int(row[0].argmax()) for row in reference.scores][: len(wanted) - len(prompt)]
        n_greedy += wanted[len(prompt) :] == best
    assert n_greedy < len(PROMPTS)  # the texts are not the greedy ones


def test_each_prompt_has_its_own_options(models: tuple[Any, CausalLM], sampled: Callable[..., Any]) -> None:
    """Greedy, beams and samples in one call."""
    theirs, ours = models
    configs: list[dict[str, Any]] = [
        {"do_sample": True, "top_p": 0.8, "top_k": 0, "seed": 3},
        {"no_repeat_ngram_size": 2},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
        {"do_sample": True, "typical_p": 0.7, "repetition_penalty": 1.3, "seed": 5, "max_new_tokens": 6},
    ]
    each = [{"max_new_tokens": N_NEW, **config} for config in configs]  # a keyword would override those of prompts
    found = [row.tolist() for row in generated(ours, PROMPTS, generation_config=each, max_new_tokens=None).sequences]
    wanted = []
    for prompt, config in zip(PROMPTS, configs, strict=True):
        given = {"max_new_tokens": N_NEW, "eos_token_id": EOS, **config}
        if given.pop("do_sample", False):
            reference = sampled(prompt, [given.pop("seed")], **given)
        else:
            ids = torch.tensor([prompt])
            reference = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), pad_token_id=0, return_dict_in_generate=True, **given
            )
        wanted += rows_of(reference, prompt)
    assert found == wanted


def test_several_texts_of_a_prompt_and_the_likeliest(models: tuple[Any, CausalLM], sampled: Callable[..., Any]) -> None:
    theirs, ours = models
    for i, prompt in enumerate(PROMPTS):
        seeds = [request_seed(9, j) for j in range(4)]
        reference = sampled(prompt, seeds, top_k=0)
        rows = rows_of(reference, prompt)
        found = generated(ours, [prompt], do_sample=True, top_k=0, num_return_sequences=4, seed=9)
        assert [row.tolist() for row in found.sequences] == rows, i
        # The mean log-probability without filters, which are off here, is that of transformers' scores.
        logprobs = theirs.compute_transition_scores(reference.sequences, reference.logits, normalize_logits=True)
        means = [logprobs[j, : len(row) - len(prompt)].mean().item() for j, row in enumerate(rows)]
        best = generated(ours, [prompt], do_sample=True, top_k=0, num_return_sequences=2, best_of=4, seed=9)
        order = sorted(range(4), key=lambda j: -means[j])
        assert [row.tolist() for row in best.sequences] == [rows[j] for j in order[:2]]


def test_log_probabilities_of_the_likeliest_tokens(models: tuple[Any, CausalLM], sampled: Callable[..., Any]) -> None:
    found = generated(models[1], PROMPTS, do_sample=True, seed=[1, 2, 3, 4], top_logprobs=5)
    assert found.top_logprobs is not None
    for i, prompt in enumerate(PROMPTS):
        reference = sampled(prompt, [i + 1])
        new = found.sequences[i].tolist()[len(prompt) :]
        assert new == rows_of(reference, prompt)[0][len(prompt) :]
        for n, token in enumerate(new):
            row = reference.logits[n][0].log_softmax(-1)
            top = row.topk(5)
            ids, logprobs = found.top_logprobs[i][n]
            assert ids.tolist() == top.indices.tolist()
            bound = 256 * np.finfo(np.float32).eps * float(row.abs().max())
            assert np.abs(logprobs - top.values.numpy()).max() < bound
            assert abs(found.logprobs[i][n] - row[token].item()) < bound


def test_functions_of_the_user_are_called_as_in_transformers(models: tuple[Any, CausalLM]) -> None:
    """A processor in numpy, a stopping criterion and allowed tokens, beside the same ones in PyTorch."""
    theirs, ours = models

    def process(ids: Any, scores: Any) -> Any:
        liked = ((7 * ids[:, -1] + ids.shape[1]) % VOCAB).tolist()  # transformers has all beams in one call
        scores[list(range(len(liked))), liked] += 9.0
        return scores

    def stops(ids: Any, scores: Any) -> bool:
        return bool(ids[0, -1] % 2 == 1)

    def stops_there(ids: Any, scores: Any, **_: Any) -> Any:
        return torch.tensor([stops(row[None], None) for row in ids])

    def allowed(index: int, ids: Any) -> list[int]:
        return [token for token in range(VOCAB) if (token + len(ids)) % 3]

    for beams in (1, 3):
        for name in ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"):
            mine = {"logits_processor": [process], "stopping_criteria": [stops], "prefix_allowed_tokens_fn": allowed}
            others = {**mine, "stopping_criteria": [stops_there]}
            found = generated(ours, PROMPTS, num_beams=beams, **{name: mine[name]})
            plain = generated(ours, PROMPTS, num_beams=beams)
            n_changed = 0
            for i, prompt in enumerate(PROMPTS):
                ids = torch.tensor([prompt])
                reference = theirs.generate(
                    ids, attention_mask=torch.ones_like(ids), pad_token_id=0, do_sample=False, num_beams=beams,
                    max_new_tokens=N_NEW, eos_token_id=EOS, return_dict_in_generate=True, **{name: others[name]},
                )  # fmt: skip
                assert [found.sequences[i].tolist()] == rows_of(reference, prompt), (name, beams, i)
                n_changed += found.sequences[i].tolist() != plain.sequences[i].tolist()
            assert n_changed


def test_echo_lists_the_log_probabilities_of_transformers(tmp_path_factory: pytest.TempPathFactory) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_gpt2_model(tmp_path_factory.mktemp("writer"))
    theirs, prompt = transformers.AutoModelForCausalLM.from_pretrained(folder).double(), "hello world, the sea"
    with Llm(str(folder), n_threads=1) as llm:
        found = llm.create_completion(prompt, echo=True, logprobs=3, temperature=0, max_tokens=5)["choices"][0]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = torch.tensor([tokenizer.encode(prompt)])
        whole = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        with torch.no_grad():
            rows = theirs(whole).logits[0].log_softmax(-1)
    assert found["text"] == tokenizer.decode(whole[0])
    listed = found["logprobs"]
    assert listed["token_logprobs"][0] is None
    for i in range(1, whole.shape[1]):
        bound = float(256 * np.finfo(np.float32).eps) * rows[i - 1].abs().max().item()
        assert abs(listed["token_logprobs"][i] - rows[i - 1, whole[0, i]].item()) < bound
        assert max(listed["top_logprobs"][i].values()) == pytest.approx(rows[i - 1].max().item(), abs=bound)
