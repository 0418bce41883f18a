"""What a caller may ask of generation, checked in full before any work."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import numpy as np

from fastattn.checks import check_count, check_flag, check_number
from fastattn.errors import DTypeError, InputError

DEFAULT_NEW_TOKENS = 20
RANDOM_SEED_BITS = 53
GREEDY_BELOW = 1e-6  # a temperature under this is greedy: the scaled logits would leave float32
NanPolicy: TypeAlias = Literal["raise", "finite", "propagate"]
NAN_POLICIES = ("raise", "finite", "propagate")
_MAX_STOP_STRINGS = 1000
_MAX_STOP_CHARS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Options of `generate` and `stream`; every field is checked, InputError or DTypeError names the one that is wrong.

    max_new_tokens: None is 20, or what the context still holds if that is less; 0 gives the prompt back.
    min_new_tokens: the end-of-text ids are not drawn before this many tokens.
    do_sample: draw; without it the highest logit is taken. temperature: under 1e-6 is greedy.
    top_k: 0 is off, more than the vocabulary is off. top_p: 1 is off, 0 keeps one candidate. min_p: 0 is off.
    repetition_penalty: 1 is off; over the ids of prompt and text.
    seed: None draws one; an int s gives request i `request_seed(s, i)`; a list gives each request its own.
    stop_strings: the text ends before the first of them.
    eos_token_id: None is the checkpoint's, -1 is never, an int or several ints are those.
    truncate: "left" or "right" cuts a prompt on that side where it does not fit the context beside the new tokens; None
        refuses it.
    max_batch_size: how many sequences run at a time; results do not depend on it.
    nan: what becomes of a row of logits with NaN or +inf, or of -inf alone. "raise" raises NonFiniteError. "finite"
        draws from the finite logits and raises NonFiniteError only where there are none. "propagate" never raises: NaN
        counts as -inf, +inf as the largest number, of -inf alone the lowest id that may be drawn is taken, and the
        log-probability of the token is NaN.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None
    eos_token_id: int | Sequence[int] | None = None
    truncate: Literal["left", "right"] | None = None
    max_batch_size: int = 32
    nan: NanPolicy = "raise"

    def __post_init__(self) -> None:
        new = None if self.max_new_tokens is None else check_count("max_new_tokens", self.max_new_tokens)
        self._set("max_new_tokens", new)
        self._set("min_new_tokens", check_count("min_new_tokens", self.min_new_tokens))
        if new is not None and self.min_new_tokens > new:
            raise InputError(f"min_new_tokens: expected at most max_new_tokens {new}, got {self.min_new_tokens}")
        self._set("do_sample", check_flag("do_sample", self.do_sample))
        self._set("temperature", check_number("temperature", self.temperature, low=0.0))
        self._set("top_k", 0 if self.top_k is None else check_count("top_k", self.top_k))
        self._set("top_p", check_number("top_p", self.top_p, low=0.0, high=1.0))
        self._set("min_p", check_number("min_p", self.min_p, low=0.0, high=1.0))
        penalty = check_number("repetition_penalty", self.repetition_penalty, low=0.0)
        if not 1e-6 <= penalty <= 1e6:
            raise InputError(f"repetition_penalty: expected 1e-6 to 1e6, got {penalty}")
        self._set("repetition_penalty", penalty)
        self._set("seed", _seeds(self.seed))
        self._set("stop_strings", _stops(self.stop_strings))
        self._set("eos_token_id", _eos(self.eos_token_id))
        if self.truncate not in (None, "left", "right"):
            raise InputError(f"truncate: expected 'left', 'right' or None, got {self.truncate!r:.40}")
        self._set("max_batch_size", check_count("max_batch_size", self.max_batch_size, low=1))
        if self.nan not in NAN_POLICIES:
            raise InputError(f"nan: expected 'raise', 'finite' or 'propagate', got {self.nan!r:.40}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def cut(self, prompt: list[int], room: int) -> list[int]:
        """The prompt, or as much of it as `truncate` leaves in `room` positions."""
        if self.truncate is None or len(prompt) <= room or room < 1:
            return prompt
        return prompt[-room:] if self.truncate == "left" else prompt[:room]

    @property
    def greedy(self) -> bool:
        """True where no random number is drawn."""
        return not self.do_sample or self.temperature < GREEDY_BELOW

    def seeds(self, n_requests: int) -> list[int]:
        """One seed per request; random ones are exact in JSON readers that have only doubles, as in JavaScript."""
        seed = self.seed
        if seed is None:
            return [secrets.randbits(RANDOM_SEED_BITS) for _ in range(n_requests)]
        if isinstance(seed, int):
            return [request_seed(seed, i) for i in range(n_requests)]
        if len(seed) != n_requests:
            raise InputError(f"seed: expected {n_requests} seeds, one a request, got {len(seed)}")
        return list(seed)

    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return self.stop_strings if isinstance(self.stop_strings, tuple) else ()

    def eos_ids(self, of_checkpoint: Sequence[int]) -> frozenset[int]:
        """The ids that end a text; an empty set: none does."""
        if self.eos_token_id is None:
            return frozenset(of_checkpoint)
        if isinstance(self.eos_token_id, int):
            return frozenset() if self.eos_token_id == -1 else frozenset((self.eos_token_id,))
        return frozenset(self.eos_token_id)


def read_options(options: Mapping[str, Any]) -> GenerationOptions:
    """The options that a caller named; InputError for a name that is no option."""
    known = [field.name for field in fields(GenerationOptions)]
    for name in options:
        if name not in known:
            hint = "; max_new_tokens counts the new tokens alone" if name == "max_length" else ""
            raise InputError(f"unknown option {name}; known: {', '.join(known)}{hint}")
    return GenerationOptions(**options)


def request_seed(seed: int, index: int) -> int:
    """The seed of request `index` of a batch with one seed: `seed` itself for the first, then SplitMix64's stream.

    So request i of `generate(prompts, seed=s)` is repeated alone with `seed=request_seed(s, i)`.
    """
    if index == 0:
        return seed
    mask = 2**64 - 1
    z = (seed + index * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def _seeds(seed: Any) -> int | tuple[int, ...] | None:
    if seed is None:
        return None
    if isinstance(seed, (list, tuple, np.ndarray)) and np.ndim(seed) == 1:
        return tuple(check_count(f"seed[{i}]", s, high=2**64 - 1) for i, s in enumerate(seed))
    return check_count("seed", seed, high=2**64 - 1)


def _stops(stops: Any) -> tuple[str, ...] | None:
    if stops is None:
        return None
    texts = (stops,) if isinstance(stops, str) else stops
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Sequence):
        raise DTypeError(f"stop_strings: expected str or a list of str, got {type(stops).__name__}")
    if len(texts) > _MAX_STOP_STRINGS:
        raise InputError(f"stop_strings: expected at most {_MAX_STOP_STRINGS}, got {len(texts)}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DTypeError(f"stop_strings[{i}]: expected str, got {type(text).__name__}")
        if not 1 <= len(text) <= _MAX_STOP_CHARS:
            raise InputError(f"stop_strings[{i}]: expected 1 to {_MAX_STOP_CHARS} characters, got {len(text)}")
    return tuple(texts)


def _eos(eos: Any) -> int | tuple[int, ...] | None:
    if eos is None:
        return None
    if isinstance(eos, (list, tuple, set, frozenset, np.ndarray)):
        return tuple(check_count(f"eos_token_id[{i}]", e) for i, e in enumerate(eos))
    return check_count("eos_token_id", eos, low=-1)
