"""Converts requests to the arrays of a step, and draws tokens for executors that only return logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn import _core
from fastattn.errors import InputError, NonFiniteError
from fastattn.generation import numpy_sampler
from fastattn.generation.filters import filtered
from fastattn.generation.options import GenerationOptions, NanPolicy
from fastattn.generation.processors import Drawn as DrawnTokens
from fastattn.generation.processors import Processor
from fastattn.generation.request import Request, TokenRecord
from fastattn.graph.executor import Drawn, Executor
from fastattn.graph.ir import Step
from fastattn.graph.sampling import SAMPLE_PARAMS, Sampling

NON_FINITE = '; `fastattn check` looks for such weights, and nan="finite" draws from the other tokens'

Logits: TypeAlias = NDArray[np.floating[Any]]  # [n_wanted, vocab]
Result: TypeAlias = tuple[int, float | None] | Logits | Exception  # a token and its log-probability; see `draw_each`
DrawRow: TypeAlias = Callable[[int, Request], Result]


class Drawing(DrawnTokens, Protocol):
    """Tokens with the processors of the next logits."""

    @property
    def processors(self) -> tuple[Processor, ...]: ...


def step_of(chunks: Sequence[tuple[Any, int]]) -> Step:
    """Return a step that feeds each request, or anything with ids, fed, proposed and cache, its next `count` ids.

    If no ids of a request remain, its proposed tokens follow. The rows of these tokens and of the last id are wanted.
    """
    fed = [[*r.ids[r.base + r.fed : r.base + r.fed + n], *r.proposed] for r, n in chunks]
    ends = np.cumsum([0, *map(len, fed)])
    whole = [(int(end), r) for end, (r, n) in zip(ends[1:], chunks, strict=True) if n == r.left]
    return Step(
        token_ids=np.array([i for ids in fed for i in ids], np.int32),
        cu_seqlens=ends.astype(np.int32),
        positions=np.array(
            [r.fed + i for (r, _), ids in zip(chunks, fed, strict=True) for i in range(len(ids))], np.int32
        ),
        wanted=np.array([i for end, r in whole for i in range(end - 1 - len(r.proposed), end)], np.int32),
        caches=tuple(request.cache for request, _ in chunks),
    )


def sampling_of(requests: Sequence[Request]) -> Sampling:
    """Return how to draw the next token of each request, by its own options, and those after its proposed tokens.

    Requests that must not end yet need the same `eos_ids` (see `same_suppressed`).
    """
    rows = [(request, n) for request in requests for n in range(1 + len(request.proposed))]
    params = np.zeros(len(rows), SAMPLE_PARAMS)
    histories: list[list[int]] = []
    suppressed: frozenset[int] = frozenset()
    for i, (request, n_proposed) in enumerate(rows):
        options = request.options
        params[i] = (
            options.temperature,
            options.top_p,
            options.min_p,
            options.repetition_penalty,
            options.top_k,
            not options.greedy,
            request.seed,
            len(request.ids) + n_proposed,
        )
        histories.append([*request.ids, *request.proposed[:n_proposed]] if options.repetition_penalty != 1 else [])
        if request.new_len < request.min_new_tokens:
            suppressed = request.eos_ids
    suppress = None
    if suppressed:
        suppress = np.array([max(0, r.min_new_tokens - r.new_len - n) if r.eos_ids else 0 for r, n in rows], np.int64)
    return Sampling(
        params=params,
        history=np.array([i for ids in histories for i in ids], np.int32),
        history_offsets=np.cumsum([0, *map(len, histories)], dtype=np.int64),
        suppressed=np.array(sorted(suppressed), np.int32) if suppressed else None,
        suppress=suppress,
        logprobs=any(request.wants_logprobs for request in requests),
    )


def same_suppressed(requests: Sequence[Request]) -> bool:
    """Return whether all requests that must not end yet have the same eos ids, so one array can suppress them."""
    return len({r.eos_ids for r in requests if r.eos_ids and r.new_len < r.min_new_tokens}) <= 1


def draw_each(executor: Executor, step: Step, requests: Sequence[Request]) -> DrawRow:
    """Run a step, and return a function that draws the token of a wanted row from the logits.

    The function takes the row and its request, after all tokens before that of the row were added to it. For a beam
    search it returns the logits of its rows, from this one on. Unlike in `DrawingExecutor.draw`, an error in a
    row, for example in a user's function, affects only its own request.
    """
    for request in requests:
        if request.mask is not None:
            request.mask.start(request)
    logits = cast("Logits", executor.run(step, ["logits"])["logits"])

    def draw(row: int, request: Request) -> Result:
        if request.search is not None:
            return logits[row : row + request.n_rows]
        draw_one = _draw_processed if request.needs_numpy else _draw_plain
        try:
            return draw_one(logits[row : row + 1], request)
        except NonFiniteError as error:
            index = str(request.index)
            message = str(error).replace("logits[0]", f"logits[{index}]").replace("row 0", f"row {index}")
            return NonFiniteError(f"{message}{NON_FINITE}" if message.startswith("logits[") else message)
        except Exception as error:
            return error

    return draw


def _draw_plain(logits: Logits, request: Request) -> tuple[int, float]:
    ids, logprobs = _draw_rows(logits, sampling_of([request]), nan=request.options.nan)
    return int(ids[0]), float(logprobs[0])


def _draw_processed(logits: Logits, request: Request) -> tuple[int, float]:
    """Draw from logits [1, vocab] after processors and filters, and record what the options ask for."""
    options, sampling = request.options, sampling_of([request])
    forbidden = sorted(request.eos_ids) if request.new_len < request.min_new_tokens else []
    row = logits[0].copy()
    row[forbidden] = -np.inf
    unclean = options.nan == "propagate" and bool(_unclean(row[None])[0])
    row = clean_row(row, options.nan, forbidden)
    scores = run_processors(request, row)
    drawn_from = scores
    sampling.params["repetition_penalty"] = 1  # a processor applies it
    if not options.filters_in_core:
        drawn_from = filtered(scores, options)
        for name, value in (("temperature", 1), ("top_k", 0), ("top_p", 1), ("min_p", 0)):
            sampling.params[name] = value
    ids, _ = _sample(drawn_from[None], sampling)
    of_row = log_softmax(row)
    if options.records_tokens:
        request.records.append(record_of(options, logits[0], of_row, scores))
    return int(ids[0]), np.nan if unclean else float(of_row[ids[0]])


def draw_from_logits(executor: Executor, step: Step, sampling: Sampling, *, nan: NanPolicy = "raise") -> Drawn:
    """Do what `DrawingExecutor.draw` does, with the logits that `run` returns; `nan` as in `GenerationOptions`."""
    logits = cast("Logits", executor.run(step, ["logits"])["logits"])
    ids, logprobs = _draw_rows(logits, sampling, nan=nan)
    return ids.tolist(), logprobs.tolist() if sampling.logprobs else None


def _draw_rows(logits: Logits, sampling: Sampling, *, nan: NanPolicy) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    if sampling.suppress is not None and sampling.suppressed is not None:
        logits = logits.copy()
        logits[np.ix_(sampling.suppress > 0, sampling.suppressed)] = -np.inf
    unclean = _unclean(logits) if nan == "propagate" else None
    if nan != "raise":
        suppress = np.zeros(len(logits)) if sampling.suppress is None else sampling.suppress
        logits = np.stack(
            [_cleaned(row, nan, sampling.suppressed if n > 0 else []) for row, n in zip(logits, suppress, strict=True)]
        )
    ids, logprobs = _sample(logits, sampling)
    if unclean is not None:
        logprobs[unclean] = np.nan
    return ids, logprobs


def run_processors(request: Drawing, row: Logits, *, may_be_empty: bool = False) -> Logits:
    """Return logits [vocab] after the processors of a request. Raises InputError if no id is left."""
    empty, row = may_be_empty or np.isneginf(row).all(), row.copy()
    for process in request.processors:
        row = process(request, row)
    if not empty:
        check_any_left(row, len(request.ids))
    return row


def check_any_left(row: Logits, n_tokens: int) -> None:
    """Raise InputError if processors forbid all ids."""
    if np.isneginf(row).all():
        raise InputError(
            f"generate: expected options that leave at least one id to draw, got ones that forbid all after {n_tokens} "
            "tokens; allow more with suppress_tokens, bad_words_ids, logits_processor or min_new_tokens"
        )


def record_of(options: GenerationOptions, row: Logits, logprobs: Logits, scores: Logits) -> TokenRecord:
    """Return what the options ask for. row, logprobs, scores: [vocab], of which only scores are processed."""
    top = highest_ids(logprobs, min(options.top_logprobs, len(row)))
    if options.output_scores and not options.greedy:
        scores = filtered(scores, options)
    return TokenRecord(
        top.astype(np.int32),
        logprobs[top].astype(np.float32),
        scores if options.output_scores else None,
        row.copy() if options.output_logits else None,
    )


def highest_ids(row: Logits, n: int) -> NDArray[np.intp]:
    """Return the ids of the n highest values of [vocab], the highest first, ties by id."""
    if n == 0:
        return np.zeros(0, np.intp)
    least = np.partition(row, -n)[-n]
    ids = np.flatnonzero(row >= least)
    return ids[np.argsort(-row[ids], kind="stable")][:n]


def clean_row(row: Logits, nan: NanPolicy, forbidden: Sequence[int]) -> Logits:
    """Return logits [vocab] that can be used, cleaned unless nan is "raise". Raises NonFiniteError.

    forbidden: ids not to be drawn.
    """
    row = row if nan == "raise" else _cleaned(row, nan, forbidden)
    if _unclean(row[None])[0]:
        raise NonFiniteError(f"logits: expected finite numbers, got NaN, +inf, or -inf only{NON_FINITE}")
    return row


def log_softmax(row: Logits) -> Logits:
    if row.dtype == np.float32:
        return np.asarray(_core.softmax(np.ascontiguousarray(row[None]), True)[0])
    shifted = row - row.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _sample(logits: Logits, sampling: Sampling) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    sample = numpy_sampler.sample if logits.dtype == np.float64 else _core.sample
    return sample(logits, sampling.params, sampling.history, sampling.history_offsets)


def _unclean(logits: Logits) -> NDArray[np.bool_]:
    """Return which rows the samplers reject."""
    low = np.isneginf(logits)
    return np.asarray(~(np.isfinite(logits) | low).all(axis=1) | low.all(axis=1))


def _cleaned(row: Logits, nan: NanPolicy, forbidden: Any) -> Logits:
    """Return logits [vocab] that the samplers accept, except for an all -inf row with the policy "finite".

    forbidden: ids that may not be drawn.
    """
    infinite = -np.inf if nan == "finite" else np.finfo(row.dtype).max
    clean: Logits = np.nan_to_num(row, nan=-np.inf, posinf=infinite, neginf=-np.inf)
    if nan == "propagate" and np.isneginf(clean).all():
        allowed = np.ones(len(clean), np.bool_)
        allowed[forbidden] = False
        clean[allowed.argmax()] = 0
    return clean
