"""Texts that follow a regular expression, a JSON schema, a list of choices or a grammar.

llguidance, an extra, computes which ids may come next. A `Mask` forbids the others. It is the last processor of a
request, so that nothing after it allows an id again, and temperature and filters see only what is allowed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import quote
from fastattn.errors import ConfigError, InputError
from fastattn.generation.options import GenerationOptions, NanPolicy
from fastattn.generation.processors import Drawn, Row
from fastattn.generation.structured_checks import unapplied_keywords
from fastattn.generation.structured_messages import reason_of, stop_of
from fastattn.generation.token_bytes import token_bytes_of
from fastattn.tokenizer import Tokenizer

JSON_WHITE_SPACE = " "  # at most this between two parts; small models would otherwise never end it
# The masks then have all ids that can continue the text, not only those that the tokenizer would choose.
_ALL_IDS = '\n%llguidance {"no_forcing": true}\n'
_MAX_VOCABULARIES = 4
_MAX_GRAMMARS = 64
_TEMPERATURE = re.compile(r"^[ \t]*[?!]?\w+[ \t]*\[[^\]\n]*\btemperature\b", re.MULTILINE)  # an attribute of a rule
_EXPECTED = {
    "regex": "a regular expression",
    "json_schema": "a JSON schema",
    "choices": "a list of choices",
    "grammar": "a grammar",
}
_log = logging.getLogger("fastattn")


class Grammars:
    """The compiled grammars of a model, and the thread that computes masks. Any thread may use it."""

    def __init__(self) -> None:
        self._vocabularies: dict[tuple[Any, ...], _Vocabulary] = {}
        self._workers: dict[int, ThreadPoolExecutor] = {}  # by process: a fork has no threads

    def compiled(self, options: GenerationOptions, tokenizer: Tokenizer, n_ids: int, ends: frozenset[int]) -> Grammar:
        """Return the grammar of options that constrain the text. n_ids: of the model. ends: ids that end a text.

        Raises ConfigError (llguidance is not installed, or the tokenizer cannot be used), InputError.
        """
        name = str(options.constraint)
        library = _library(name)
        if not ends:
            raise InputError(
                f"eos_token_id: expected at least one id with {name}, because it ends the text, got none; pass one"
            )
        vocabulary = self._vocabulary(library, name, tokenizer, n_ids, ends)
        text = _grammar_text(library, name, getattr(options, name))
        found = vocabulary.grammars.get(text)
        if found is None:
            found = Grammar(self, vocabulary, name, _matcher(library, vocabulary, name, text, getattr(options, name)))
            _add(vocabulary.grammars, text, found, _MAX_GRAMMARS)
        return found

    def worker(self) -> ThreadPoolExecutor:
        """Return the thread that computes masks while a step runs."""
        worker = self._workers.get(os.getpid())
        if worker is None:
            worker = ThreadPoolExecutor(1, "fastattn-masks")
            self._workers = {os.getpid(): worker}
        return worker

    def _vocabulary(
        self, library: Any, name: str, tokenizer: Tokenizer, n_ids: int, ends: frozenset[int]
    ) -> _Vocabulary:
        raw, skipped = tokenizer.raw, tokenizer.skipped_ids
        key = (id(raw), skipped, n_ids, ends)  # the entry keeps `raw`, so its id is not used again
        found = self._vocabularies.get(key)
        if found is None:
            found = _read_vocabulary(library, name, tokenizer, n_ids, ends)
            _add(self._vocabularies, key, found, _MAX_VOCABULARIES)
        return found


def _add(items: dict[Any, Any], key: Any, item: Any, most: int) -> None:
    """Add an item, and remove the oldest one if there are more than `most`."""
    items[key] = item
    if len(items) > most:
        items.pop(next(iter(list(items))), None)


@dataclass(frozen=True, slots=True, eq=False)
class _Vocabulary:
    """The ids of a model for llguidance. first_differs: see TokenBytes. grammars: by their text."""

    raw: Any
    of_library: Any
    n_ids: int
    ends: list[int]
    first_differs: NDArray[np.bool_]
    grammars: dict[str, Grammar] = field(default_factory=dict)


class _Tokens:
    """What llguidance reads of a tokenizer. It never needs to tokenize a text."""

    def __init__(self, tokens: list[bytes], special: list[int], end: int) -> None:
        self.tokens, self.special_token_ids = tokens, special
        self.eos_token_id, self.bos_token_id = end, None

    def __call__(self, text: object) -> list[int]:
        return []


def _read_vocabulary(library: Any, name: str, tokenizer: Tokenizer, n_ids: int, ends: frozenset[int]) -> _Vocabulary:
    table = token_bytes_of(tokenizer, n_ids, name, ends=sorted(ends))
    tokens = _Tokens(table.inner, table.special, min(ends))
    of_library = library.LLTokenizer(library.TokenizerWrapper(tokens), n_vocab=n_ids, eos_token=sorted(ends))
    return _Vocabulary(tokenizer.raw, of_library, n_ids, sorted(ends), table.first_differs)


def _library(name: str) -> Any:
    try:
        import llguidance
    except ImportError:
        raise ConfigError(f'{name}: expected llguidance, found none; pip install "fastattn[structured]"') from None
    return llguidance


def _grammar_text(library: Any, name: str, value: Any) -> str:
    """Return a checked option as a grammar in the syntax of llguidance. Raises InputError."""
    if name == "json_schema":
        schema = json.loads(value)
        own = schema.get("x-guidance", {})
        if isinstance(own, dict) and not {"whitespace_flexible", "whitespace_pattern"} & set(own):
            schema["x-guidance"] = {**own, "whitespace_pattern": JSON_WHITE_SPACE}
        text = f"start: %json {json.dumps(schema)}"
    elif name == "choices":
        text = "start: " + " | ".join(map(json.dumps, value))
    else:
        try:
            if name == "regex":
                text = f"start: /{library.regex_to_lark(value, '')}/"
            else:
                from llguidance.gbnf_to_lark import any_to_lark

                text = any_to_lark(value)
        except Exception as error:  # the library raises plain Exceptions
            raise _refusal(name, value, str(error)) from error
    return text + _ALL_IDS


def _matcher(library: Any, vocabulary: _Vocabulary, name: str, text: str, value: Any) -> Any:
    """Compile a grammar. Raises InputError with the reason of the library; logs what has no effect."""
    limits = library.LLParserLimits(verbose_errors=False)
    matcher = library.LLMatcher(vocabulary.of_library, text, log_level=0, limits=limits)
    if matcher.is_error():
        raise _refusal(name, value, matcher.get_error(), text)
    warnings = list(matcher.get_grammar_warnings())
    if name == "json_schema":
        ignored = unapplied_keywords(json.loads(value))
        warnings += [f"not applied, because JSON Schema has no such keywords: {', '.join(ignored)}"] if ignored else []
    elif name == "grammar" and _TEMPERATURE.search(value):
        warnings.append("not applied: the temperature of a rule; pass temperature for the whole text")
    for warning in warnings:
        _log.warning("%s: %s", name, " ".join(warning.split()))
    return matcher


def _refusal(name: str, value: Any, reason: str, text: str = "") -> InputError:
    """Return the error about an option. text: what its grammar was translated to, if that succeeded."""
    syntax: Literal["lark", "gbnf"] | None = None
    if name == "grammar":
        syntax = "lark" if text.startswith(value) else "gbnf"
    why = reason_of(reason, syntax=syntax)
    return InputError(f"{name}: expected {_EXPECTED[name]} that can be used, got {quote(value)}: {why}")


class Masks:
    """Creates the masks of the requests of a call. Raises what `Grammars.compiled` raises."""

    def __init__(
        self, grammars: Grammars, options: GenerationOptions, tokenizer: Tokenizer, n_ids: int, ends: frozenset[int]
    ) -> None:
        self._grammar = grammars.compiled(options, tokenizer, n_ids, ends)
        self._tokenizer, self._nan = tokenizer, options.nan

    def after(self, prompt: Sequence[int]) -> Mask:
        """Return the mask of a text after a prompt of these ids. Raises InputError."""
        at_start = not self._tokenizer.decode(list(prompt), skip_special_tokens=True)
        return self._grammar.mask(at_start=at_start, nan=self._nan)


class Grammar:
    """A compiled grammar, shared by all requests that have it."""

    def __init__(self, grammars: Grammars, vocabulary: _Vocabulary, name: str, matcher: Any) -> None:
        """Compute what may come first. Raises InputError if nothing may."""
        self.name = name
        self._grammars, self._vocabulary, self._matcher = grammars, vocabulary, matcher
        self.first = self.allowed(matcher, 0)
        at_start = self.first & ~vocabulary.first_differs
        at_start[vocabulary.ends] = self.first[vocabulary.ends]
        self.first_at_start = at_start

    def mask(self, *, at_start: bool, nan: NanPolicy) -> Mask:
        """Return the mask of a new request. at_start: whether the text of its prompt is empty. Raises InputError."""
        first = self.first_at_start if at_start else self.first
        if not first.any():
            raise InputError(
                f"{self.name}: expected {_EXPECTED[self.name]} for a text that begins without a space, because the "
                "prompt is empty and the tokenizer removes a first space, got another one; write it without that "
                "space, or pass a prompt"
            )
        return Mask(self, first, nan=nan)

    def new_matcher(self) -> Any:
        """Return a matcher before the first id."""
        return self._matcher.deep_copy()

    def worker(self) -> ThreadPoolExecutor:
        """Return the thread that computes masks while a step runs."""
        return self._grammars.worker()

    def allowed(self, matcher: Any, n_new: int) -> NDArray[np.bool_]:
        """Return which ids may follow `n_new` ids, bool [n_ids]. Raises InputError if the text cannot go on."""
        vocabulary = self._vocabulary
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        found = np.unpackbits(bits, bitorder="little", count=vocabulary.n_ids).view(np.bool_)
        found[vocabulary.ends] = matcher.is_accepting()
        if matcher.is_error() or not found.any():
            raise InputError(
                f"{self.name}: expected {_EXPECTED[self.name]} that tokens of the tokenizer can continue after {n_new} "
                f"new tokens, found none: {stop_of(reason_of(matcher.get_error()) or matcher.stop_reason())}"
            )
        return found


class _State:
    """The state of a mask in one process. lock: of the rest. new: the ids that `allowed` follows; None: unknown."""

    def __init__(self, allowed: NDArray[np.bool_]) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.matcher: Any = None
        self.new: list[int] | None = []
        self.allowed = allowed


class Mask:
    """Forbids the ids that cannot continue the text of a request.

    It depends only on the new ids. If they do not continue those of the last call, for example because an interrupted
    step is repeated, it starts again from the first one.
    """

    def __init__(self, grammar: Grammar, first: NDArray[np.bool_], *, nan: NanPolicy) -> None:
        self._grammar, self._first, self._nan = grammar, first, nan
        self._state = _State(first)

    def __call__(self, drawn: Drawn, row: Row) -> Row:
        """Return scores [n_ids] with -inf for ids that are forbidden. Raises InputError if the text cannot go on."""
        allowed = self._allowed(drawn.ids[drawn.prompt_len :])
        only: Row = np.where(allowed, row, row.dtype.type(-np.inf))
        if self._nan == "propagate" and np.isneginf(only).all():  # as without a mask: the lowest id
            only[allowed.argmax()] = 0
        return only

    def start(self, drawn: Drawn) -> None:
        """Compute the next mask in another thread. The call that needs it computes it itself if that did not begin."""
        with contextlib.suppress(RuntimeError):  # the interpreter ends
            self._grammar.worker().submit(self._allowed, drawn.ids[drawn.prompt_len :])

    def _allowed(self, new: list[int]) -> NDArray[np.bool_]:
        state = self._state
        if state.pid != os.getpid():  # a thread of the parent may have had the lock
            state = self._state = _State(self._first)
        with state.lock:
            if state.new != new:
                self._advance(state, new)
            return state.allowed

    def _advance(self, state: _State, new: list[int]) -> None:
        known, state.new = state.new, None  # until the end, so that an interruption leaves nothing wrong
        n_known = 0 if known is None else len(known)
        if state.matcher is None or known is None or known != new[:n_known]:
            state.matcher, n_known = self._grammar.new_matcher(), 0
        if not new:
            state.allowed = self._first
        else:
            if not state.matcher.consume_tokens(new[n_known:]):
                reason = stop_of(reason_of(state.matcher.get_error()))
                raise InputError(f"{self._grammar.name}: expected new tokens that it allows, got others: {reason}")
            state.allowed = self._grammar.allowed(state.matcher, len(new))
        state.new = new
