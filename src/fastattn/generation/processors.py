"""Logits processors in numpy, one request at a time, in transformers' order.

Each takes a request and its logits [vocab], which it may change, and returns the logits. So a request's tokens do not
depend on its neighbors. Temperature and filters follow (`fastattn.generation.filters`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import quote
from fastattn.errors import DTypeError, InputError, NonFiniteError
from fastattn.generation.option_checks import check_allowed
from fastattn.generation.options import GenerationOptions

Row: TypeAlias = NDArray[np.floating[Any]]  # [vocab]


class Drawn(Protocol):
    """The tokens so far, and the limits of the request. ids: the prompt and the new tokens."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def prompt_len(self) -> int: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def eos_ids(self) -> frozenset[int]: ...


Processor: TypeAlias = Callable[[Drawn, Row], Row]


def processors_of(options: GenerationOptions, vocab: int, *, index: int = 0) -> tuple[Processor, ...]:
    """Return the processors that these options need; none if the sampler in C++ needs no help.

    vocab: number of ids of the model. index: of the prompt, for prefix_allowed_tokens_fn. Raises InputError for an id
    that the model does not have.
    """
    check_vocabulary(options, vocab)
    found: list[Processor] = []
    biases = _biases(options)
    if biases:
        found.append(_bias(biases))
    if options.presence_penalty or options.frequency_penalty:
        found.append(_count_penalties(options.presence_penalty, options.frequency_penalty))
    if options.no_repeat_ngram_size:
        found.append(_no_repeat(options.no_repeat_ngram_size))
    if options.bad_words_ids:
        found.append(_bad_words(options.bad_words_ids))
    if options.prefix_allowed_tokens_fn is not None:
        found.append(_allowed(options.prefix_allowed_tokens_fn, index))
    if options.forced_bos_token_id is not None:
        found.append(_forced_bos(options.forced_bos_token_id))
    if isinstance(options.forced_eos_token_id, tuple):
        found.append(_forced_eos(options.forced_eos_token_id))
    if options.exponential_decay_length_penalty is not None:
        found.append(_decay(*options.exponential_decay_length_penalty))
    if options.suppress_tokens:
        found.append(_suppress(options.suppress_tokens))
    if options.begin_suppress_tokens:
        found.append(_begin_suppress(options.begin_suppress_tokens, options.forced_bos_token_id is not None))
    if isinstance(options.logits_processor, tuple):
        found += [_of_user(function, i) for i, function in enumerate(options.logits_processor)]
    others = options.records_tokens or options.num_beams > 1 or options.constraint is not None
    in_core = not (found or others) and options.filters_in_core
    if not in_core and options.repetition_penalty != 1:  # otherwise the sampler applies it
        found.insert(1 if biases else 0, repetition(options.repetition_penalty))
    return tuple(found)


def repetition(penalty: float) -> Processor:
    """Return the repetition penalty over the prompt and the new tokens (Keskar et al. 2019)."""

    def process(drawn: Drawn, row: Row) -> Row:
        seen, factor = np.unique(drawn.ids), row.dtype.type(penalty)
        with np.errstate(over="ignore"):
            row[seen] = np.where(row[seen] < 0, row[seen] * factor, row[seen] / factor)
        return row

    return process


def check_vocabulary(options: GenerationOptions, vocab: int) -> None:
    """Raise InputError for an id in the options that the model does not have. vocab: number of ids of the model."""
    ids: dict[str, Sequence[int]] = {
        "sequence_bias": [i for word, _ in options.sequence_bias or () for i in word],
        "logit_bias": [i for i, _ in options.logit_bias or ()],
        "bad_words_ids": [i for word in options.bad_words_ids or () for i in word],
        "suppress_tokens": options.suppress_tokens or (),
        "begin_suppress_tokens": options.begin_suppress_tokens or (),
        "forced_bos_token_id": () if options.forced_bos_token_id is None else (options.forced_bos_token_id,),
        "forced_eos_token_id": options.forced_eos_token_id if isinstance(options.forced_eos_token_id, tuple) else (),
    }
    for name, found in ids.items():
        wrong = max(found, default=0)
        if wrong >= vocab:
            raise InputError(
                f"{name}: expected token ids from 0 to {vocab - 1}, got {wrong}; use ids of this model's tokenizer"
            )


def _biases(options: GenerationOptions) -> dict[tuple[int, ...], float]:
    biases: dict[tuple[int, ...], float] = dict(options.sequence_bias or ())
    for token_id, bias in options.logit_bias or ():
        biases[(token_id,)] = biases.get((token_id,), 0.0) + bias
    return biases


def _bias(biases: Mapping[tuple[int, ...], float]) -> Processor:
    single = {word[0]: bias for word, bias in biases.items() if len(word) == 1}
    longer = [(list(word[:-1]), word[-1], bias) for word, bias in biases.items() if len(word) > 1]

    def process(drawn: Drawn, row: Row) -> Row:
        sums = {token_id: row.dtype.type(bias) for token_id, bias in single.items()}
        for before, last, bias in longer:
            if drawn.ids[-len(before) :] == before:
                sums[last] = sums.get(last, row.dtype.type(0)) + row.dtype.type(bias)
        for token_id, total in sums.items():
            row[token_id] += total
        return row

    return process


def _count_penalties(presence: float, frequency: float) -> Processor:
    def process(drawn: Drawn, row: Row) -> Row:
        seen, counts = np.unique(np.array(drawn.ids[drawn.prompt_len :], np.int64), return_counts=True)
        row[seen] -= (frequency * counts + presence).astype(row.dtype)
        return row

    return process


def _no_repeat(size: int) -> Processor:
    def process(drawn: Drawn, row: Row) -> Row:
        ids = np.array(drawn.ids, np.int64)
        if len(ids) >= size:
            windows = np.lib.stride_tricks.sliding_window_view(ids, size)
            same = (windows[:, :-1] == ids[len(ids) + 1 - size :]).all(axis=1)
            row[windows[same, -1]] = -np.inf
        return row

    return process


def _bad_words(words: Sequence[Sequence[int]]) -> Processor:
    def process(drawn: Drawn, row: Row) -> Row:
        for word in words:
            before = list(word[:-1])
            if not before and word[0] in drawn.eos_ids:  # as in transformers, which would otherwise never end
                continue
            if not before or drawn.ids[-len(before) :] == before:
                row[word[-1]] = -np.inf
        return row

    return process


def _allowed(function: Callable[..., Any], index: int) -> Processor:
    def process(drawn: Drawn, row: Row) -> Row:
        found = function(index, np.array(drawn.ids, np.int64))
        ids = check_allowed("prefix_allowed_tokens_fn", found, len(row))
        only = np.full_like(row, -np.inf)
        only[ids] = row[ids]
        if np.isneginf(only).all():  # as in transformers: other processors forbid all of them
            only[ids] = 0
        return only

    return process


def _only(row: Row, ids: Sequence[int]) -> Row:
    row[:] = -np.inf
    row[list(ids)] = 0
    return row


def _forced_bos(token_id: int) -> Processor:
    return lambda drawn, row: _only(row, [token_id]) if len(drawn.ids) == 1 else row


def _forced_eos(token_ids: Sequence[int]) -> Processor:
    def process(drawn: Drawn, row: Row) -> Row:
        is_last = len(drawn.ids) - drawn.prompt_len == drawn.max_new_tokens - 1
        return _only(row, token_ids) if is_last else row

    return process


def _decay(start: int, factor: float) -> Processor:
    def process(drawn: Drawn, row: Row) -> Row:
        past = len(drawn.ids) - drawn.prompt_len - start
        eos = [i for i in sorted(drawn.eos_ids) if np.isfinite(row[i])]
        if past > 0 and eos:
            highest = np.finfo(row.dtype).max  # instead of +inf, which no sampler accepts
            try:
                scale = min(factor**past - 1, float(highest))
            except OverflowError:
                scale = float(highest)
            with np.errstate(over="ignore"):
                row[eos] = np.minimum(row[eos] + np.abs(row[eos]) * row.dtype.type(scale), highest)
        return row

    return process


def _suppress(token_ids: Sequence[int]) -> Processor:
    ids = list(token_ids)

    def process(drawn: Drawn, row: Row) -> Row:
        row[ids] = -np.inf
        return row

    return process


def _begin_suppress(token_ids: Sequence[int], forced_bos: bool) -> Processor:
    ids = list(token_ids)

    def process(drawn: Drawn, row: Row) -> Row:
        first = drawn.prompt_len + (1 if forced_bos and drawn.prompt_len == 1 else 0)
        if len(drawn.ids) == first:
            row[ids] = -np.inf
        return row

    return process


def _of_user(function: Callable[..., Any], index: int) -> Processor:
    name = f"logits_processor[{index}]"

    def process(drawn: Drawn, row: Row) -> Row:
        found = function(np.array([drawn.ids], np.int64), row[None].copy())
        if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
            raise DTypeError(f"{name}: expected it to return an array of floats, got {quote(found)}; return the scores")
        if found.shape != (1, len(row)):
            raise InputError(
                f"{name}: expected it to return an array of shape {(1, len(row))}, got {found.shape}; return "
                "scores of the shape that it gets"
            )
        with np.errstate(over="ignore"):
            scores = np.asarray(found[0], row.dtype)
        wrong = scores[np.isnan(scores) | np.isposinf(scores)]
        if wrong.size:  # the filters and beams would choose such an id
            raise NonFiniteError(
                f"{name}: expected it to return finite numbers or -inf, got {wrong[0]}; -inf forbids a token"
            )
        return scores

    return process


def stops_at(functions: Sequence[Callable[..., Any]], ids: Sequence[int]) -> bool:
    """Return whether a stopping criterion of the user ends a sequence. Raises DTypeError for another result."""
    for i, function in enumerate(functions):
        found = function(np.array([ids], np.int64), None)
        if isinstance(found, np.ndarray) and found.size == 1:
            found = found.reshape(-1)[0]
        if not isinstance(found, (bool, np.bool_)):
            raise DTypeError(
                f"stopping_criteria[{i}]: expected it to return True or False, got {quote(found)}; True ends the text"
            )
        if found:
            return True
    return False
