"""Constrained texts beside other calls, after cancellations, recomputation, interruptions and forks."""

from __future__ import annotations

import os
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.generation import generate as generation
from fastattn.generation.call import Call
from fastattn.generation.options import GenerationOptions
from fastattn.generation.scheduler import Scheduler
from tests.reference.hang import HANG_SECONDS
from tests.tasks.structured_models import EOS, PAGE_BYTES, text_of, write_model

pytest.importorskip("llguidance", reason="llguidance is in the extra structured")

KINDS: list[dict[str, Any]] = [
    {"regex": r"[a-z]{30,90}\."},
    {"json_schema": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 3, "maxItems": 6}},
    {"eos_token_id": -1},
    {"grammar": 'root ::= ("ab" | "cd" | "e ")+ "."'},
    {"choices": ["hello", "the the", "a" * 50]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gpt2"))


def jobs(n: int, longest: int) -> list[tuple[list[int], dict[str, Any]]]:
    numbers = random.Random(n)
    start = [numbers.randrange(256) for _ in range(longest)]
    found = []
    for i in range(n):
        prompt = start[: numbers.randrange(longest)] + [numbers.randrange(256) for _ in range(1 + i % 20)]
        how = {"do_sample": True, "seed": i, "top_k": 0} if i % 2 else {}
        found.append((prompt, {"max_new_tokens": numbers.randint(20, 70), **KINDS[i % len(KINDS)], **how}))
    return found


def alone(lm: CausalLM, ids: list[int], **options: Any) -> list[int]:
    """Run one request in a scheduler of its own, which shares nothing."""
    (request,) = generation.make_requests(lm, [np.array(ids, np.int32)], GenerationOptions(**options), tokenizer=None)
    with Scheduler(lm.executor, [Call([request])]) as scheduler:
        while not scheduler.done:
            scheduler.step()
    return request.ids


@pytest.mark.parametrize("limit_pages", [None, 7])
def test_threads_some_of_them_cancelled(folder: Path, limit_pages: int | None) -> None:
    """With few pages, requests wait, are stopped and are computed again."""
    limit = None if limit_pages is None else limit_pages * PAGE_BYTES
    work = jobs(24, 200)
    with AutoModelForCausalLM.from_pretrained(folder, threads=2, kv_cache_bytes=limit) as lm:
        expected = [alone(lm, ids, **options) for ids, options in work]
        barrier = threading.Barrier(len(work))

        def run(i: int) -> list[int] | None:
            ids, options = work[i]
            barrier.wait(HANG_SECONDS)
            if i % 4 < 3:
                return [int(token) for token in lm.generate(ids, **options)]
            (request,) = generation.make_requests(
                lm, [np.array(ids, np.int32)], GenerationOptions(**options), tokenizer=None
            )
            draws = lm.engine.draws(Call([request], every_token=True))
            for _ in zip(range(5), draws, strict=False):
                pass
            draws.close()
            assert request.ids == expected[i][: len(request.ids)]
            return None

        with ThreadPoolExecutor(len(work)) as pool:
            found = [f.result(timeout=HANG_SECONDS) for f in [pool.submit(run, i) for i in range(len(work))]]
        for i, ids in enumerate(found):
            assert ids is None or ids == expected[i], i
        assert lm.kv_stats().in_use == 0


def test_a_stopped_request_goes_on_where_it_was(folder: Path) -> None:
    """The scheduler recovers after a step at any place; draws that are lost are drawn again."""
    options = GenerationOptions(max_new_tokens=60, do_sample=True, seed=3, **KINDS[1])
    with AutoModelForCausalLM.from_pretrained(folder, threads=1) as lm:
        prompts = [np.array([10, 20, 30], np.int32), np.array([40], np.int32)]
        expected = [alone(lm, prompts[0].tolist(), max_new_tokens=60, do_sample=True, seed=3, **KINDS[1])]
        requests = generation.make_requests(lm, prompts, options, tokenizer=None)
        n_steps = 0
        with Scheduler(lm.executor, [Call(requests)]) as scheduler:
            while not scheduler.done:
                scheduler.step()
                n_steps += 1
                if n_steps % 5 == 0 and not scheduler.done:
                    lost = max(requests[0].prompt_len, len(requests[0].ids) - n_steps % 3)
                    if requests[0].finish_reason is None:
                        requests[0].rewind(lost)
                    scheduler.recover()
        assert requests[0].ids == expected[0]
        assert requests[0].ids[-1] == EOS


def test_a_mask_depends_only_on_the_ids(folder: Path) -> None:
    """In any order: more ids, fewer ids and other ids, with and without the other thread."""
    numbers = random.Random(1)
    with AutoModelForCausalLM.from_pretrained(folder, threads=1) as lm:
        options = GenerationOptions(max_new_tokens=9, json_schema={"type": "object"})

        def request() -> Any:
            (made,) = generation.make_requests(lm, [np.array([7], np.int32)], options, tokenizer=None)
            return made

        one, texts = request(), ['{"ab": [1, 2', '{"ab": "x', "{", "", '{ "c": null}']
        for _ in range(60):
            ids = list(numbers.choice(texts).encode())
            one.ids = [7, *ids[: numbers.randrange(len(ids) + 1)]]
            if numbers.random() < 0.5:
                one.mask.start(one)
            fresh = request()
            fresh.ids = list(one.ids)
            row = np.zeros(266, np.float32)
            np.testing.assert_array_equal(one.mask(one, row), fresh.mask(fresh, row))
            assert not np.isneginf(one.mask(one, row)).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_text(folder: Path) -> None:
    """The child has no thread for masks, and may not wait for locks that threads of the parent hold."""
    ids, options = [10, 20, 30], {"max_new_tokens": 60, "do_sample": True, "seed": 3, **KINDS[1]}
    with AutoModelForCausalLM.from_pretrained(folder, threads=2) as lm:
        expected = lm.generate(ids, **options).tolist()
        others = [threading.Thread(target=lm.generate, args=([5, i],), kwargs=options) for i in range(3)]
        for thread in others:
            thread.start()
        codes = []
        for n_before in (1, 4, 9):
            (request,) = generation.make_requests(
                lm, [np.array(ids, np.int32)], GenerationOptions(**options), tokenizer=None
            )
            draws = lm.engine.draws(Call([request], every_token=True))
            for _ in range(n_before):
                next(draws)
            pid = os.fork()
            if pid == 0:
                import signal

                signal.alarm(HANG_SECONDS)  # ends it, should it hang
                for _ in draws:
                    pass
                fine = request.ids == expected and lm.generate(ids, **options).tolist() == expected
                os._exit(0 if fine else 1)
            for _ in draws:
                pass
            assert request.ids == expected
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        for thread in others:
            thread.join(HANG_SECONDS)
        assert codes == [0, 0, 0]
        assert re.fullmatch(r"\[.*\]", text_of(expected[3:]), re.DOTALL)
