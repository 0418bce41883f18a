"""Options of decoding in an engine that many callers share."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastattn.errors import InputError
from fastattn.generation import scheduler
from fastattn.generation.generate import generate, generate_async
from fastattn.models.outputs import GenerateOutput
from tests.reference.hang import HANG_SECONDS
from tests.tasks.toy import ToyModel

PROMPTS = [[5, 6, 7], [1], [2, 3, 4, 5, 6, 7, 8, 2, 3]]
CALLS: list[dict[str, Any]] = [
    {"max_new_tokens": 20},
    {"max_new_tokens": 12, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 9, "do_sample": True, "seed": 4, "typical_p": 0.7, "presence_penalty": 0.5},
    {"max_new_tokens": 6, "num_beams": 3},
    {"max_new_tokens": 15, "do_sample": True, "seed": 8},
    {"max_new_tokens": 8, "logits_processor": lambda ids, scores: -scores},
]


def lists(rows: Any) -> list[list[int]]:
    return [row.tolist() for row in rows]


def test_calls_of_many_threads_give_what_they_give_alone() -> None:
    model, found = ToyModel(), dict[int, Any]()
    alone = [lists(generate(ToyModel(), PROMPTS, **options)) for options in CALLS]

    def work(i: int) -> None:
        found[i] = lists(generate(model, PROMPTS, **CALLS[i]))

    for _ in range(5):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(CALLS))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found[i] for i in range(len(CALLS))] == alone


def test_an_error_of_a_function_ends_only_its_call() -> None:
    model, found, errors = ToyModel(), list[Any](), list[BaseException]()
    wanted = lists(generate(ToyModel(), PROMPTS, max_new_tokens=40))

    def fails(ids: Any, scores: Any) -> Any:
        if ids.shape[1] > 12:
            raise ZeroDivisionError("of the user")
        return scores

    def bad() -> None:
        try:
            generate(model, PROMPTS, max_new_tokens=20, logits_processor=fails)
        except ZeroDivisionError as error:
            errors.append(error)

    threads = [
        threading.Thread(target=bad),
        threading.Thread(target=lambda: found.append(lists(generate(model, PROMPTS, max_new_tokens=40)))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [str(error) for error in errors] == ["of the user"]
    assert found == [wanted]
    assert lists(generate(model, PROMPTS, max_new_tokens=40)) == wanted


@pytest.mark.parametrize("i", range(len(CALLS)))
def test_tasks_of_asyncio(i: int) -> None:
    wanted = lists(generate(ToyModel(), PROMPTS, **CALLS[i]))
    model = ToyModel()

    async def main() -> list[Any]:
        return await asyncio.gather(*(generate_async(model, PROMPTS, **CALLS[i]) for _ in range(3)))

    assert [lists(rows) for rows in asyncio.run(main())] == [wanted] * 3


def test_a_cancelled_task_stops_its_beams() -> None:
    model, begun, cancelled = ToyModel(max_positions=4000), threading.Event(), threading.Event()
    random_logits = model.executor.random_logits

    def logits(ids: list[int]) -> Any:
        begun.set()
        assert cancelled.wait(HANG_SECONDS)  # so that the beams cannot end before
        return random_logits(ids)

    model.executor.logits_of = logits

    async def main() -> None:
        task = asyncio.create_task(generate_async(model, PROMPTS, num_beams=4, max_new_tokens=3000))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        cancelled.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    deadline = time.monotonic() + HANG_SECONDS
    while model.executor.open_caches and time.monotonic() < deadline:  # the step in progress ends in its thread
        time.sleep(0.001)
    assert model.executor.open_caches == 0
    assert sum(model.executor.sizes) < 3 * 4 * 3000


def test_beams_end_at_their_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    model, late = ToyModel(max_positions=4000), 0.0
    clock = SimpleNamespace(perf_counter=time.perf_counter, monotonic=lambda: time.monotonic() + late)
    monkeypatch.setattr(scheduler, "time", clock)
    random_logits = model.executor.random_logits

    def logits(ids: list[int]) -> Any:
        nonlocal late
        late = 2000.0 if len(ids) >= 40 else late  # the deadline passes
        return random_logits(ids)

    model.executor.logits_of = logits
    found = generate(model, PROMPTS, num_beams=2, max_new_tokens=3000, max_time=1000, return_dict_in_generate=True)
    assert isinstance(found, GenerateOutput)
    assert found.finish_reasons == ["time"] * 3
    assert [len(row) - len(prompt) for row, prompt in zip(found.sequences, PROMPTS, strict=True)] == [32] * 3
    assert model.executor.open_caches == 0


def test_processors_see_the_whole_text_beyond_the_context() -> None:
    model, lengths = ToyModel(max_positions=16), list[int]()

    def look(ids: Any, scores: Any) -> Any:
        lengths.append(ids.shape[1])
        return scores

    options: dict[str, Any] = {"max_new_tokens": 30, "overflow": "slide"}
    plain = generate(model, PROMPTS[0], **options)
    found = generate(model, PROMPTS[0], logits_processor=look, **options)
    assert np.asarray(found).tolist() == np.asarray(plain).tolist()
    assert lengths == list(range(3, 33))
    with pytest.raises(InputError, match="overflow: expected 'error' with num_beams"):
        generate(model, PROMPTS[0], num_beams=2, **options)
