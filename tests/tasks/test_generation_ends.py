"""How texts end: at a deadline, without new tokens, with several errors; and what a call does not return."""

from __future__ import annotations

import asyncio
import logging
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastattn.errors import InputError
from fastattn.generation import scheduler
from fastattn.generation.generate import completed, generate, generate_async, make_requests, stream
from fastattn.generation.options import GenerationOptions
from fastattn.models.outputs import GenerateOutput
from fastattn.tokenizer import Tokenizer, load_tokenizer
from tests.tasks.tokenizers import write_gpt2
from tests.tasks.toy import ToyModel


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_gpt2(tmp_path_factory.mktemp("gpt2")))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace the scheduler's clock; `late` is added to the time."""
    found = SimpleNamespace(late=0.0, perf_counter=time.perf_counter)
    found.monotonic = lambda: time.monotonic() + found.late
    monkeypatch.setattr(scheduler, "time", found)
    return found


def details(model: ToyModel, ids: object, **options: Any) -> GenerateOutput:
    found = generate(model, ids, return_dict_in_generate=True, **options)
    assert isinstance(found, GenerateOutput)
    return found


def late_after(clock: SimpleNamespace, length: int) -> Any:
    """Return a processor that lets the deadline pass when the text has this many ids."""
    clock.late = 0.0

    def look(ids: Any, scores: Any) -> Any:
        clock.late = 2000.0 if ids.shape[1] >= length else 0.0
        return scores

    return look


@pytest.mark.parametrize("beams", [1, 2])
def test_a_stop_string_that_the_last_piece_completes_at_the_deadline(
    tokenizer: Tokenizer, clock: SimpleNamespace, beams: int
) -> None:
    """A character that is not complete becomes U+FFFD only at the end."""
    model, ids = ToyModel(tokenizer), tokenizer.encode("abé")
    assert tokenizer.decode(ids[:-1]) == "ab\ufffd"
    model.always_say(ids, 1)
    options = {"max_time": 1000, "num_beams": beams, "max_new_tokens": 20}
    for stops, text, n_new, reason in (
        (["\ufffd"], "ab", 2, "stop_string"),
        (["b\ufffd"], "a", 1, "stop_string"),
        (["x"], "ab\ufffd", 3, "time"),
    ):
        processor = late_after(clock, 3)  # draws the third token, and ends before the fourth
        found = details(model, [5], stop_strings=stops, logits_processor=processor, **options)
        assert found.texts == [text]
        assert found.sequences[0].tolist() == [5, *ids[:n_new]]
        assert found.finish_reasons == [reason]
    if beams == 1:
        processor = late_after(clock, 3)
        with stream(model, [5], stop_strings=["b\ufffd"], logits_processor=processor, **options) as pieces:
            assert "".join(pieces) == "a"
            assert pieces.finish_reason == "stop_string"
            assert pieces.token_ids.tolist() == [5, ids[0]]


def test_a_beam_that_a_criterion_ends_has_its_whole_text(tokenizer: Tokenizer) -> None:
    model, ids = ToyModel(tokenizer), tokenizer.encode("abé")
    model.always_say(ids, 1)
    for stops, text in (("x", "ab\ufffd"), ("\ufffd", "ab")):
        found = details(
            model, [5], num_beams=2, max_new_tokens=20, stop_strings=stops, early_stopping=True,
            stopping_criteria=lambda seen, _: seen.shape[1] == 4,
        )  # fmt: skip
        assert found.texts == [text]


@pytest.mark.parametrize("options", [{"max_new_tokens": 0}, {"max_new_tokens": 5, "max_time": 0}])
def test_beams_without_new_tokens(options: dict[str, Any]) -> None:
    model = ToyModel()
    prompts = [[1, 2, 3], [4]]
    found = details(model, prompts, num_beams=3, num_return_sequences=2, **options)
    assert [row.tolist() for row in found.sequences] == [[1, 2, 3], [1, 2, 3], [4], [4]]
    assert found.sequences_scores == [0.0] * 4  # the log-probability of no token
    assert [row.tolist() for row in found.beam_indices or []] == [[]] * 4
    assert found.finish_reasons == ["time" if "max_time" in options else "length"] * 4
    checked = GenerationOptions(num_beams=3, num_return_sequences=2, **options)
    requests = make_requests(model, [np.array(ids, np.int32) for ids in prompts], checked, tokenizer=None)
    assert list(completed(model, requests, checked)) == requests
    assert model.executor.open_caches == 0


def test_the_number_of_texts_may_come_with_the_call_and_sampling_from_elsewhere() -> None:
    model, prompts = ToyModel(), [[1, 2], [3]]
    wanted = details(model, prompts, do_sample=True, num_return_sequences=2, seed=3, max_new_tokens=4)
    rows = [row.tolist() for row in wanted.sequences]
    given: dict[str, Any] = {"num_return_sequences": 2, "seed": 3, "max_new_tokens": 4}
    for config in ([{"do_sample": True}] * 2, {"do_sample": True}):
        found = details(model, prompts, generation_config=config, **given)
        assert [row.tolist() for row in found.sequences] == rows
    model.generation_config = {"do_sample": True}
    for more in ({}, {"generation_config": [{}, {}]}):
        found = details(model, prompts, **given, **more)
        assert [row.tolist() for row in found.sequences] == rows
    best = {"best_of": 3, "seed": 3, "max_new_tokens": 4}
    one = details(model, prompts, generation_config=[{}, {}], **best)
    other = details(model, prompts, **best)
    assert [row.tolist() for row in one.sequences] == [row.tolist() for row in other.sequences]
    model.generation_config = {}
    with pytest.raises(InputError, match=r"^num_return_sequences: expected 1 without do_sample=True"):
        generate(model, prompts, generation_config=[{"do_sample": True}, {}], **given)
    with pytest.raises(InputError, match=r"^generate: unknown keyword 'top_kk'; did you mean 'top_k'"):
        generate(model, prompts, generation_config=[{}, {}], top_kk=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("how", ["generate", "agenerate"])
def test_the_first_of_several_errors(how: str) -> None:
    def fail(ids: Any, scores: Any) -> Any:
        if ids.shape[1] > 2:
            raise ValueError(f"about {ids[0, 0]}")
        return scores

    model = ToyModel()
    options: dict[str, Any] = {"logits_processor": fail, "max_new_tokens": 5}
    prompts = [[7], [8], [9]]
    run = {
        "generate": lambda: generate(model, prompts, **options),
        "agenerate": lambda: asyncio.run(generate_async(model, prompts, **options)),
    }[how]
    with pytest.raises(ValueError, match=r"^about 7") as caught:
        run()
    assert str(caught.value) == "about 7"
    if hasattr(caught.value, "add_note"):  # Python 3.11
        assert caught.value.__notes__ == [
            "another text of the call failed too: ValueError: about 8",
            "another text of the call failed too: ValueError: about 9",
        ]
    assert model.executor.open_caches == 0


def test_what_a_call_does_not_return_is_refused(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    model = ToyModel(tokenizer)
    with pytest.raises(InputError, match=r"^top_logprobs: expected 0 without logprobs=True, got 2; pass both$"):
        stream(model, [1], top_logprobs=2)
    with pytest.raises(InputError, match=r"^top_logprobs: expected 0 without logprobs=True"):
        stream(model, [1], generation_config={"top_logprobs": 2})
    with pytest.raises(InputError, match=r"^output_scores: expected False in a stream, got True; use generate with"):
        stream(model, [1], output_scores=True, logprobs=True)
    wanted = "^top_logprobs: expected 0 without return_dict_in_generate=True, got 2; pass both$"
    with pytest.raises(InputError, match=wanted):
        generate(model, [1], top_logprobs=2)
    with pytest.raises(InputError, match=wanted):
        generate(model, [[1]], generation_config=[{"top_logprobs": 2}])
    with caplog.at_level(logging.WARNING, "fastattn"):
        generate(model, [1], output_logits=True, max_new_tokens=1)
    assert caplog.messages == [
        "output_logits: ignored without return_dict_in_generate=True, as in transformers; pass both"
    ]
    with stream(model, [1], top_logprobs=2, logprobs=True, max_new_tokens=3) as pieces:
        list(pieces)
        assert [len(ids) for ids, _ in pieces.top_logprobs or []] == [2, 2, 2]
