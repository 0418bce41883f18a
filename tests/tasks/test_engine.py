"""Many callers of one model: each result equals that of its request alone, and all pages are free at the end."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastattn import AutoModelForCausalLM
from fastattn.api.causal_lm import CausalLM
from fastattn.errors import InputError, NonFiniteError, OutOfMemory
from fastattn.executors.cpu import CpuExecutor
from fastattn.generation import generate as generation
from fastattn.generation.options import GenerationOptions
from fastattn.generation.scheduler import Call, Scheduler
from tests.reference.checkpoints import GPT2, gpt2_tensors, write, write_gpt2
from tests.reference.hang import HANG_SECONDS
from tests.tasks.toy import ToyModel

SIZES = {"vocab_size": 300, "n_positions": 512, "n_embd": 48, "n_layer": 2, "n_head": 3}
PAGE = 64  # positions
PAGE_BYTES = 2 * 48 * 4 * PAGE * 2  # keys and values, n_embd, float32, positions, layers
OPTIONS: Sequence[dict[str, Any]] = (
    {},
    {"do_sample": True, "temperature": 1.5},
    {"do_sample": True, "top_k": 0, "top_p": 0.9, "repetition_penalty": 1.3},
    {"min_new_tokens": 8, "eos_token_id": [7, 9, 11, 13]},
    {"min_new_tokens": 5, "eos_token_id": list(range(100, 140)), "repetition_penalty": 1.2},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("gpt2"), **SIZES)


def alone(lm: CausalLM, ids: Sequence[int], **options: Any) -> list[int]:
    """Run one request in a scheduler of its own, which shares nothing."""
    checked = GenerationOptions(**{"eos_token_id": -1, **options})
    (request,) = generation.make_requests(lm, [np.array(ids, np.int32)], checked, tokenizer=None)
    with Scheduler(lm.executor, [Call([request])]) as scheduler:
        while not scheduler.done:
            scheduler.step()
    return request.ids


def jobs(n: int, seed: int, longest: int = 300) -> list[tuple[list[int], dict[str, Any]]]:
    """Return prompts of mixed lengths, some with equal beginnings, and their options."""
    numbers = random.Random(seed)
    beginnings = [[numbers.randrange(300) for _ in range(longest)] for _ in range(3)]
    found = []
    for i in range(n):
        start = beginnings[i % 3][: numbers.randrange(longest)] if i % 2 else []
        prompt = start + [numbers.randrange(300) for _ in range(numbers.randint(1, 30))]
        options = {"max_new_tokens": numbers.randint(8, 60), "seed": i, "eos_token_id": -1, **OPTIONS[i % len(OPTIONS)]}
        found.append((prompt, options))
    return found


def in_threads(work: Callable[[int], Any], n: int) -> list[Any]:
    with ThreadPoolExecutor(n) as pool:
        return [future.result(timeout=HANG_SECONDS) for future in [pool.submit(work, i) for i in range(n)]]


def assert_free(lm: CausalLM) -> None:
    stats = lm.kv_stats()
    assert stats.in_use == 0
    assert isinstance(lm.executor, CpuExecutor)
    assert lm.executor.kv_pages_in_use == stats.idle


@pytest.mark.parametrize("limit_pages", [None, 9, 30])
def test_64_threads_some_of_them_cancelled(folder: Path, limit_pages: int | None) -> None:
    """With few pages, requests wait, are stopped and are computed again."""
    limit = None if limit_pages is None else limit_pages * PAGE_BYTES
    work = jobs(64, seed=1)
    with AutoModelForCausalLM.from_pretrained(folder, threads=2, kv_cache_bytes=limit) as lm:
        expected = [alone(lm, ids, **options) for ids, options in work]
        numbers = random.Random(2)
        stops = [numbers.randrange(8) if i % 4 == 3 else None for i in range(64)]
        barrier = threading.Barrier(64)

        def run(i: int) -> list[int] | None:
            ids, options = work[i]
            barrier.wait(HANG_SECONDS)
            stop = stops[i]
            if stop is None:
                return [int(token) for token in lm.generate(ids, **options)]
            checked = GenerationOptions(**options)
            (request,) = generation.make_requests(lm, [np.array(ids, np.int32)], checked, tokenizer=None)
            draws = lm.engine.draws(Call([request], every_token=True))
            for _, draw in zip(range(stop), draws, strict=False):
                assert draw.request is request
            draws.close()
            assert request.ids == expected[i][: len(request.ids)]
            return None

        found = in_threads(run, 64)
        for i, ids in enumerate(found):
            assert ids is None or ids == expected[i], i
        assert_free(lm)


def test_asyncio_tasks_and_threads(lm: CausalLM) -> None:
    work = jobs(24, seed=3)
    expected = [alone(lm, ids, **options) for ids, options in work]

    async def task(i: int) -> list[int]:
        ids, options = work[i]
        return [int(token) for token in await lm.agenerate(ids, **options)]

    async def cancelled(i: int) -> None:
        running = asyncio.create_task(task(i))
        await asyncio.sleep(0.002 * i)
        if running.cancel():
            with pytest.raises(asyncio.CancelledError):
                await running
        else:  # it ended before
            assert await running == expected[i]

    async def main() -> list[list[int]]:
        found = await asyncio.gather(*(task(i) for i in range(12)), *(cancelled(i) for i in range(1, 4)))
        return [ids for ids in found if ids is not None]

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(lm.generate, work[i][0], **work[i][1]) for i in range(12, 24)]
        found = asyncio.run(asyncio.wait_for(main(), HANG_SECONDS))
        found += [future.result(HANG_SECONDS).tolist() for future in futures]
    assert found == expected
    assert_free(lm)


def test_a_batch_with_options_of_its_own_per_call_shares_steps(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, arrived = [], threading.Barrier(8, timeout=HANG_SECONDS)
    step, submit = Scheduler.step, lm.engine.submit

    def announced(call: Call) -> None:
        submit(call)
        arrived.wait()

    monkeypatch.setattr(lm.engine, "submit", announced)

    def counted(self: Scheduler) -> Any:
        drawn = step(self)
        sizes.append(len(drawn))
        return drawn

    monkeypatch.setattr(Scheduler, "step", counted)

    def run(i: int) -> None:
        lm.generate([i, i + 1], max_new_tokens=150, eos_token_id=-1, **OPTIONS[i % 3])

    in_threads(run, 8)
    assert max(sizes) == 8


def test_memory_that_can_never_be_enough(folder: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=2 * PAGE_BYTES) as lm:
        assert lm.kv_stats().page_bytes == PAGE_BYTES
        assert len(lm.generate([1] * 100, max_new_tokens=28)) == 128
        with pytest.raises(OutOfMemory, match=rf"kv_cache_bytes: expected at least {3 * PAGE_BYTES} bytes .*100 \+ 29"):
            lm.generate([1] * 100, max_new_tokens=29)
        assert len(lm.generate([1] * 100, max_new_tokens=28)) == 128
        assert_free(lm)
    with pytest.raises(InputError, match="kv_cache_bytes: expected 1 to"):
        AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=0)


def test_an_error_of_one_request_leaves_the_others_alone(tmp_path: Path) -> None:
    """One id has an embedding that is NaN, so only the request with this id fails."""
    tensors = gpt2_tensors({**GPT2, **SIZES})
    tensors["wte.weight"] = tensors["wte.weight"].copy()
    folder = write(tmp_path / "clean", {**GPT2, **SIZES}, tensors)
    bad = {**tensors, "wpe.weight": tensors["wpe.weight"].copy()}
    bad["wpe.weight"][200] = np.nan
    broken = write(tmp_path / "broken", {**GPT2, **SIZES}, bad)
    with AutoModelForCausalLM.from_pretrained(folder) as clean:
        expected = [alone(clean, [i, 5, 7], max_new_tokens=120) for i in range(6)]
    with AutoModelForCausalLM.from_pretrained(broken, threads=2) as lm:
        barrier = threading.Barrier(8)

        def run(i: int) -> Any:
            barrier.wait(HANG_SECONDS)
            if i < 6:
                return lm.generate([i, 5, 7], max_new_tokens=120, eos_token_id=-1).tolist()
            with pytest.raises(NonFiniteError, match=r"row 0|logits\[0\]"):
                lm.generate([9] * (120 + 20 * i), max_new_tokens=30 + i, eos_token_id=-1)
            return None

        found = in_threads(run, 8)
        assert found[:6] == expected
        assert_free(lm)


def test_max_time_ends_texts_with_what_they_have(lm: CausalLM) -> None:
    found = lm.generate([[1, 2], [3]], max_new_tokens=400, eos_token_id=-1, max_time=0, return_dict_in_generate=True)
    assert found.finish_reasons == ["time", "time"]
    assert [ids.tolist() for ids in found.sequences] == [[1, 2], [3]]
    whole = alone(lm, [1, 2], max_new_tokens=400)
    found = lm.generate([1, 2], max_new_tokens=400, eos_token_id=-1, max_time=0.02, return_dict_in_generate=True)
    n = len(found.sequences[0])
    assert found.sequences[0].tolist() == whole[:n]
    assert found.finish_reasons == ["length" if n == 402 else "time"]
    assert_free(lm)


def test_the_order_of_calls() -> None:
    """Calls with a higher priority begin first, then the call with the fewest running requests."""
    model = ToyModel()
    begun: list[int] = []
    new_cache = model.executor.new_cache

    def first_ids(ids: list[int]) -> np.ndarray:
        if ids[-1] == ids[0] and len(ids) == 2:
            begun.append(ids[0])
        return model.executor.random_logits(ids)

    model.executor.logits_of = first_ids
    assert new_cache is not None

    def call(ids: Sequence[int], **options: Any) -> Call:
        checked = GenerationOptions(max_new_tokens=3, eos_token_id=-1, **options)
        prompts = [np.array([i, i], np.int32) for i in ids]
        requests = generation.make_requests(model, prompts, checked, tokenizer=None)
        return Call(requests, max_running=2, priority=checked.priority)

    calls = [call([1, 2, 3, 4]), call([11]), call([21, 22], priority=5)]
    with Scheduler(model.executor, calls, step_tokens=2) as scheduler:
        while not scheduler.done:
            scheduler.step()
    assert begun[:2] == [21, 22]
    assert begun.index(11) < begun.index(2)
    assert sorted(begun) == [1, 2, 3, 4, 11, 21, 22]


def test_a_stream_that_nobody_reads_pauses_and_goes_on(lm: CausalLM) -> None:
    """Other callers' steps draw a few of its tokens. With few pages it gives up its memory."""
    whole = alone(lm, [1, 2, 3], max_new_tokens=80)
    (request,) = generation.make_requests(
        lm, [np.array([1, 2, 3], np.int32)], GenerationOptions(max_new_tokens=80, eos_token_id=-1), tokenizer=None
    )
    call = Call([request], every_token=True, run_ahead=16)
    lm.engine.submit(call)
    first = lm.engine.take(call)
    assert first is not None
    lm.generate([4, 5], max_new_tokens=100, eos_token_id=-1)
    assert request.new_len == 17
    tokens = [first.token_id]
    while (draw := lm.engine.take(call)) is not None:
        tokens.append(draw.token_id)
    assert [1, 2, 3, *tokens] == whole
    assert_free(lm)


def test_a_paused_stream_does_not_block_others(folder: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(folder, kv_cache_bytes=2 * PAGE_BYTES) as lm:
        expected = alone(lm, [1] * 70, max_new_tokens=50)
        (request,) = generation.make_requests(
            lm, [np.array([1] * 70, np.int32)], GenerationOptions(max_new_tokens=50, eos_token_id=-1), tokenizer=None
        )
        call = Call([request], every_token=True, run_ahead=4)
        lm.engine.submit(call)
        assert lm.engine.take(call) is not None
        assert len(lm.generate([2] * 80, max_new_tokens=40, eos_token_id=-1)) == 120
        while lm.engine.take(call) is not None:
            pass
        assert request.ids == expected
        assert_free(lm)


def test_a_request_that_another_thread_leads_is_cancelled_within_a_step(lm: CausalLM) -> None:
    """The pages of the request are free while the leader continues."""
    started, seen = threading.Event(), []

    def long() -> None:
        lm.generate([1] * 10, max_new_tokens=480, eos_token_id=-1)

    leader = threading.Thread(target=long)
    leader.start()
    (request,) = generation.make_requests(
        lm, [np.array([2] * 200, np.int32)], GenerationOptions(max_new_tokens=300, eos_token_id=-1), tokenizer=None
    )
    call = Call([request], every_token=True)
    draws = lm.engine.draws(call)
    next(draws)
    started.set()
    draws.close()
    n = request.new_len
    deadline = time.monotonic() + HANG_SECONDS
    while request.cache is not None and time.monotonic() < deadline:
        time.sleep(0.0005)
    seen.append(request.new_len - n)
    leader.join(HANG_SECONDS)
    assert request.cache is None
    assert seen[0] <= 1
    assert_free(lm)
