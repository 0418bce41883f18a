"""The model for the lm-evaluation-harness, inside the harness, beside its own model of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import ContextLengthError, InputError
from tests.tasks.tiny import write_gpt2_model

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
harness = pytest.importorskip("lm_eval", reason="lm_eval is not installed")
pytest.importorskip("torch")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "hello", "world", "of", "rain", "sea", "ship", "old", "house"]
ROUNDING = 256 * np.finfo(np.float32).eps  # of a float32 model of three layers, relative to the sum


def sentence(rng: np.random.Generator, n: int) -> str:
    return " ".join(rng.choice(WORDS, n))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2_model(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def lm(folder: Path) -> Iterator[CausalLM]:
    with AutoModelForCausalLM.from_pretrained(folder, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    import transformers
    from lm_eval.models.huggingface import HFLM

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Three tasks with local data: choices (also with spaces, and with a long context), windows, and answers."""
    data, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(3)
    choices = [
        {
            "question": sentence(rng, int(n)) + (" " if i % 4 == 0 else ""),
            "choices": [sentence(rng, int(m)) for m in rng.integers(1, 5, 4)],
            "answer": int(rng.integers(4)),
        }
        for i, n in enumerate(rng.integers(1, 9, 12))
    ]
    choices.append({**choices[0], "question": sentence(rng, 80)})
    texts = [{"text": sentence(rng, int(n))} for n in (1, 3, 12, 40, 75)]
    names = {}
    for name, rows in (("choices", choices), ("texts", texts)):
        names[name] = data / f"{name}.jsonl"
        names[name].write_text("".join(json.dumps(row) + "\n" for row in rows))

    def local(name: str) -> dict[str, Any]:
        arguments = {"data_files": {"test": str(names[name])}, "cache_dir": str(data / "cache")}
        return {"dataset_path": "json", "dataset_kwargs": arguments, "test_split": "test"}

    return [
        {
            "task": "fastattn_choices", **local("choices"), "output_type": "multiple_choice",
            "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        {
            "task": "fastattn_windows", **local("texts"), "output_type": "loglikelihood_rolling", "doc_to_text": "",
            "doc_to_target": "{{text}}", "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        {
            "task": "fastattn_answers", **local("texts"), "output_type": "generate_until", "doc_to_text": "{{text}}",
            "doc_to_target": "a", "metric_list": [{"metric": "exact_match"}],
            "generation_kwargs": {"until": ["e", "qq"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0},
        },
    ]  # fmt: skip


def evaluated(model: Any, tasks: list[dict[str, Any]], **options: Any) -> Any:
    return harness.simple_evaluate(
        model=model, tasks=[dict(task) for task in tasks], log_samples=True, bootstrap_iters=0, **options
    )


def answers(found: Any, task: str) -> list[Any]:
    """Return the responses of each document, in the order of the documents."""
    return [sample["resps"] for sample in sorted(found["samples"][task], key=lambda sample: sample["doc_id"])]


@pytest.mark.parametrize("shots", [0, 2])
def test_the_harness_gives_the_results_of_its_own_model(
    lm: CausalLM, theirs: Any, tasks: list[dict[str, Any]], shots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastattn.lm_eval import FastattnLM

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if shots:
        tasks = [{**tasks[0], "fewshot_split": "test", "fewshot_config": {"sampler": "first_n"}}]
    found = evaluated(FastattnLM(lm), tasks, num_fewshot=shots)
    wanted = evaluated(theirs, tasks, num_fewshot=shots)
    ours = answers(found, "fastattn_choices")
    assert len(ours) == 13
    for one, other in zip(ours, answers(wanted, "fastattn_choices"), strict=True):
        assert [pair[0][1] for pair in one] == [pair[0][1] for pair in other]  # whether the answer is greedy
        np.testing.assert_allclose([pair[0][0] for pair in one], [pair[0][0] for pair in other], rtol=ROUNDING)
    for metric in ("acc,none", "acc_norm,none"):
        assert found["results"]["fastattn_choices"][metric] == wanted["results"]["fastattn_choices"][metric]
    if shots:
        return
    one, other = answers(found, "fastattn_windows"), answers(wanted, "fastattn_windows")
    np.testing.assert_allclose(np.ravel(one), np.ravel(other), rtol=ROUNDING)
    for metric in ("word_perplexity,none", "bits_per_byte,none"):
        of_both = [part["results"]["fastattn_windows"][metric] for part in (found, wanted)]
        np.testing.assert_allclose(of_both[0], of_both[1], rtol=64 * ROUNDING)  # exp of a sum
    assert answers(found, "fastattn_answers") == answers(wanted, "fastattn_answers")
    assert any(text for (text,) in np.array(answers(found, "fastattn_answers")).reshape(-1, 1))


def test_results_do_not_depend_on_the_batch_size(lm: CausalLM, tasks: list[dict[str, Any]]) -> None:
    from fastattn.lm_eval import FastattnLM

    found = [evaluated(FastattnLM(lm, batch_size=size), tasks) for size in (1, 3, "auto")]
    for task in tasks:
        name = task["task"]
        assert answers(found[0], name) == answers(found[1], name) == answers(found[2], name)


def test_the_harness_loads_it_by_name(folder: Path, tasks: list[dict[str, Any]], lm: CausalLM) -> None:
    from fastattn.lm_eval import FastattnLM

    arguments = f"pretrained={folder},threads=1,dtype=float32,max_length=40"
    found = evaluated("fastattn", tasks[:1], model_args=arguments, batch_size=2)
    wanted = evaluated(FastattnLM(lm, max_length=40), tasks[:1])
    assert answers(found, "fastattn_choices") == answers(wanted, "fastattn_choices")


def test_scores_are_those_of_the_model(lm: CausalLM) -> None:
    from lm_eval.api.instance import Instance

    from fastattn.lm_eval import FastattnLM

    pairs = [("the cat", " sat"), ("the cat", " on a mat"), ("the cat ", "sat"), ("", "hello"), ("the cat", " sat")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = FastattnLM(lm).loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (logprob, greedy) in zip(pairs, found, strict=True):
        start = lm.tokenizer.encode(context.rstrip()) or [265]
        tail = lm.tokenizer.encode(context + continuation)[len(start) if context else 0 :]
        scored = lm.score(start, [tail])
        assert (logprob, greedy) == (scored.sums[0], scored.is_greedy[0])
    assert found[0] == found[2] == found[4]


def test_arguments_that_are_refused(lm: CausalLM, folder: Path) -> None:
    from lm_eval.api.instance import Instance

    from fastattn.lm_eval import FastattnLM

    with pytest.raises(InputError, match="threads: expected None with a loaded model"):
        FastattnLM(lm, threads=2)
    with pytest.raises(InputError, match="batch_size: expected an integer, 'auto' or None, got 'many'"):
        FastattnLM(lm, batch_size="many")
    with pytest.raises(InputError, match="max_length: expected 1 to 64"):
        FastattnLM(lm, max_length=65)
    small = FastattnLM(lm, max_length=8)
    with pytest.raises(ContextLengthError, match="expected a continuation of at most 8 tokens"):
        small.loglikelihood([Instance("loglikelihood", {}, ("the", " cat" * 20), 0)], disable_tqdm=True)
    with pytest.raises(InputError, match="max_gen_toks: expected fewer than max_length 8, got 8"):
        small.generate_until([Instance("generate_until", {}, ("the", {"max_gen_toks": 8}), 0)], disable_tqdm=True)
    with pytest.raises(InputError, match="unknown keyword 'top_q'"):
        small.generate_until(
            [Instance("generate_until", {}, ("the", {"max_gen_toks": 2, "top_q": 1}), 0)], disable_tqdm=True
        )
