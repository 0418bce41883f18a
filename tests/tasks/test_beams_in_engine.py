"""Beam searches in the steps of the engine: their pages count, and stops and interruptions change no result."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from fastattn import AutoModelForCausalLM
from fastattn.errors import OutOfMemory
from fastattn.executors.cpu import CpuExecutor
from fastattn.generation import beam_search, scheduler
from fastattn.generation.generate import generate, make_requests
from fastattn.generation.options import GenerationOptions
from fastattn.generation.page_plan import PagePlan
from fastattn.generation.scheduler import Call, Scheduler
from tests.reference.checkpoints import write_gpt2
from tests.tasks.toy import ToyCache, ToyModel

SIZES = {"vocab_size": 300, "n_positions": 512, "n_embd": 48, "n_layer": 2, "n_head": 3}
PAGE_BYTES = 2 * 48 * 4 * 64 * 2  # keys and values, n_embd, float32, positions, layers
PROMPTS = [[5, 6, 7], [1], [2, 3, 4, 5, 6, 7, 8, 2, 3]]
SEARCHES: Sequence[dict[str, Any]] = (
    {"num_beams": 4, "num_return_sequences": 2},
    {"num_beams": 3, "early_stopping": True, "eos_token_id": list(range(60))},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.6, "num_return_sequences": 4},
    {"num_beams": 4, "do_sample": True, "seed": 3, "length_penalty": 2.0},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("gpt2"), **SIZES)


def text(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 300, n).tolist()


def results(found: Any) -> tuple[Any, ...]:
    """Return everything that a search gives, as values that can be compared."""
    return (
        [row.tolist() for row in found.sequences],
        found.sequences_scores,
        [row.tolist() for row in found.beam_indices],
        [row.tobytes() for row in found.logprobs],
        found.finish_reasons,
    )


def test_beams_stay_within_the_memory_of_the_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four searches and a plain call share 12 pages; one search alone may need 11. Every step has its pages."""
    prompts, limit = [text(n, seed=n) for n in (130, 70, 100, 128)], 12
    options: dict[str, Any] = {"max_new_tokens": 70, "return_dict_in_generate": True}
    with AutoModelForCausalLM.from_pretrained(folder, threads=1) as free:
        wanted = [results(free.generate(p, **options, **s)) for p, s in zip(prompts, SEARCHES, strict=True)]
        plain = free.generate(text(90, 9), max_new_tokens=60).tolist()
    most, starts, found = [0], [0], dict[int, Any]()
    run, start = CpuExecutor.run, PagePlan.start

    def counted(self: CpuExecutor, step: Any, outputs: Any = None) -> Any:
        rows = run(self, step, outputs)
        most[0] = max(most[0], self.kv_pages_in_use)
        return rows

    def started(self: PagePlan, request: Any) -> None:
        starts[0] += 1
        start(self, request)

    monkeypatch.setattr(CpuExecutor, "run", counted)
    monkeypatch.setattr(PagePlan, "start", started)
    with AutoModelForCausalLM.from_pretrained(folder, threads=1, kv_cache_bytes=limit * PAGE_BYTES) as lm:

        def work(i: int) -> None:
            if i < len(prompts):
                found[i] = results(lm.generate(prompts[i], **options, **SEARCHES[i]))
            else:
                found[i] = lm.generate(text(90, 9), max_new_tokens=60).tolist()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts) + 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[i] for i in range(len(prompts))] == wanted
        assert found[len(prompts)] == plain
        assert 0 < most[0] <= limit
        # A search that was stopped reads its prompt again, in the same call.
        sequential = [results(lm.generate(p, **options, **s)) for p, s in zip(prompts, SEARCHES, strict=True)]
        assert sequential == wanted
        stats = lm.kv_stats()
        assert (stats.in_use, stats.limit) == (0, limit)
    assert starts[0] >= 2 * len(prompts) + 1


def test_a_search_that_can_never_have_its_pages(folder: Path) -> None:
    with AutoModelForCausalLM.from_pretrained(folder, threads=1, kv_cache_bytes=12 * PAGE_BYTES) as lm:
        needed = (3 + 8 * (4 - 2)) * PAGE_BYTES  # the prompt, and two pages of its own for each beam
        with pytest.raises(
            OutOfMemory,
            match=f"^kv_cache_bytes: expected at least {needed} bytes for a text of 130 \\+ 80 tokens with 8 beams",
        ):
            lm.generate(text(130, 1), num_beams=8, max_new_tokens=80)
        assert len(lm.generate(text(130, 1), num_beams=4, max_new_tokens=80)) == 210


def test_searches_share_the_steps_of_other_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step has the rows of two searches and of a plain text."""
    model, sizes = ToyModel(), list[int]()
    step_of = scheduler.step_of

    def counted(chunks: Any) -> Any:
        sizes.append(len(chunks))
        return step_of(chunks)

    monkeypatch.setattr(scheduler, "step_of", counted)
    config = [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 1}, {}]
    found: Any = generate(model, PROMPTS, generation_config=config, max_new_tokens=9)
    assert max(sizes) == 3 + 4 + 1
    monkeypatch.undo()
    for i, one in enumerate(config):
        alone: Any = generate(model, PROMPTS[i], max_new_tokens=9, **one)
        assert found[i].tolist() == alone.tolist()


def run_toy(options: GenerationOptions, *, failing: int = -1) -> tuple[Any, int]:
    """Run searches in a scheduler; a step with number `failing` has no memory. Return the results and the steps."""
    model, n_steps = ToyModel(), 0
    requests = make_requests(model, [np.array(p, np.int32) for p in PROMPTS], options, tokenizer=None)
    with Scheduler(model.executor, [Call(requests)]) as steps:
        while not steps.done:
            fails = mock.patch.object(model.executor, "run", side_effect=MemoryError)
            with fails if n_steps == failing else contextlib.nullcontext():
                try:
                    steps.step()
                except MemoryError:
                    steps.recover()
            n_steps += 1
    assert model.executor.open_caches == 0
    return [(r.ids, r.score, r.beam_indices, r.finish_reason) for r in requests], n_steps


@pytest.mark.parametrize("search", SEARCHES)
def test_a_step_that_fails_is_computed_again(search: dict[str, Any]) -> None:
    """After any step, the caches are lost: the beams read their whole texts again, and go on as before."""
    options = GenerationOptions(**{**search, "eos_token_id": [30, 31, 3, 4]}, max_new_tokens=7)
    wanted, n_steps = run_toy(options)
    for failing in range(n_steps):
        assert run_toy(options, failing=failing)[0] == wanted


class Interrupted(BaseException):
    """What a signal handler raises."""


@pytest.mark.parametrize("search", SEARCHES[:3])
def test_a_search_that_is_interrupted_at_any_line(search: dict[str, Any]) -> None:
    options = GenerationOptions(**{**search, "eos_token_id": [30, 31, 3, 4]}, max_new_tokens=3)

    def run(at: int) -> tuple[Any, int]:
        model, count, before = ToyModel(), 0, sys.gettrace()
        requests = make_requests(model, [np.array(PROMPTS[0], np.int32)], options, tokenizer=None)

        def trace(frame: Any, event: str, _: object) -> Any:
            nonlocal count
            if frame.f_code.co_filename != beam_search.__file__:
                return None
            count += event == "line"
            if count == at and event == "line":
                sys.settrace(before)
                raise Interrupted
            return trace

        steps = Scheduler(model.executor, [Call(requests)])
        sys.settrace(trace)
        try:
            while not steps.done:
                try:
                    steps.step()
                except Interrupted:  # noqa: PERF203 (at most once)
                    steps.recover()
        finally:
            sys.settrace(before)
        assert (
            not [  # a copy that was interrupted before it had a name is freed without close()
                found
                for found in gc.get_objects()
                if type(found) is ToyCache and found.owner is model.executor and not found.closed
            ]
        )
        return [(r.ids, r.score, r.beam_indices, r.finish_reason) for r in requests], count

    wanted, n_lines = run(-1)
    assert n_lines > 200
    for at in range(1, n_lines, 7):
        assert run(at)[0] == wanted, at
