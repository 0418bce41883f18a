"""Streamed text equals the decoded text, with every kind of tokenizer and with stop strings; `async for`; closing."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as RawTokenizer

from fastattn.errors import InputError
from fastattn.generation.generate import generate, stream
from fastattn.generation.prompts import encode_prompt
from fastattn.generation.stopping import TextState
from fastattn.generation.text_stream import TextStream
from fastattn.models.outputs import GenerateOutput
from fastattn.tokenizer import Tokenizer
from fastattn.tokenizer.options import TokenizerOptions
from tests.reference.hang import HANG_SECONDS
from tests.tasks.test_decoders import N_IDS, RAW
from tests.tasks.toy import ToyModel

NAMES = [
    "ByteLevel",
    "Metaspace",
    "WordPiece",
    "Llama",
    "Gemma",
    "CLIP",
    "BPEDecoder",
    "none",
    "CTC",
    "after everything",
]
IDS = st.lists(st.integers(0, N_IDS - 2), min_size=1, max_size=12)
STOPS = st.lists(st.sampled_from(["a", "ab", " a", "b b", "\ufffd", "你", " .", "ba", "##", "aab"]), max_size=3)


def tokenizer_of(name: str, *, clean: bool = False) -> Tokenizer:
    return Tokenizer(RAW[name], TokenizerOptions(clean_up_tokenization_spaces=clean))


def model_that_says(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> ToyModel:
    model = ToyModel(tokenizer)
    model.always_say(new, prompt_len=len(prompt))
    return model


def test_special_tokens_that_the_library_decodes() -> None:
    """The library omits special tokens by their text, which a normalizer or an earlier token may have changed."""
    raw = RawTokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.add_special_tokens([AddedToken("<M>", normalized=True), AddedToken("<P>", normalized=False), "<q>"])
    raw.add_tokens([AddedToken("<q>", normalized=False, special=False)])
    tokenizer = Tokenizer(raw, TokenizerOptions())
    new = [2, 0, 3, 1, 4, 1]
    expected = tokenizer.decode([0, *new], skip_special_tokens=True)[1:]
    assert "<m>" in expected
    assert "<P>" not in expected
    assert "".join(stream(model_that_says(tokenizer, [0], new), [0], max_new_tokens=len(new))) == expected
    omitted = {i for i in range(5) if not tokenizer.decode([i], skip_special_tokens=True)}
    assert tokenizer.skipped_ids == omitted


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(prompt=IDS, new=IDS, clean=st.booleans())
def test_pieces_are_the_decoded_text(name: str, prompt: list[int], new: list[int], clean: bool) -> None:
    tokenizer = tokenizer_of(name, clean=clean)
    try:
        base, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + new))
    except InputError:  # the library's Strip fails for short texts
        return
    pieces = list(stream(model_that_says(tokenizer, prompt, new), prompt, max_new_tokens=len(new), eos_token_id=-1))
    assert "".join(pieces) == whole[len(base) :]
    assert all(pieces)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(prompt=IDS, new=IDS, stops=STOPS)
def test_pieces_end_before_a_stop_string(name: str, prompt: list[int], new: list[int], stops: list[str]) -> None:
    """They end before the earliest one in the text when a stop string is found."""
    tokenizer = tokenizer_of(name)
    try:
        base, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + new))
    except InputError:
        return
    text = whole[len(base) :]
    model = model_that_says(tokenizer, prompt, new)
    options: Any = {"max_new_tokens": len(new), "eos_token_id": -1, "stop_strings": stops}
    with stream(model, prompt, **options) as pieces:
        found = "".join(pieces)
    stopped = any(stop in text for stop in stops)
    assert text.startswith(found)
    assert (pieces.finish_reason == "stop_string") == stopped
    assert not any(stop in found for stop in stops)
    if stopped:
        assert any(text.startswith(stop, len(found)) for stop in stops)
        if len(stops) == 1:
            assert found == text[: text.index(stops[0])]
        n_new = pieces.n_new_tokens
        kept = tokenizer.decode(prompt + new[:n_new], skip_special_tokens=True)[len(base) :]
        assert found.startswith(kept)
    else:
        assert found == text
    whole_call = generate(model, prompt, return_dict_in_generate=True, **options)
    assert isinstance(whole_call, GenerateOutput)
    assert whole_call.sequences[0].tolist() == pieces.token_ids.tolist()
    if stops:
        assert whole_call.texts == [found]


def test_a_stop_string_that_only_the_end_of_the_text_completes() -> None:
    tokenizer = tokenizer_of("Llama")
    ids = [tokenizer.raw.token_to_id(token) for token in ("a", "<0xE4>", "<0xBD>", "<0xA0>")]
    model = model_that_says(tokenizer, ids[:1], ids[1:])
    with stream(model, ids[:1], max_new_tokens=3, eos_token_id=-1, stop_strings="你") as pieces:
        assert list(pieces) == []
    assert (pieces.finish_reason, pieces.n_new_tokens) == ("stop_string", 0)


def test_an_end_of_text_id_with_a_text_of_its_own() -> None:
    """decode(prompt + new) contains that text if the token is not special."""
    tokenizer = tokenizer_of("Metaspace")
    ids = [tokenizer.raw.token_to_id(token) for token in ("a", "▁a", "b")]
    model = model_that_says(tokenizer, ids[:1], ids[1:])
    with stream(model, ids[:1], max_new_tokens=9, eos_token_id=ids[2]) as pieces:
        assert "".join(pieces) == " ab"
    assert pieces.finish_reason == "eos"


def test_text_states_do_constant_work_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer decodes the prompt once, and nothing for new tokens."""
    calls: list[int] = []
    decode = Tokenizer.decode

    def counted(self: Tokenizer, ids: Any, *args: Any, **options: Any) -> Any:
        calls.append(len(ids))
        return decode(self, ids, *args, **options)

    monkeypatch.setattr(Tokenizer, "decode", counted)
    tokenizer = tokenizer_of("Metaspace")
    state = TextState(tokenizer, ["never there"], prompt=[0, 1, 2])
    for i in range(20000):
        state.push(i % 20)
    state.finish()
    assert calls == [3]


def small_tokenizer(normalizer: Any = None) -> Tokenizer:
    raw = RawTokenizer(models.WordLevel({"▁hello": 0, "▁cat": 1, "s": 2, "[U]": 3}, unk_token="[U]"))
    raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    return Tokenizer(raw, TokenizerOptions())


def test_the_space_between_prompt_and_continuation() -> None:
    model = model_that_says(small_tokenizer(), [0], [1, 2, 1])
    assert list(stream(model, "hello", max_new_tokens=3)) == [" cat", "s", " cat"]
    assert list(stream(model, [0], max_new_tokens=3)) == [" cat", "s", " cat"]


def test_a_text_that_encodes_to_nothing() -> None:
    model = ToyModel(small_tokenizer(normalizers.Replace("x", "")))
    model.bos_token_id = 1
    with pytest.raises(
        InputError, match=r"^text_or_ids: expected a text of at least one token, got 'xx', which encodes to no"
    ):
        stream(model, "xx")
    assert stream(model, "").token_ids.tolist() == [1]
    assert encode_prompt(small_tokenizer(), "hello", "text").tolist() == [0]


def test_special_tokens_of_the_prompt_are_not_text() -> None:
    raw = RawTokenizer(models.WordLevel({"▁hello": 0, "▁cat": 1, "[U]": 2}, unk_token="[U]"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    raw.add_special_tokens(["<s>", "</s>"])
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    model = model_that_says(Tokenizer(raw, TokenizerOptions()), [3, 0], [1, 4, 1, 3])
    assert list(stream(model, "hello", max_new_tokens=4)) == [" cat", " cat"]


# -- async ------------------------------------------------------------------------------------------------------------


def test_async_for() -> None:
    model = model_that_says(small_tokenizer(), [0], [1, 2, 1])
    main = threading.get_ident()
    threads: list[int] = []
    logits = model.executor.logits_of

    def noted(ids: list[int]) -> np.ndarray:
        threads.append(threading.get_ident())
        return logits(ids)

    model.executor.logits_of = noted

    async def collect() -> list[str]:
        async with stream(model, "hello", max_new_tokens=3) as pieces:
            return [piece async for piece in pieces]

    assert asyncio.run(collect()) == [" cat", "s", " cat"]
    assert len(threads) == 3
    assert main not in threads
    assert model.executor.open_caches == 0


def test_leaving_an_async_loop_frees_the_memory() -> None:
    model = model_that_says(small_tokenizer(), [0], [1])

    async def first() -> str:
        async with stream(model, "hello", max_new_tokens=9) as pieces:
            async for piece in pieces:
                return piece
        raise AssertionError

    assert asyncio.run(first()) == " cat"
    assert model.executor.open_caches == 0

    async def closed() -> list[str]:
        pieces = stream(model, "hello", max_new_tokens=9)
        await anext(pieces)
        await pieces.aclose()
        return [piece async for piece in pieces]

    assert asyncio.run(closed()) == []
    assert model.executor.open_caches == 0


def test_cancelling_a_task_closes_its_stream() -> None:
    model = model_that_says(small_tokenizer(), [0], [1])
    inside, go_on = threading.Event(), threading.Event()
    logits = model.executor.logits_of

    def waiting(ids: list[int]) -> np.ndarray:
        inside.set()
        assert go_on.wait(HANG_SECONDS)
        return logits(ids)

    model.executor.logits_of = waiting

    async def run() -> TextStream:
        pieces = stream(model, "hello", max_new_tokens=9)

        async def consume() -> None:
            async for _ in pieces:
                pass

        task = asyncio.create_task(consume())
        await asyncio.to_thread(inside.wait, HANG_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        return pieces

    pieces = asyncio.run(run())
    deadline = time.monotonic() + HANG_SECONDS
    while model.executor.open_caches and time.monotonic() < deadline:  # the step in progress ends in its thread
        time.sleep(0.001)
    assert model.executor.open_caches == 0
    assert pieces.n_new_tokens == 1  # of that step
    assert list(pieces) == []


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_that_was_never_made_is_dropped_quietly() -> None:
    with pytest.raises(TypeError):
        TextStream()  # type: ignore[call-arg]
    TextStream.__new__(TextStream)
    gc.collect()
