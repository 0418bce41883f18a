"""Speculation never changes an output: tokens, log-probabilities and texts are those of the same call without it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import OutOfMemory
from fastattn.executors.cpu import CpuExecutor
from fastattn.generation.payoff import Account, Offer, Payoff, Tries
from fastattn.generation.prefix_tree import Node
from fastattn.generation.proposals import PromptLookup
from fastattn.models.outputs import GenerateOutput
from tests.reference.checkpoints import write_gpt2
from tests.tasks.test_engine import PAGE_BYTES, SIZES, assert_free, in_threads

DEMO = Path(__file__).parents[2] / "src" / "fastattn" / "demo" / "gpt2-litbank"
VOCAB = SIZES["vocab_size"]
NUMBERS = random.Random(3)
RAGGED = [[NUMBERS.randrange(VOCAB) for _ in range(n)] for n in (1, 3, 70, 12, 129, 30, 64, 5)]
LOOKUP = {"prompt_lookup_num_tokens": 6}
OPTIONS: Sequence[dict[str, Any]] = (
    {},
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"logit_bias": {7: 2.0, 9: -4.0}, "presence_penalty": 0.7, "frequency_penalty": 0.2},
    {"do_sample": True},
    {"do_sample": True, "top_k": 0, "top_p": 0.8, "temperature": 1.7},
    {"do_sample": True, "top_k": 5, "min_p": 0.1, "repetition_penalty": 0.8},
    {"do_sample": True, "typical_p": 0.6, "no_repeat_ngram_size": 3},
    {"eos_token_id": list(range(0, VOCAB, 17))},
    {"eos_token_id": list(range(0, VOCAB, 9)), "min_new_tokens": 11, "do_sample": True, "repetition_penalty": 1.2},
    {"do_sample": True, "num_return_sequences": 3},
    {"do_sample": True, "best_of": 3, "num_return_sequences": 2},
    {"top_logprobs": 3, "output_scores": True, "output_logits": True, "presence_penalty": 0.5},
    {"nan": "propagate"},
    {"suppress_tokens": [1, 2, 3], "bad_words_ids": [[4, 5], [6]], "sequence_bias": {(8, 9): 3.0}},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("gpt2"), **SIZES)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify every proposal, whether it saves time or not."""

    def all_of_them(payoff: Payoff, n_rows: int, offers: Sequence[Offer]) -> list[int]:
        return [offer.count for offer in offers]

    monkeypatch.setattr(Payoff, "measures", lambda payoff, n_rows: False)
    monkeypatch.setattr(Payoff, "choose", all_of_them)
    monkeypatch.setattr(Account, "add", lambda account, tokens: None)
    monkeypatch.setattr(Tries, "add", lambda *_: None)


def propose(monkeypatch: pytest.MonkeyPatch, of_text: Callable[[list[int], int], list[int]]) -> None:
    """Let prompt lookup propose what a function of the text and the most tokens returns."""

    def look_up(lookup: PromptLookup, ids: list[int], most: int) -> tuple[list[int], int]:
        return of_text(list(ids), most)[:most], 1

    monkeypatch.setattr(PromptLookup, "_look_up", look_up)


def nearly_right(known: Sequence[Sequence[int]], seed: int = 0) -> Callable[[list[int], int], list[int]]:
    """Return a source that continues known texts, with a wrong token at a random place."""
    numbers = random.Random(seed)

    def of_text(ids: list[int], most: int) -> list[int]:
        found = next((text for text in known if list(text[: len(ids)]) == ids), None)
        if found is None:
            return [numbers.randrange(VOCAB) for _ in range(most)]
        tokens = list(found[len(ids) : len(ids) + most])
        if tokens and numbers.random() < 0.8:
            tokens[numbers.randrange(len(tokens))] += 1
        return [min(token, VOCAB - 1) for token in tokens]

    return of_text


def run(model: CausalLM, prompts: Any, **options: Any) -> GenerateOutput:
    given = {"max_new_tokens": 40, "seed": 5, "eos_token_id": -1, **options}
    return model.generate(prompts, return_dict_in_generate=True, **given)


def numbers_of(output: GenerateOutput) -> dict[str, float]:
    assert output.stats is not None
    return output.stats


def assert_same(found: GenerateOutput, expected: GenerateOutput) -> None:
    assert [ids.tolist() for ids in found.sequences] == [ids.tolist() for ids in expected.sequences]
    assert [bits.tobytes() for bits in found.logprobs] == [bits.tobytes() for bits in expected.logprobs]
    assert found.finish_reasons == expected.finish_reasons
    assert found.texts == expected.texts
    assert found.seeds == expected.seeds
    for name in ("scores", "logits"):
        rows, others = getattr(found, name), getattr(expected, name)
        assert (rows is None) == (others is None)
        for row, other in zip(rows or [], others or [], strict=True):
            np.testing.assert_array_equal(np.array(row), np.array(other))
    for tops, others in zip(found.top_logprobs or [], expected.top_logprobs or [], strict=True):
        for (ids, logprobs), (other_ids, other_logprobs) in zip(tops, others, strict=True):
            np.testing.assert_array_equal(ids, other_ids)
            np.testing.assert_array_equal(logprobs, other_logprobs)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        *(("float32", options) for options in OPTIONS),
        *((dtype, OPTIONS[i]) for dtype in ("bfloat16", "int8", "int4") for i in (0, 2, 4, 6, 9, 12)),
    ],
)
def test_every_option_in_every_dtype(
    folder: Path, dtype: str, options: dict[str, Any], eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ragged batch of 8 with different acceptance, and one sequence alone."""
    with AutoModelForCausalLM.from_pretrained(folder, threads=2, dtype=dtype) as lm:
        expected = run(lm, RAGGED, **options)
        propose(monkeypatch, nearly_right([ids.tolist() for ids in expected.sequences]))
        found = run(lm, RAGGED, **options, **LOOKUP)
        assert_same(found, expected)
        numbers = numbers_of(found)
        assert 0 < numbers["n_accepted_tokens"] < numbers["n_proposed_tokens"]
        assert numbers["n_steps"] + numbers["n_accepted_tokens"] == numbers["n_new_tokens"]
        one = run(lm, RAGGED[3], **options)
        propose(monkeypatch, nearly_right([ids.tolist() for ids in one.sequences], seed=1))
        assert_same(run(lm, RAGGED[3], **options, **LOOKUP), one)
        assert_free(lm)


@pytest.mark.parametrize("options", OPTIONS)
def test_executor_of_the_specification(
    folder: Path, options: dict[str, Any], eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logits may differ in the last bits of float64, because BLAS sums more rows in another order."""
    with AutoModelForCausalLM.from_pretrained(folder, device="numpy") as lm:
        prompts, given = RAGGED[:4], {**options, "max_new_tokens": 12}
        expected = run(lm, prompts, **given)
        propose(monkeypatch, nearly_right([ids.tolist() for ids in expected.sequences]))
        found = run(lm, prompts, **given, **LOOKUP)
        assert [ids.tolist() for ids in found.sequences] == [ids.tolist() for ids in expected.sequences]
        assert found.finish_reasons == expected.finish_reasons
        assert numbers_of(found)["n_accepted_tokens"] > 0


@pytest.mark.parametrize("dtype", ["float32", "int4"])
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
def test_demo_model_with_stop_strings(dtype: str, kv_dtype: str, eager: None) -> None:
    text = "The weaver sat at his loom. The weaver sat at his"
    with AutoModelForCausalLM.from_pretrained(DEMO, dtype=dtype, kv_dtype=kv_dtype, threads=2) as lm:
        assert lm.tokenizer is not None
        ids = [lm.tokenizer.encode(text), lm.tokenizer.encode("It was")]
        plain = run(lm, ids, max_new_tokens=60)
        words = lm.tokenizer.decode(plain.sequences[0][len(ids[0]) :].tolist()).split()
        for options in (
            {},
            {"stop_strings": [" ".join(words[8:10]), "zzz"]},
            {"stop_strings": [words[5][:2]], "do_sample": True, "temperature": 0.5},
            {"do_sample": True, "top_p": 0.7, "repetition_penalty": 1.1},
        ):
            expected = run(lm, ids, **{"max_new_tokens": 60, **options})
            assert_same(run(lm, ids, **{"max_new_tokens": 60, **options}, **LOOKUP), expected)
            assert_same(run(lm, ids, **{"max_new_tokens": 60, **options}, assistant_model="int8"), expected)
        assert_free(lm)


def test_prompt_lookup_finds_the_last_of_the_longest_matches() -> None:
    numbers = random.Random(0)
    for _ in range(200):
        ids = [numbers.randrange(4) for _ in range(numbers.randint(1, 40))]
        ngram, most = numbers.randint(1, 4), numbers.randint(1, 9)
        lookup = PromptLookup(most, ngram)
        known = numbers.randint(0, len(ids))
        if known:
            lookup._look_up(ids[:known], most)  # the n-grams of a growing text are added
        expected: tuple[list[int], int] = ([], 0)
        for n in range(1, min(ngram, len(ids)) + 1):
            for begin in range(n, len(ids)):
                if ids[begin - n : begin] == ids[-n:]:
                    text = ids[begin:]
                    expected = (text * (most // len(text) + 1))[:most], n
        assert lookup._look_up(ids, most) == expected


@pytest.mark.parametrize("options", OPTIONS[:10])
def test_model_as_its_own_draft_is_always_right(lm: CausalLM, options: dict[str, Any], eager: None) -> None:
    """The draft draws with the same random numbers; processors in Python are not part of it."""
    expected = run(lm, RAGGED, **options)
    found = run(lm, RAGGED, **options, assistant_model=lm, num_assistant_tokens=5)
    assert_same(found, expected)
    numbers = numbers_of(found)
    assert numbers["n_proposed_tokens"] > 0
    in_core = not {"no_repeat_ngram_size", "logit_bias", "typical_p", "eos_token_id"} & set(options)
    if in_core:
        assert numbers["n_accepted_tokens"] == numbers["n_proposed_tokens"]
        assert numbers["n_steps"] < numbers["n_new_tokens"] / 4
    assert_free(lm)


@pytest.mark.parametrize("dtype", ["int4", "int8", "bfloat16"])
def test_copy_in_a_smaller_dtype(lm: CausalLM, dtype: str, eager: None) -> None:
    for options in ({}, {"do_sample": True, "top_k": 8}):
        expected = run(lm, RAGGED, **options)
        found = run(lm, RAGGED, **options, assistant_model=dtype)
        assert_same(found, expected)
        assert 0 < numbers_of(found)["n_accepted_tokens"] <= numbers_of(found)["n_proposed_tokens"]
    copy = lm.copy_in(dtype)
    assert copy.dtype == dtype
    assert copy is lm.copy_in(dtype)
    assert isinstance(copy.executor, CpuExecutor)
    assert copy.executor.kv_pages_in_use == 0
    assert_free(lm)


def test_other_draft_model(lm: CausalLM, tmp_path: Path, eager: None) -> None:
    """Its context is shorter than the texts, so it stops proposing at its end."""
    sizes = {**SIZES, "n_embd": 24, "n_layer": 1, "n_positions": 100}
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path, seed=9, **sizes)) as draft:
        for options in ({}, {"do_sample": True, "temperature": 0.3}):
            expected = run(lm, RAGGED, **options, max_new_tokens=150)
            found = run(lm, RAGGED, **options, max_new_tokens=150, assistant_model=draft)
            assert_same(found, expected)
            assert numbers_of(found)["n_accepted_tokens"] < numbers_of(found)["n_proposed_tokens"]
        assert isinstance(draft.executor, CpuExecutor)
        assert draft.executor.kv_pages_in_use == 0


def test_texts_that_slide_beyond_the_context(tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with AutoModelForCausalLM.from_pretrained(write_gpt2(tmp_path, **{**SIZES, "n_positions": 48})) as lm:
        options: dict[str, Any] = {"overflow": "slide", "max_new_tokens": 130, "do_sample": True}
        prompts = [RAGGED[0], RAGGED[5], RAGGED[4]]
        expected = run(lm, prompts, **options)
        assert_same(run(lm, prompts, **options, assistant_model=lm), expected)
        propose(monkeypatch, nearly_right([ids.tolist() for ids in expected.sequences]))
        found = run(lm, prompts, **options, **LOOKUP)
        assert_same(found, expected)
        assert numbers_of(found)["n_accepted_tokens"] > 0
        assert_free(lm)


@pytest.mark.parametrize("limit_pages", [None, 9, 30])
def test_many_callers(folder: Path, limit_pages: int | None, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers with and without speculation; with few pages, sequences are stopped and computed again."""
    limit = None if limit_pages is None else limit_pages * PAGE_BYTES
    with AutoModelForCausalLM.from_pretrained(folder, threads=2, kv_cache_bytes=limit) as lm:
        numbers = random.Random(8)
        work: list[tuple[list[int], dict[str, Any]]] = []
        for i in range(24):
            prompt = RAGGED[i % 8] + [numbers.randrange(VOCAB) for _ in range(numbers.randint(0, 90))]
            work.append((prompt, {**OPTIONS[i % 10], "max_new_tokens": numbers.randint(5, 90), "seed": i}))
        expected = [run(lm, prompt, **options) for prompt, options in work]
        propose(monkeypatch, nearly_right([output.sequences[0].tolist() for output in expected]))
        kinds: list[dict[str, Any]] = [{}, LOOKUP, {"assistant_model": "int4"}]

        def call(i: int) -> GenerateOutput:
            prompt, options = work[i]
            return run(lm, prompt, **options, **kinds[i % 3])

        for found, wanted in zip(in_threads(call, 24), expected, strict=True):
            assert_same(found, wanted)
        assert_free(lm)
        copy = lm.copy_in("int4").executor
        assert isinstance(copy, CpuExecutor)
        assert copy.kv_pages_in_use == 0


def test_shared_pages_have_only_drawn_tokens(lm: CausalLM, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(lm, RAGGED, max_new_tokens=150)
    texts = [ids.tolist() for ids in expected.sequences]
    lm.engine.run(lambda pages: pages.tree.clear() if pages.tree is not None else None)
    propose(monkeypatch, nearly_right(texts))
    assert_same(run(lm, RAGGED, max_new_tokens=150, **LOOKUP), expected)

    def check(node: Node, before: list[int]) -> int:
        ids = before + np.frombuffer(node.key, np.int32).tolist()
        assert any(text[: len(ids)] == ids for text in texts), ids
        return 1 + sum(check(child, ids) for child in node.children.values())

    def walk(pages: Any) -> int:
        return check(pages.tree.root(), [])

    assert lm.engine.run(walk) > len(RAGGED)
    # Texts that begin with the shared pages are the same as alone.
    again = [text[:-30] for text in texts]
    assert_same(run(lm, again, max_new_tokens=30), run(lm, again, max_new_tokens=30, **LOOKUP))
    found = run(lm, again, max_new_tokens=30)
    assert [ids.tolist() for ids in found.sequences] == texts


def test_wrong_proposals_turn_themselves_off(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of attempts is limited by counting alone, however fast the steps are."""
    n_new = 300
    expected = run(lm, RAGGED[1], max_new_tokens=n_new)
    text = expected.sequences[0].tolist()
    propose(monkeypatch, lambda ids, most: [(token + 1) % VOCAB for token in text[len(ids) : len(ids) + most]])
    found = run(lm, RAGGED[1], max_new_tokens=n_new, **LOOKUP)
    assert_same(found, expected)
    numbers = numbers_of(found)
    assert numbers["n_accepted_tokens"] == 0
    assert numbers["n_steps"] == n_new
    assert 0 < numbers["n_proposed_tokens"] <= 14 * LOOKUP["prompt_lookup_num_tokens"]  # waits double up to 64 tokens


def test_functions_of_the_user_are_called_once_per_token(
    lm: CausalLM, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor with state gets the same inputs as without speculation, even after wrong proposals."""

    def calls(**options: Any) -> tuple[GenerateOutput, list[list[int]]]:
        seen: list[list[int]] = []

        def process(ids: Any, scores: Any) -> Any:
            seen.append(ids[0].tolist())
            scores[0, len(seen) % VOCAB] += 5.0
            return scores

        def stops(ids: Any, scores: Any) -> bool:
            return bool(ids.shape[1] >= len(RAGGED[3]) + 33)

        return run(lm, RAGGED[3], logits_processor=process, stopping_criteria=stops, **options), seen

    expected, seen = calls()
    assert expected.finish_reasons == ["stopping_criteria"]
    propose(monkeypatch, nearly_right([ids.tolist() for ids in expected.sequences]))
    found, also_seen = calls(**LOOKUP)
    assert_same(found, expected)
    assert also_seen == seen
    assert numbers_of(found)["n_accepted_tokens"] > 0


def test_error_of_a_function_comes_after_the_same_tokens(
    lm: CausalLM, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(lm, RAGGED[3]).sequences[0].tolist()
    propose(monkeypatch, nearly_right([expected]))
    seen: list[list[int]] = []

    def fails(ids: Any, scores: Any) -> Any:
        seen.append(ids[0].tolist())
        if ids.shape[1] > len(RAGGED[3]) + 17:
            raise ZeroDivisionError("of the user")
        return scores

    with pytest.raises(ZeroDivisionError, match="of the user"):
        run(lm, RAGGED[3], logits_processor=fails, **LOOKUP)
    assert seen == [expected[:n] for n in range(len(RAGGED[3]), len(RAGGED[3]) + 19)]
    assert_free(lm)


def test_steps_that_find_no_memory_are_repeated(lm: CausalLM, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(lm, RAGGED)
    propose(monkeypatch, nearly_right([ids.tolist() for ids in expected.sequences]))
    draw, n_calls = CpuExecutor.draw, [0]

    def fails_sometimes(executor: CpuExecutor, *args: Any) -> Any:
        n_calls[0] += 1
        if n_calls[0] % 7 == 0:
            raise OutOfMemory("for a test")
        return draw(executor, *args)

    monkeypatch.setattr(CpuExecutor, "draw", fails_sometimes)
    assert_same(run(lm, RAGGED, **LOOKUP), expected)
    assert n_calls[0] > 14
    assert_free(lm)


def test_draft_model_that_fails_is_no_longer_used(
    folder: Path, lm: CausalLM, eager: None, caplog: pytest.LogCaptureFixture
) -> None:
    draft = AutoModelForCausalLM.from_pretrained(folder)
    expected = run(lm, RAGGED)
    stream = lm.engine  # the check of the vocabulary passes while the model is open
    assert run(lm, RAGGED[0], assistant_model=draft, max_new_tokens=2) is not None
    executor = draft.executor
    assert executor in stream.assistants
    executor.close()
    found = run(lm, RAGGED, assistant_model=draft)
    assert_same(found, expected)
    assert numbers_of(found)["n_proposed_tokens"] == 0
    assert "assistant_model: no longer used for 8 texts: the model was closed" in caplog.text
    assert_free(lm)


def test_streams(eager: None) -> None:
    with AutoModelForCausalLM.from_pretrained(DEMO, threads=2) as lm:
        text, options = "The weaver sat. The weaver", {"max_new_tokens": 80, "do_sample": True, "seed": 4}
        expected = list(lm.stream(text, **options))
        with lm.stream(text, **options, assistant_model=lm) as stream:
            assert list(stream) == expected
            assert stream.stats["n_accepted_tokens"] > 0
            assert stream.n_new_tokens == 80
        assert not lm.stream(text, **options).stats

        async def main() -> list[list[str]]:
            async def pieces(**more: Any) -> list[str]:
                return [piece async for piece in lm.astream(text, **options, **more)]

            return await asyncio.gather(pieces(), pieces(**LOOKUP), pieces(assistant_model="int8"))

        assert asyncio.run(main()) == [expected] * 3
        for n in range(6):  # closed in the middle
            with lm.stream(text, **options, **LOOKUP) as stream:
                assert [piece for _, piece in zip(range(n), stream, strict=False)] == expected[:n]
        assert_free(lm)


def test_streamer_gets_every_token_once(lm: CausalLM, eager: None) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.ids: list[int] = []
            self.ended = 0

        def put(self, value: Any) -> None:
            self.ids += np.asarray(value).ravel().tolist()

        def end(self) -> None:
            self.ended += 1

    streamer = Streamer()
    found = lm.generate(RAGGED[2], max_new_tokens=50, eos_token_id=-1, streamer=streamer, assistant_model=lm)
    assert streamer.ids == found.tolist()
    assert streamer.ended == 1
    assert found.tolist() == lm.generate(RAGGED[2], max_new_tokens=50, eos_token_id=-1).tolist()


def test_without_the_test_policy_results_are_the_same(lm: CausalLM) -> None:
    """The real decisions depend on time; whatever they are, the output is the same."""
    prompts = [ids * 3 for ids in RAGGED[:5]]
    for options in OPTIONS[::3]:
        expected = run(lm, prompts, **options, max_new_tokens=60)
        for kind in (LOOKUP, {"assistant_model": "int4"}, {"assistant_model": lm}):
            assert_same(run(lm, prompts, **options, **kind, max_new_tokens=60), expected)
    assert_free(lm)
