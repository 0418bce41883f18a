"""The logic of generation, with a model whose logits are known: batches, stops, seeds, streams, runtime errors."""

from __future__ import annotations

import re
import threading
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from fastattn.errors import ConfigError, ContextLengthError, DTypeError, InputError, NonFiniteError
from fastattn.generation.generate import TextStream, generate, stream
from fastattn.generation.options import GenerationOptions, request_seed
from fastattn.generation.scheduler import Call, Request, Scheduler
from fastattn.models.outputs import GenerateOutput
from fastattn.tokenizer import Tokenizer, load_tokenizer
from tests.reference.hang import HANG_SECONDS
from tests.tasks.tokenizers import write_gpt2
from tests.tasks.toy import ToyModel

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [3, 2, 1], [1, 2, 3]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_gpt2(tmp_path_factory.mktemp("gpt2")))


def one(model: ToyModel, ids: object, **options: Any) -> list[int]:
    """Continue one sequence."""
    found = generate(model, ids, **options)
    assert isinstance(found, np.ndarray)
    return [int(token_id) for token_id in found]


def details(model: ToyModel, ids: object, **options: Any) -> GenerateOutput:
    found = generate(model, ids, return_dict_in_generate=True, **options)
    assert isinstance(found, GenerateOutput)
    assert model.executor.open_caches == 0
    return found


def test_shapes() -> None:
    model = ToyModel()
    one = generate(model, np.array([1, 2, 3]), max_new_tokens=4)
    assert isinstance(one, np.ndarray)
    assert (one.dtype, one.shape) == (np.int32, (7,))
    assert one[:3].tolist() == [1, 2, 3]
    many = generate(model, [[1, 2, 3], [4, 5]], max_new_tokens=4)
    assert [len(ids) for ids in many] == [7, 6]
    assert many[0].tolist() == one.tolist()
    padded = generate(model, np.array([[0, 4, 5], [1, 2, 3]]), attention_mask=[[0, 1, 1], [1, 1, 1]], max_new_tokens=4)
    assert [ids.tolist() for ids in padded] == [many[1].tolist(), one.tolist()]
    assert generate(model, [], max_new_tokens=4) == []
    assert len(generate(model, [1, 2])) == 22


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 64), (2, 3), (3, 1024), (32, 1), (32, 7)])
def test_schedule_does_not_matter(do_sample: bool, batch: int, tokens: int) -> None:
    model = ToyModel()
    options = GenerationOptions(do_sample=do_sample, max_new_tokens=9, seed=7, max_batch_size=batch)
    alone = [
        one(model, ids, do_sample=do_sample, max_new_tokens=9, seed=request_seed(7, i)) for i, ids in enumerate(PROMPTS)
    ]
    requests = [
        Request(list(ids), len(ids), 9, seed, options=options)
        for ids, seed in zip(PROMPTS, options.seeds(5), strict=True)
    ]
    model.executor.sizes.clear()
    with Scheduler(model.executor, [Call(requests, max_running=batch)], step_tokens=tokens) as scheduler:
        while not scheduler.done:
            scheduler.step()
    assert [request.ids for request in requests] == alone
    assert max(model.executor.sizes) <= tokens
    assert model.executor.open_caches == 0


def test_prefill_of_a_batch_is_one_step() -> None:
    model = ToyModel()
    generate(model, PROMPTS, max_new_tokens=3)
    assert model.executor.sizes == [sum(map(len, PROMPTS)), 5, 5]


def test_seeds() -> None:
    model = ToyModel()
    whole = details(model, PROMPTS, do_sample=True, seed=11, max_new_tokens=12)
    assert whole.seeds == [request_seed(11, i) for i in range(5)]
    assert whole.sequences[0].tolist() != whole.sequences[4].tolist()  # same prompt, different request
    again = details(model, PROMPTS[::-1], do_sample=True, seed=whole.seeds[::-1], max_new_tokens=12)
    assert [s.tolist() for s in again.sequences[::-1]] == [s.tolist() for s in whole.sequences]
    drawn = details(model, [1, 2], do_sample=True, max_new_tokens=12)
    repeated = one(model, [1, 2], do_sample=True, max_new_tokens=12, seed=drawn.seeds)
    assert drawn.sequences[0].tolist() == repeated
    with pytest.raises(InputError, match="seed: expected 5 seeds"):
        generate(model, PROMPTS, seed=[1, 2])


def test_log_probabilities() -> None:
    model = ToyModel()
    found = details(model, [1, 2, 3], do_sample=True, temperature=0.5, repetition_penalty=1.3, max_new_tokens=5, seed=1)
    ids = found.sequences[0].tolist()
    for i in range(5):
        logits = model.executor.random_logits(ids[: 3 + i])
        expected = logits[ids[3 + i]] - np.log(np.exp(logits).sum())
        assert found.logprobs[0][i] == np.float32(expected) or abs(found.logprobs[0][i] - expected) < 4 * np.spacing(
            np.float32(abs(expected))
        )


def test_eos() -> None:
    model = ToyModel()
    model.always_say([20, 21, 22], prompt_len=2)
    found = details(model, [1, 2], eos_token_id=21, max_new_tokens=8)
    assert found.sequences[0].tolist() == [1, 2, 20, 21]
    assert found.finish_reasons == ["eos"]
    model.eos_token_ids = (22, 5)
    assert one(model, [1, 2], max_new_tokens=8) == [1, 2, 20, 21, 22]
    assert len(generate(model, [1, 2], max_new_tokens=8, eos_token_id=-1)) == 10
    found = details(model, [1, 2], eos_token_id=[7, 20], max_new_tokens=8)
    assert found.sequences[0].tolist() == [1, 2, 20]
    with pytest.raises(InputError, match="eos_token_id: expected -1 to 31, got 32"):
        generate(model, [1, 2], eos_token_id=32)


def test_min_new_tokens() -> None:
    model = ToyModel()
    model.always_say([21], prompt_len=2)
    found = details(model, [1, 2], eos_token_id=21, max_new_tokens=8, min_new_tokens=3)
    assert len(found.sequences[0]) == 6
    assert found.sequences[0][-1] == 21


def test_a_minimum_beyond_the_default_maximum_is_refused() -> None:
    """transformers stops at the default, before the minimum."""
    model = ToyModel()
    assert len(details(model, [1, 2], min_new_tokens=20, eos_token_id=-1).sequences[0]) == 22
    with pytest.raises(InputError, match=r"^min_new_tokens: expected at most 20 without max_new_tokens, got 21; pass"):
        generate(model, [1, 2], min_new_tokens=21)
    with pytest.raises(InputError, match=r"^min_length: expected at most 22 without max_new_tokens, got 23; pass max"):
        generate(model, [1, 2], min_length=23)


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["lo"], "hel"),
        (["w"], "hello "),
        ("o w", "hell"),
        (["\U0001f601"], "hello world "),
        (["xyz", "ld", "rl"], "hello wo"),
        (["never"], None),
        (["h"], ""),
    ],
)
def test_stop_strings(tokenizer: Tokenizer, stops: list[str], text: str | None) -> None:
    said = "hello world 😁é. "
    model = ToyModel(tokenizer)
    ids = tokenizer.encode(said)
    model.always_say(ids, prompt_len=1)
    found = details(model, [5], stop_strings=stops, max_new_tokens=len(ids))
    expected = said if text is None else text
    assert found.texts == [expected]
    assert found.finish_reasons == ["length" if text is None else "stop_string"]
    new = found.sequences[0][1:]
    assert expected.startswith(tokenizer.decode(new))
    assert len(expected) - len(tokenizer.decode(new)) < max(len(t) for t in tokenizer.tokenize(said))
    assert len(found.logprobs[0]) == len(new)
    with stream(model, [5], stop_strings=stops, max_new_tokens=len(ids)) as pieces:
        assert "".join(pieces) == expected
        assert pieces.token_ids.tolist() == found.sequences[0].tolist()
        assert pieces.finish_reason == found.finish_reasons[0]
    assert model.executor.open_caches == 0


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="stop_strings: expected a tokenizer"):
        generate(ToyModel(), [1], stop_strings=["a"])
    with pytest.raises(ConfigError, match=r"stream: expected a tokenizer .*add its tokenizer\.json"):
        stream(ToyModel(), "a")


def test_stream(tokenizer: Tokenizer) -> None:
    model = ToyModel(tokenizer)
    ids = one(model, tokenizer.encode("the hello"), max_new_tokens=30, do_sample=True, seed=3)
    pieces = stream(model, "the hello", max_new_tokens=30, do_sample=True, seed=3)
    collected = list(pieces)
    assert "".join(collected) == tokenizer.decode(ids[len(tokenizer.encode("the hello")) :], skip_special_tokens=True)
    assert all(collected)
    assert pieces.finish_reason == "length"
    assert pieces.n_new_tokens == 30


def test_closing_a_stream_ends_the_work(tokenizer: Tokenizer) -> None:
    model = ToyModel(tokenizer)
    pieces = stream(model, "the", max_new_tokens=30)
    next(pieces)
    assert model.executor.open_caches == 1
    steps = len(model.executor.sizes)
    pieces.close()
    pieces.close()
    assert model.executor.open_caches == 0
    assert list(pieces) == []
    dropped = stream(model, "the", max_new_tokens=30)
    next(dropped)
    del dropped
    assert model.executor.open_caches == 0
    assert len(model.executor.sizes) >= steps


class Paused:
    """Requests a piece from a stream in another thread, which waits in the middle of its step until `finish`."""

    def __init__(self, model: ToyModel, pieces: TextStream) -> None:
        self.pieces, self.found = pieces, ""
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.logits_of, model.executor.logits_of = model.executor.logits_of, self.wait
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        assert self.inside.wait(HANG_SECONDS)
        model.executor.logits_of = self.logits_of

    def wait(self, ids: list[int]) -> NDArray[np.float64]:
        self.inside.set()
        assert self.go_on.wait(HANG_SECONDS)
        return self.logits_of(ids)

    def run(self) -> None:
        self.found = next(self.pieces)

    def finish(self) -> str:
        self.go_on.set()
        self.thread.join(HANG_SECONDS)
        assert not self.thread.is_alive()
        return self.found


def test_fault_49_a_stream_in_two_threads(tokenizer: Tokenizer) -> None:
    model = ToyModel(tokenizer)
    expected = list(stream(model, "the", max_new_tokens=30, do_sample=True, seed=3))
    pieces = stream(model, "the", max_new_tokens=30, do_sample=True, seed=3)
    found = [next(pieces)]
    other = Paused(model, pieces)
    for _ in range(2):
        with pytest.raises(InputError, match=r"^stream: expected one thread at a time, .* in use by another thread"):
            next(pieces)
    assert model.executor.open_caches == 1
    found += [other.finish(), *pieces]
    assert found == expected


def test_fault_49_a_stream_closed_by_another_thread(tokenizer: Tokenizer) -> None:
    model = ToyModel(tokenizer)
    expected = next(stream(model, "the", max_new_tokens=30))
    with stream(model, "the", max_new_tokens=30) as pieces:
        other = Paused(model, pieces)
    assert model.executor.open_caches == 1  # of the step in progress
    assert other.finish() == expected
    assert model.executor.open_caches == 0
    assert list(pieces) == []


def test_stream_checks_before_the_first_piece(tokenizer: Tokenizer) -> None:
    model = ToyModel(tokenizer)
    with pytest.raises(InputError, match="temperature"):
        stream(model, "a", temperature=-1)
    with pytest.raises(InputError, match="one sequence"):
        stream(model, [[1], [2]])
    with pytest.raises(ContextLengthError):
        stream(model, "a" * 60, max_new_tokens=30)
    assert model.executor.sizes == []


def test_repetition_penalty() -> None:
    model = ToyModel()
    model.executor.logits_of = lambda ids: np.linspace(1, 1.3, 32)
    assert len(set(one(model, [1, 2], repetition_penalty=2.0, max_new_tokens=30))) == 32


def test_fault_42_empty_prompt() -> None:
    model = ToyModel()
    with pytest.raises(InputError, match=re.escape("input_ids[1]: expected at least one id")):
        generate(model, [[1], []])
    model.eos_token_ids = (9,)
    assert generate(model, [[1], []], max_new_tokens=2)[1][0] == 9
    model.bos_token_id = 8
    assert generate(model, [[1], []], max_new_tokens=2)[1][0] == 8


def test_fault_45_context() -> None:
    model = ToyModel()
    full = list(np.arange(64) % 32)
    for ids, new in ([full, 1], [[*full, 1], None], [full, None], [full[:60], 5]):
        with pytest.raises(ContextLengthError, match="context"):
            generate(model, ids, max_new_tokens=new)
    assert model.executor.sizes == []
    assert len(generate(model, full[:60], max_new_tokens=4)) == 64
    assert len(generate(model, full[:60])) == 64
    assert len(generate(model, full, max_new_tokens=0)) == 64


@pytest.mark.parametrize("truncate", ["left", "right"])
def test_fault_45_a_prompt_that_may_be_cut(truncate: Literal["left", "right"]) -> None:
    model = ToyModel()
    long = [int(i) for i in np.arange(100) * 7 % 32]

    def kept(room: int) -> list[int]:
        return long[-room:] if truncate == "left" else long[:room]

    for new, room in ((5, 59), (0, 64), (None, 44)):
        found = generate(model, [long, long[:3]], max_new_tokens=new, truncate=truncate)
        expected = generate(model, [kept(room), long[:3]], max_new_tokens=20 if new is None else new)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert len(generate(model, long[:60], truncate=truncate)) == 64  # a prompt that fits is not cut
    assert generate(model, long[:60], truncate=truncate).tolist()[:60] == long[:60]
    with pytest.raises(ContextLengthError, match="context"):
        generate(model, long, max_new_tokens=64, truncate=truncate)
    with pytest.raises(InputError, match="truncate: expected one of 'left', 'right', got 'middle'"):
        generate(model, long, truncate="middle")  # type: ignore[typeddict-item]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_fault_56_logits_that_are_not_numbers(bad: float) -> None:
    model = ToyModel()

    def logits(ids: list[int]) -> np.ndarray:
        row = model.executor.random_logits(ids)
        if len(ids) == 5:
            row[3] = bad
        return row

    model.executor.logits_of = logits
    with pytest.raises(NonFiniteError, match=r"logits\[1\].*id 3"):
        generate(model, [[1], [1, 2, 3, 4, 5]], max_new_tokens=4)
    assert model.executor.open_caches == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_fault_58_interrupted(tokenizer: Tokenizer, error: type[BaseException]) -> None:
    model = ToyModel(tokenizer)

    def logits(ids: list[int]) -> np.ndarray:
        if len(ids) == 5:
            raise error
        return model.executor.random_logits(ids)

    model.executor.logits_of = logits
    with pytest.raises(error):
        generate(model, [[1], [1, 2]], max_new_tokens=10)
    assert model.executor.open_caches == 0
    pieces = stream(model, [1], max_new_tokens=10)
    with pytest.raises(error):
        list(pieces)
    assert model.executor.open_caches == 0
    model.executor.logits_of = model.executor.random_logits
    assert len(generate(model, [1], max_new_tokens=10)) == 11


def test_texts_are_not_ids() -> None:
    for text in ("text", b"text", ["text", "more"]):
        with pytest.raises(DTypeError, match=r"^input_ids: expected token ids, got .*; encode the text .* stream\(\)"):
            generate(ToyModel(), text)
    with pytest.raises(DTypeError, match=r"call generate\(\*\*encoding\)"):
        generate(ToyModel(), {"input_ids": [1]})


def test_every_prompt_has_a_text_if_one_has_stop_strings(tokenizer: Tokenizer) -> None:
    model = ToyModel(tokenizer)
    configs = [{"stop_strings": "no such text"}, {}]
    found = details(model, PROMPTS[:2], generation_config=configs, max_new_tokens=3)
    ends = [ids[len(prompt) :].tolist() for prompt, ids in zip(PROMPTS, found.sequences, strict=False)]
    assert found.texts == [tokenizer.decode(ids, skip_special_tokens=True) for ids in ends]
    assert list(map(len, ends)) == [3, 3]
