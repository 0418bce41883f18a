"""The model for the lm-evaluation-harness, compared inside the harness with its own transformers model."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastattn
from fastattn.api.auto import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import ContextLengthError, DTypeError, InputError
from tests.tasks.tiny import write_gpt2_model

pytestmark = pytest.mark.filterwarnings("ignore")
harness = pytest.importorskip("lm_eval", reason="lm_eval is not installed")
FastattnLM: Any = importlib.import_module("fastattn.lm_eval").FastattnLM
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
def demo() -> Iterator[CausalLM]:
    with fastattn.pipeline("text-generation", threads=1) as found:
        yield found.model


def instances(kind: str, arguments: list[Any]) -> list[Any]:
    """Return requests as the harness makes them."""
    make = importlib.import_module("lm_eval.api.instance").Instance
    return [make(kind, {}, one, i) for i, one in enumerate(arguments)]


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    transformers, hflm = pytest.importorskip("transformers"), pytest.importorskip("lm_eval.models.huggingface").HFLM
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return hflm(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")


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


@pytest.mark.torch
@pytest.mark.parametrize("shots", [0, 2])
def test_the_harness_gives_the_results_of_its_own_model(
    lm: CausalLM, theirs: Any, tasks: list[dict[str, Any]], shots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [{}, {"add_bos_token": True}, {"prefix_token_id": 5}, {"max_length": 20}],
    ids=lambda options: str(options),
)
def test_requests_have_the_results_of_the_harness_own_model(
    folder: Path, lm: CausalLM, theirs: Any, options: dict[str, Any]
) -> None:
    """Contexts that are empty, end with a space, have special tokens, split characters, or are too long."""
    other = type(theirs)(pretrained=theirs.model, tokenizer=theirs.tokenizer, batch_size=1, device="cpu", **options)
    ours, rng = FastattnLM(lm, **options), np.random.default_rng(5)
    words = [*WORDS, "é", "日本", "\n", "<|endoftext|>"]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(words, rng.integers(low, high)))

    pairs = [("", "a"), ("", " a b"), ("<|endoftext|>", "a"), (text(70, 71), " a"), ("a", "é")]
    pairs += [(text(1, 9) + " " * (i % 3), " " * (i % 2) + text(1, 3)) for i in range(16)]
    found, wanted = (m.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True) for m in (ours, other))
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    np.testing.assert_allclose([total for total, _ in found], [total for total, _ in wanted], rtol=ROUNDING)

    texts = [("",), (" ",), ("é",), ("<|endoftext|>a",), *((text(n, n + 1),) for n in (1, 5, 30, 70))]
    requests = instances("loglikelihood_rolling", texts)
    found, wanted = (m.loglikelihood_rolling(requests, disable_tqdm=True) for m in (ours, other))
    np.testing.assert_allclose(found, wanted, rtol=ROUNDING)

    greedy: dict[str, Any] = {"max_gen_toks": 9, "do_sample": False}
    asked = [
        *((text(1, 12), {**greedy, "until": [str(rng.choice(list("eatq\n ")))]}) for _ in range(6)),
        (text(70, 71), {**greedy, "until": ["e"]}), ("a ", greedy), ("a", {**greedy, "until": "e"}),
        ("a", {**greedy, "until": ["<|endoftext|>"]}), ("a", {**greedy, "temperature": 0.0}),
        ("a", {"max_gen_toks": 5}),
        ("<|endoftext|>a", greedy), ("a", {**greedy, "num_beams": 2}), ("a", {**greedy, "repetition_penalty": 1.5}),
        ("a", {**greedy, "min_new_tokens": 3}), ("a", {"max_new_tokens": 6}),
    ]  # fmt: skip
    found, wanted = (m.generate_until(instances("generate_until", asked), disable_tqdm=True) for m in (ours, other))
    assert found == wanted


def test_results_do_not_depend_on_the_batch_size(demo: CausalLM, tasks: list[dict[str, Any]]) -> None:
    found = [evaluated(FastattnLM(demo, batch_size=size), tasks) for size in (1, 3, "auto")]
    for task in tasks:
        name = task["task"]
        assert answers(found[0], name) == answers(found[1], name) == answers(found[2], name)


def test_the_harness_loads_it_by_name(demo: CausalLM, tasks: list[dict[str, Any]]) -> None:
    arguments = f"pretrained={demo.path},threads=1,dtype=float32,max_length=40"
    found = evaluated("fastattn", tasks[:1], model_args=arguments, batch_size=2)
    wanted = evaluated(FastattnLM(demo, max_length=40), tasks[:1])
    assert answers(found, "fastattn_choices") == answers(wanted, "fastattn_choices")


def logprobs_of(demo: CausalLM, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Return what the logits of one plain call give."""
    rows = np.asarray(demo([*context, *continuation][:-1]).logits, np.float64)[len(context) - 1 :]
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    places = np.arange(len(continuation))
    return rows[places, continuation].sum(), bool((rows.argmax(axis=1) == continuation).all())


def test_scores_are_those_of_the_logits(demo: CausalLM) -> None:
    pairs = [("the cat", " sat"), ("the cat", " on a mat"), ("the cat ", "sat"), ("", "hello"), ("the cat", " sat")]
    pairs.append(("the old house " * 300, "fell"))
    found = FastattnLM(demo).loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    tokenizer, context = demo.tokenizer, demo.executor.program.max_positions
    for (start, end), (logprob, greedy) in zip(pairs, found, strict=True):
        head = tokenizer.encode(start.rstrip()) or [tokenizer.bos_token_id]
        tail = tokenizer.encode(start + end)[len(head) if start else 0 :]
        wanted = logprobs_of(demo, head[-(context + 1 - len(tail)) :], tail)
        np.testing.assert_allclose(logprob, wanted[0], rtol=ROUNDING)
        assert greedy == wanted[1]
    assert found[0] == found[2] == found[4]


def test_windows_score_every_token_once(demo: CausalLM) -> None:
    texts = ["the cat sat on a mat", "x", "rain on the old house " * 20]
    model = FastattnLM(demo, max_length=32)
    found = model.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,) for text in texts]), True)
    for text, value in zip(texts, found, strict=True):
        ids, wanted = demo.tokenizer.encode(text), 0.0
        for begin in range(0, len(ids), 32):  # the last window reaches back, so that it is full
            part = ids[begin : begin + 32]
            before = [demo.tokenizer.bos_token_id] if begin == 0 else ids[begin + len(part) - 33 : begin]
            wanted += logprobs_of(demo, before, part)[0]
        np.testing.assert_allclose(value, wanted, rtol=ROUNDING)


def test_answers_end_before_a_string(demo: CausalLM) -> None:
    texts = ["The sea", "A letter came", "rain " * 400]
    options = {"until": ["e", "qq"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    requests = instances("generate_until", [*((text, options) for text in texts), (texts[0], {"max_gen_toks": 5})])
    found = FastattnLM(demo, batch_size=2).generate_until(requests, disable_tqdm=True)
    tokenizer, room = demo.tokenizer, demo.executor.program.max_positions - 12
    for text, answer in zip(texts, found, strict=False):
        ids = tokenizer.encode(text)[-room:]
        plain = tokenizer.decode(demo.generate(ids, max_new_tokens=12))[len(tokenizer.decode(ids)) :]
        assert answer == plain.partition("e")[0]
    ids = tokenizer.encode(texts[0])
    assert found[3] == tokenizer.decode(demo.generate(ids, max_new_tokens=5))[len(texts[0]) :]


def test_texts_that_begin_with_the_prefix_token(demo: CausalLM) -> None:
    model, bos = FastattnLM(demo), demo.tokenizer.bos_token
    assert model.tok_encode(f"{bos}the") == [demo.tokenizer.bos_token_id, *demo.tokenizer.encode("the")]
    assert model.prefix_token_id == demo.tokenizer.bos_token_id
    assert FastattnLM(demo, prefix_token_id=3).prefix_token_id == 3


def test_arguments_that_are_refused(demo: CausalLM) -> None:
    with pytest.raises(InputError, match="threads: expected None with a loaded model"):
        FastattnLM(demo, threads=2)
    with pytest.raises(InputError, match="batch_size: expected an integer, 'auto' or None, got 'many'"):
        FastattnLM(demo, batch_size="many")
    with pytest.raises(InputError, match="max_length: expected 1 to 256"):
        FastattnLM(demo, max_length=257)
    small = FastattnLM(demo, max_length=8)
    with pytest.raises(ContextLengthError, match="expected a continuation of at most 8 tokens"):
        small.loglikelihood(instances("loglikelihood", [("the", " cat" * 20)]), disable_tqdm=True)
    with pytest.raises(InputError, match="max_gen_toks: expected fewer than max_length 8, got 8"):
        small.generate_until(instances("generate_until", [("the", {"max_gen_toks": 8})]), disable_tqdm=True)
    with pytest.raises(InputError, match="unknown keyword 'top_q'"):
        small.generate_until(instances("generate_until", [("the", {"max_gen_toks": 2, "top_q": 1})]), disable_tqdm=True)
    with pytest.raises(DTypeError, match="until: expected a text or a list of them"):
        small.generate_until(instances("generate_until", [("the", {"until": [3]})]), disable_tqdm=True)
