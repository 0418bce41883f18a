"""If all layers have sliding windows, the KV cache has the size of the window, and results keep their bits.

Greedy texts are compared with one forward pass, which has no cache. The other references keep all pages.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import InputError, OutOfMemory
from fastattn.executors.cpu import CpuExecutor
from fastattn.generation.generate import make_requests
from fastattn.generation.options import GenerationOptions
from fastattn.generation.scheduler import ALONE_TOKENS, Call, Scheduler
from fastattn.graph.ir import Program
from tests.models.test_kv_cache import feed
from tests.reference.families import VOCAB_SIZE, write_variant
from tests.tasks.test_engine import alone, assert_free

PAGE, WINDOW, CONTEXT = 64, 70, 1100
NUMBERS = random.Random(3)
PROMPT = [NUMBERS.randrange(2, VOCAB_SIZE) for _ in range(500)]
BETWEEN = 3  # the most pages that a window of 70 positions touches
MOST = BETWEEN + ALONE_TOKENS // PAGE + 1  # within a step of a prompt
BEAMS = {"num_beams": 2, "max_new_tokens": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mistral"))


def write(path: Path, name: str = "mistral", window: int = WINDOW) -> Path:
    return write_variant(path, name, "causal-lm", sliding_window=window, max_position_embeddings=CONTEXT)


def load(folder: Path, pages: int | None = None, **options: Any) -> CausalLM:
    with AutoModelForCausalLM.from_pretrained(folder, threads=1, **options) as lm:
        page_bytes = lm.kv_stats().page_bytes
    limit = None if pages is None else pages * page_bytes
    return AutoModelForCausalLM.from_pretrained(folder, threads=1, kv_cache_bytes=limit, **options)


def generate(lm: CausalLM, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    found: Any = lm.generate(prompts, **{"max_new_tokens": 30, "eos_token_id": -1, **options})
    return [ids.tolist() for ids in found]


def is_greedy(lm: CausalLM, text: list[int], prompt_len: int) -> bool:
    logits = np.asarray(lm(text[:-1]).logits)
    return bool((logits[prompt_len - 1 :].argmax(-1) == text[prompt_len:]).all())


def test_pages_in_use_stay_bounded(folder: Path) -> None:
    with load(folder) as lm:
        executor, (request,) = (
            lm.executor,
            make_requests(
                lm, [np.array(PROMPT, np.int32)], GenerationOptions(max_new_tokens=300, eos_token_id=-1), tokenizer=None
            ),
        )
        assert isinstance(executor, CpuExecutor)
        seen = []
        with Scheduler(executor, [Call([request])], prompt_tokens=(ALONE_TOKENS, ALONE_TOKENS)) as scheduler:
            while not scheduler.done:
                scheduler.step()
                seen.append(executor.kv_pages_in_use)
        assert max(seen) == BETWEEN
        assert is_greedy(lm, request.ids, len(PROMPT))
        assert_free(lm)


@pytest.mark.parametrize("dtypes", [{}, {"dtype": "bfloat16"}, {"dtype": "int8", "kv_dtype": "int8"}], ids=str)
def test_a_limit_of_the_window_is_enough_for_long_texts(folder: Path, dtypes: dict[str, Any]) -> None:
    """The limit of pages is less than half of what the text would need, and evicts pages of its own beginning."""
    with load(folder, MOST + 1, **dtypes) as lm:
        (text,) = generate(lm, [PROMPT], max_new_tokens=500)
        assert is_greedy(lm, text, len(PROMPT))
        assert lm.kv_stats().in_use + lm.kv_stats().idle <= MOST + 1
        assert_free(lm)


def test_a_limit_below_the_window_is_refused(folder: Path) -> None:
    with load(folder, BETWEEN) as lm, pytest.raises(OutOfMemory, match="kv_cache_bytes"):
        lm.generate([PROMPT], max_new_tokens=500)


@pytest.mark.parametrize("pages", [None, 9, 20])
def test_prefixes_and_preemption(folder: Path, pages: int | None) -> None:
    """Texts that share beginnings of many lengths, in one batch and in turn, while few pages force out others."""
    prompts = [PROMPT[:n] + [NUMBERS.randrange(2, VOCAB_SIZE) for _ in range(3)] for n in (500, 64, 330, 200, 450, 129)]
    with load(folder, pages) as lm:
        expected = [alone(lm, ids, max_new_tokens=30) for ids in prompts]
        assert all(is_greedy(lm, text, len(ids)) for text, ids in zip(expected, prompts, strict=True))
        for _ in range(2):
            assert generate(lm, prompts) == expected
            assert [generate(lm, [ids])[0] for ids in reversed(prompts)] == expected[::-1]
        assert generate(lm, [expected[0]])[0][: len(expected[0])] == expected[0]
        assert_free(lm)


@pytest.mark.parametrize(
    "options",
    [BEAMS, {"temperature": 1.0, "top_k": 20, "seed": 5}, {"prompt_lookup_num_tokens": 6, "max_new_tokens": 150}],
    ids=["beams", "sampling", "speculation"],
)
def test_texts_equal_those_with_all_pages(
    folder: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [PROMPT[:190], PROMPT[:20] * 12]
    found = []
    for slides in (True, False):
        with monkeypatch.context() as patch:
            if not slides:
                patch.setattr(Program, "kv_window", 0)
            with load(folder) as lm:
                found += [generate(lm, prompts, **options), [generate(lm, [ids], **options)[0] for ids in prompts]]
                assert_free(lm)
    assert found == [found[0]] * 4


def test_scores_equal_those_with_all_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for slides in (True, False):
        with monkeypatch.context() as patch:
            if not slides:
                patch.setattr(Program, "kv_window", 0)
            with load(folder) as lm:
                found.append([row.tobytes() for row in lm.score(PROMPT, [PROMPT[:300], PROMPT[7:90]]).logprobs])
                assert_free(lm)
    assert found[0] == found[1]


def test_a_cached_prefix_keeps_its_pages(folder: Path) -> None:
    with load(folder) as lm:
        expected = alone(lm, [*PROMPT, 5], max_new_tokens=20)
        generate(lm, [PROMPT])
        with lm.cache_prefix(PROMPT):
            assert lm.kv_stats().in_use == -(-len(PROMPT) // PAGE)
            assert generate(lm, [[*PROMPT, 5]], max_new_tokens=20) == [expected]
        assert_free(lm)


def test_layers_without_a_window_keep_all_pages(tmp_path: Path) -> None:
    with load(write(tmp_path, "gemma2")) as lm:
        assert lm.executor.program.kv_window == 0
        (text,) = generate(lm, [PROMPT[:300]])
        assert is_greedy(lm, text, 300)
        assert lm.kv_stats().idle == len(text) // PAGE


def test_a_cache_refuses_what_it_has_freed(folder: Path) -> None:
    with load(folder) as lm:
        cache: Any = lm.new_cache()
        whole = np.asarray(lm(PROMPT[:300]).logits)
        feed(lm, [PROMPT[:200]], [cache])
        with pytest.raises(InputError, match="window: expected at least 1, got 0"):
            cache.slide(0)
        cache.slide(WINDOW)
        with pytest.raises(InputError, match="index: expected a page from 2 on"):
            cache.share_page(1)
        with pytest.raises(InputError, match="length: expected 0, or a length whose window of 70 positions"):
            cache.truncate(190)
        with pytest.raises(InputError, match="cache: expected whole pages"):
            cache.skip_page()
        copy = cache.fork()
        assert lm.kv_stats().in_use == 2
        for each in (cache, copy):
            each.truncate(198)
            assert feed(lm, [PROMPT[198:300]], [each])[0].tobytes() == whole[198:300].tobytes()
        cache.truncate(0)
        assert feed(lm, [PROMPT[:65]], [cache])[0].tobytes() == whole[:65].tobytes()
