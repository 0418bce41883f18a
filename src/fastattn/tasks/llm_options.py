"""The arguments of `Llm`: llama-cpp-python's names for the options of generation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import Neutral, check_count, check_keywords, check_neutral, check_str
from fastattn.errors import DTypeError, FastattnError, InputError
from fastattn.generation.options import GREEDY_BELOW, OPTIONS, GenerationOptions
from fastattn.options import Count, Number
from fastattn.tasks.response_format import read_constraint

Processor: TypeAlias = Callable[..., Any]
COMPLETION = {"temperature": 0.8}
CHAT = {"temperature": 0.2}
_SHARED: Mapping[str, Any] = {"top_p": 0.95, "min_p": 0.05, "typical_p": 1.0, "top_k": 40, "repeat_penalty": 1.0}
# Names of llama-cpp-python -> names of GenerationOptions.
NAMES = {"stop": "stop_strings", "repeat_penalty": "repetition_penalty"}
SAME = (
    "temperature", "top_p", "min_p", "typical_p", "top_k", "presence_penalty", "frequency_penalty", "logit_bias",
    "seed", "best_of",
)  # fmt: skip
_KNOWN = (*SAME, *NAMES, "n", "logits_processor", "stopping_criteria", "response_format", "grammar")
# Each call names these arguments itself; listed here for the hints in messages.
_OF_COMPLETION = ("prompt", "max_tokens", "logprobs", "echo", "stream")
_OF_CHAT = ("messages", "max_tokens", "logprobs", "top_logprobs", "tools", "stream")
_OURS = {
    **{theirs: ours for ours, theirs in NAMES.items()},
    "max_new_tokens": "max_tokens",
    "num_return_sequences": "n",
}
_QUOTED = re.compile(r"('(?:[^'\\]|\\.)*')")
_GENERATE = "use llm.model.generate, which has it"
_TOOLS = "use tools, if the chat template knows them"
_SCHEMA = 'use response_format={"type": "json_schema", "json_schema": {"schema": ...}}'
_REFUSED: Mapping[str, Neutral] = {
    **{name: Neutral((), _GENERATE) for name in OPTIONS if name not in _KNOWN},
    # Options of `generate` that have another name here, or a counterpart.
    "stop_strings": Neutral((), "use stop"),
    "repetition_penalty": Neutral((), "use repeat_penalty"),
    "max_new_tokens": Neutral((), "use max_tokens"),
    "num_return_sequences": Neutral((), "use n"),
    "do_sample": Neutral((), "temperature=0 is greedy, other temperatures sample"),
    "regex": Neutral((), "use grammar='start: /.../', with the regular expression between the slashes"),
    "choices": Neutral((), 'use grammar=\'start: "yes" | "no"\''),
    "json_schema": Neutral((), _SCHEMA),
    "top_logprobs": Neutral((), "use logprobs, the number of likeliest tokens"),
    "truncate": Neutral((), "shorten the prompt, or use llm.model.generate, which has it"),
    # Names of other libraries.
    "suffix": Neutral((), "models here continue texts; write the whole prompt"),
    "model": Neutral(check=check_str),
    "user": Neutral(check=check_str),
    "functions": Neutral((), _TOOLS),
    "function_call": Neutral((), _TOOLS),
    "tool_choice": Neutral(("none", "auto"), "leave it out"),
    "mirostat_mode": Neutral((0,), "use temperature, top_p or typical_p"),
    "mirostat_tau": Neutral(check=lambda *_: None),
    "mirostat_eta": Neutral(check=lambda *_: None),
    "tfs_z": Neutral((1,), "use top_p or min_p"),
    "max_completion_tokens": Neutral((), "use max_tokens"),
}


@contextmanager
def in_our_names(*, schema: bool = False) -> Iterator[None]:
    """Name the arguments of `Llm` in the errors of a `with` block, instead of the options of generation.

    schema: whether a JSON schema comes from response_format.
    """
    names = {**_OURS, "json_schema": "response_format"} if schema else _OURS
    pattern = re.compile(rf"\b({'|'.join(names)})\b")
    try:
        yield
    except FastattnError as error:
        parts = _QUOTED.split(str(error))  # what the caller passed, between quotes, stays
        parts[::2] = [pattern.sub(lambda found: names[found[0]], part) for part in parts[::2]]
        error.args = ("".join(parts), *error.args[1:])
        raise


def read_sampling(
    options: Mapping[str, Any], *, chat: bool, max_tokens: Any, room: int, n_top: int | None
) -> GenerationOptions:
    """Return the options of a call. room: the maximum number of new tokens. Raises DTypeError, InputError."""
    others = {name: value for name, value in options.items() if name not in _KNOWN}
    names = (*_KNOWN, *(_OF_CHAT if chat else _OF_COMPLETION))
    check_keywords(others, (*names, *_REFUSED), "Llm")
    check_neutral(others, _REFUSED, "Llm", names)
    given = {**_SHARED, **(CHAT if chat else COMPLETION)}
    given |= {name: value for name, value in options.items() if value is not None and name in _KNOWN}
    count = 0 if max_tokens is None else check_count("max_tokens", max_tokens, low=-1)
    read = {NAMES.get(name, name): value for name, value in given.items() if name in (*SAME, *NAMES)}
    read |= read_constraint(given.get("response_format"), given.get("grammar"))
    for name in ("logits_processor", "stopping_criteria"):
        if given.get(name) is not None:
            functions = given[name] if isinstance(given[name], (list, tuple)) else [given[name]]
            read[name] = [_of_row(function, name) for function in functions]
    greedy = Number(0.0)("temperature", read["temperature"]) < GREEDY_BELOW
    n_texts = Count(low=1)("n", given.get("n", 1))
    _check_texts(n_texts, given.get("best_of"), greedy=greedy)
    with in_our_names(schema=given.get("response_format") is not None):
        return GenerationOptions(
            **read,
            do_sample=not greedy,
            max_new_tokens=count if count > 0 else max(room, 1),
            num_return_sequences=n_texts,
            top_logprobs=n_top or 0,
        )


def _check_texts(n: int, best_of: Any, *, greedy: bool) -> None:
    """Check the numbers of texts. Raises DTypeError, InputError."""
    most = n if best_of is None else Count(low=1)("best_of", best_of)
    if most < n:
        raise InputError(f"best_of: expected at least n {n}, got {most}; raise best_of, or leave it out")
    if greedy and most > 1:
        name, what = ("n", n) if n > 1 else ("best_of", most)
        raise InputError(
            f"{name}: expected 1 with temperature=0, got {what}; greedy search writes the same text each "
            "time; raise the temperature"
        )


def _of_row(function: Any, name: str) -> Processor:
    """Wrap a function of llama-cpp-python, which has no batch axis, as one with transformers' shapes."""
    if not callable(function):
        raise DTypeError(f"{name}: expected functions, got {type(function).__name__}")

    def call(input_ids: NDArray[np.int64], scores: Any) -> Any:
        if scores is None:
            return function(input_ids[0], None)
        return np.asarray(function(input_ids[0], scores[0]))[None]

    return call
