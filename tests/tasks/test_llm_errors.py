"""The errors of `Llm` name its own arguments, and say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import fastattn
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.generation.options import OPTIONS
from fastattn.tasks.llm import Llm
from fastattn.tasks.llm_options import in_our_names

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[Llm]:
    pytest.importorskip("jinja2")
    with Llm(fastattn.pipeline("text-generation", threads=1).model, chat_template=TEMPLATE) as found:
        yield found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_token": 3}, "Llm: unknown keyword 'max_token'; did you mean 'max_tokens'?"),
        ({"stops": "a"}, "Llm: unknown keyword 'stops'; did you mean 'stop'?"),
        ({"regex": "a+"}, "regex: expected None, got 'a+'; use grammar='start: /.../', with the regular "),
        ({"choices": ["a"]}, "choices: expected None, got ['a']; use grammar='start: \"yes\" | \"no\"'"),
        ({"json_schema": {}}, "json_schema: expected None, got {}; use response_format={\"type\": \"json_schema\","),
        ({"max_new_tokens": 3}, "max_new_tokens: expected None, got 3; use max_tokens"),
        ({"stop_strings": "a"}, "stop_strings: expected None, got 'a'; use stop"),
        ({"num_return_sequences": 2}, "num_return_sequences: expected None, got 2; use n"),
        ({"do_sample": True}, "do_sample: expected None, got True; temperature=0 is greedy"),
        ({"num_beams": 2}, "num_beams: expected None, got 2; use llm.model.generate, which has it"),
        ({"n": 0}, "n: expected 1 to"),
        ({"n": 2, "temperature": 0}, "n: expected 1 with temperature=0, got 2; greedy search writes the same text"),
        ({"best_of": 2, "temperature": 0}, "best_of: expected 1 with temperature=0, got 2; greedy search"),
        ({"n": 3, "best_of": 2}, "best_of: expected at least n 3, got 2; raise best_of, or leave it out"),
        ({"best_of": 2, "stream": True}, "best_of: expected 1 with stream=True, got 2; call it once for each text"),
        ({"repeat_penalty": -1}, "repeat_penalty: expected a finite number"),
        ({"stop": [""]}, "stop[0]: expected 1 to 1000 characters, got 0"),
        ({"max_tokens": 300}, "prompt: expected prompt and max_tokens to fit the context of 256 positions, got 2 + "
         "300; pass max_tokens of at most 254"),
    ],
)  # fmt: skip
def test_errors_name_the_arguments_of_llm(llm: Llm, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        list(llm.create_completion("sea", **options))
    assert str(caught.value).startswith(message)
    with pytest.raises(InputError) as caught:
        list(llm.create_chat_completion(MESSAGES, **options))
    if "max_tokens" not in options:  # the prompt of a chat has another name and length
        assert str(caught.value).startswith(message)


def test_no_error_names_an_option_that_llm_does_not_have(llm: Llm) -> None:
    """Every option of `generate` is an argument, or refused with what to do instead."""
    known = {"temperature", "top_p", "min_p", "typical_p", "top_k", "presence_penalty", "frequency_penalty", "seed",
             "logit_bias", "best_of", "logits_processor", "stopping_criteria", "grammar", "top_logprobs"}  # fmt: skip
    for name in set(OPTIONS) - known:
        with pytest.raises(InputError, match=rf"^{name}: expected None, got 3; [a-z]"):
            llm.create_completion("sea", **{name: 3})
    with pytest.raises(InputError, match=r"^top_logprobs: expected None, got 3; use logprobs, the number of"):
        llm.create_completion("sea", top_logprobs=3)  # type: ignore[call-arg]


def test_a_prompt_that_is_too_long(llm: Llm) -> None:
    text = "the sea " * 200
    n_tokens = len(llm.model.tokenizer.encode(text))
    with pytest.raises(ContextLengthError) as caught:
        llm.create_completion(text)
    assert str(caught.value) == (
        f"prompt: expected prompt and max_tokens to fit the context of 256 positions, got {n_tokens} + 16; shorten the "
        "prompt, or lower max_tokens"
    )
    assert (caught.value.n_tokens, caught.value.context) == (n_tokens, 256)
    with pytest.raises(ContextLengthError, match=r"^prompt: .*; shorten the prompt, or lower max_tokens$"):
        llm.create_completion([3] * 300)
    with pytest.raises(ContextLengthError, match=r"^prompt: .*; shorten the prompt, or lower max_tokens$"):
        list(llm.create_completion(text, stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_that_is_too_long(llm: Llm, stream: bool) -> None:
    messages = [{"role": "user", "content": "the sea " * 200}, *MESSAGES]
    with pytest.raises(
        ContextLengthError,
        match=r"^messages: expected prompt and max_tokens to fit the context of 256 positions, got \d+ \+ 1; remove "
        "the oldest messages, or lower max_tokens$",
    ):
        list(llm.create_chat_completion(messages, stream=stream))


def test_what_the_caller_wrote_stays_in_messages(llm: Llm) -> None:
    with pytest.raises(DTypeError, match=r"^n: 'num_return_sequences \\' n' and n$"), in_our_names():
        raise DTypeError("num_return_sequences: 'num_return_sequences \\' n' and num_return_sequences")
    with pytest.raises(InputError, match=r"^json_schema: a$"), in_our_names():
        raise InputError("json_schema: a")
    with pytest.raises(InputError, match=r"^response_format: a$"), in_our_names(schema=True):
        raise InputError("json_schema: a")


@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_used(llm: Llm, stream: bool) -> None:
    pytest.importorskip("llguidance")
    asked = {"type": "json_schema", "json_schema": {"schema": {"type": "no such type"}}}
    with pytest.raises(InputError, match=r"^response_format: expected a JSON schema that can be used, got "):
        list(llm.create_completion("sea", response_format=asked, stream=stream))
