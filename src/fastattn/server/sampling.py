"""From the fields of OpenAI's API to the options of generation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastattn.checks import Neutral, check_str
from fastattn.errors import DTypeError, InputError
from fastattn.generation.options import GREEDY_BELOW, GenerationOptions
from fastattn.server.fields import Fields
from fastattn.tasks.response_format import read_constraint

MAX_TOP = 20  # likeliest tokens that are listed with each token
_MAX_STOPS = 64
_MAX_STOP_CHARS = 1000
_MAX_SEED = 2**64


def _table(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise DTypeError(f"{name}: expected an object, got {type(value).__name__}")


# Fields of OpenAI's API that change nothing here, or only with these values.
NEUTRAL: Mapping[str, Neutral] = {
    "user": Neutral(check=check_str),
    "metadata": Neutral(check=_table),
    "store": Neutral((False,), "no response is stored"),
    "service_tier": Neutral(("auto", "default")),
    "safety_identifier": Neutral(check=check_str),
    "prompt_cache_key": Neutral(check=check_str),
}


def read_sampling(fields: Fields, *, n_high: int, max_tokens: int, n_top: int | None) -> GenerationOptions:
    """Read the options that completions and chats share. n_top: None lists no log-probabilities. Raises Problem.

    The defaults are those of OpenAI's API: temperature 1, and no other filter.
    """
    temperature = fields.number("temperature", 1.0, 0.0, 2.0)
    n = fields.count("n", 1, 1, n_high)
    best_of = fields.count("best_of", None, 1, n_high)
    greedy = temperature < GREEDY_BELOW
    if n > 1 and greedy:
        raise fields.refuse("n", f"expected 1 with temperature 0, which gives the same text each time, got {n}")
    if best_of is not None and best_of < n:
        raise fields.refuse("best_of", f"expected at least n {n}, got {best_of}")
    if best_of is not None and best_of > 1 and greedy:
        raise fields.refuse("best_of", f"expected 1 with temperature 0, got {best_of}")
    seed = fields.count("seed", None, -(2**63), _MAX_SEED - 1)
    given: dict[str, Any] = {
        "temperature": temperature,
        "do_sample": not greedy,
        "num_return_sequences": n,
        "best_of": best_of if best_of != 1 else None,
        "seed": None if seed is None else seed % _MAX_SEED,
        "top_p": fields.number("top_p", 1.0, 0.0, 1.0),
        "top_k": fields.count("top_k", 0),
        "min_p": fields.number("min_p", 0.0, 0.0, 1.0),
        "presence_penalty": fields.number("presence_penalty", 0.0, -2.0, 2.0),
        "frequency_penalty": fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        "repetition_penalty": fields.number("repetition_penalty", 1.0, 1e-6, 1e6),
        "stop_strings": _read_stops(fields),
        "logit_bias": _read_bias(fields),
        "max_new_tokens": max_tokens,
        "min_new_tokens": fields.count("min_tokens", 0, 0, max_tokens),
        "top_logprobs": n_top or 0,
        **_read_form(fields),
    }
    return GenerationOptions(**given)


def _read_stops(fields: Fields) -> list[str] | None:
    stops = fields.texts("stop", _MAX_STOPS)
    for stop in stops or ():
        if not 1 <= len(stop) <= _MAX_STOP_CHARS:
            raise fields.refuse("stop", f"expected texts of 1 to {_MAX_STOP_CHARS} characters, got {len(stop)}")
    return stops or None


def _read_bias(fields: Fields) -> Mapping[str, Any] | None:
    value = fields.raw("logit_bias")
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise fields.refuse("logit_bias", "expected an object of token ids and numbers")
    for key, bias in value.items():
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise fields.refuse("logit_bias", f"expected numbers from -100 to 100, got another value for {key!r:.40}")
    return value


def _read_form(fields: Fields) -> dict[str, Any]:
    """Read what the text must look like: response_format, or one of our own options."""
    found: dict[str, Any] = {}
    try:
        found |= read_constraint(fields.raw("response_format"), fields.text("grammar"))
    except (InputError, DTypeError) as error:
        name = "grammar" if str(error).startswith("grammar") else "response_format"
        raise fields.refuse(name, str(error).removeprefix(f"{name}: ")) from None
    regex, choices = fields.text("regex"), fields.raw("choices")
    if regex is not None:
        found["regex"] = regex
    if choices is not None:
        found["choices"] = choices
    if len(found) > 1:
        raise fields.refuse(
            "regex" if regex is not None else "choices", "expected one of response_format, grammar, regex and choices"
        )
    return found


def read_stream(fields: Fields) -> tuple[bool, bool]:
    """Return whether the answer is a stream, and whether it ends with the numbers of tokens. Raises Problem."""
    streams, options = fields.flag("stream", False), fields.table("stream_options")
    if options is None:
        return streams, False
    if not streams:
        raise fields.refuse("stream_options", "expected none without stream, got an object")
    usage = options.flag("include_usage", False)
    options.finish({"include_obfuscation": Neutral((False,), "nothing is obfuscated")})
    return streams, usage
