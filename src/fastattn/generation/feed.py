"""Converts requests to the arrays of a step, and draws tokens for executors that only return logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn import _core
from fastattn.errors import NonFiniteError
from fastattn.generation import numpy_sampler
from fastattn.generation.options import NanPolicy
from fastattn.generation.request import Request
from fastattn.graph.executor import Drawn, Executor
from fastattn.graph.ir import Step
from fastattn.graph.sampling import SAMPLE_PARAMS, Sampling

Logits: TypeAlias = NDArray[np.floating[Any]]  # [n_wanted, vocab]


def step_of(chunks: Sequence[tuple[Request, int]]) -> Step:
    """Return a step that feeds each request its next `count` ids.

    The last row of a request is wanted if no ids of it remain.
    """
    counts = [count for _, count in chunks]
    whole = [count == request.left for request, count in chunks]
    ends = np.cumsum([0, *counts]).astype(np.int32)
    return Step(
        token_ids=np.array([i for r, n in chunks for i in r.ids[r.base + r.fed : r.base + r.fed + n]], np.int32),
        cu_seqlens=ends,
        positions=np.array([i for r, n in chunks for i in range(r.fed, r.fed + n)], np.int32),
        wanted=(ends[1:] - 1)[whole].astype(np.int32),
        caches=tuple(request.cache for request, _ in chunks),
    )


def sampling_of(requests: Sequence[Request]) -> Sampling:
    """Return how to draw the next token of each request, by its own options.

    Requests that must not end yet have the same `eos_ids` (see `same_suppressed`).
    """
    params = np.zeros(len(requests), SAMPLE_PARAMS)
    histories: list[list[int]] = []
    suppressed: frozenset[int] = frozenset()
    for i, request in enumerate(requests):
        options = request.options
        params[i] = (
            options.temperature,
            options.top_p,
            options.min_p,
            options.repetition_penalty,
            options.top_k,
            not options.greedy,
            request.seed,
            len(request.ids),
        )
        histories.append(request.ids if options.repetition_penalty != 1 else [])
        if request.new_len < request.min_new_tokens:
            suppressed = request.eos_ids
    suppress = None
    if suppressed:
        suppress = np.array([max(0, r.min_new_tokens - r.new_len) if r.eos_ids else 0 for r in requests], np.int64)
    return Sampling(
        params=params,
        history=np.array([i for ids in histories for i in ids], np.int32),
        history_offsets=np.cumsum([0, *map(len, histories)], dtype=np.int64),
        suppressed=np.array(sorted(suppressed), np.int32) if suppressed else None,
        suppress=suppress,
        logprobs=any(request.wants_logprobs for request in requests),
    )


def same_suppressed(requests: Sequence[Request]) -> bool:
    """Return whether one array has the ids that the requests must not draw yet."""
    return len({r.eos_ids for r in requests if r.eos_ids and r.new_len < r.min_new_tokens}) <= 1


def draw_each(executor: Executor, step: Step, requests: Sequence[Request]) -> list[tuple[int, float] | NonFiniteError]:
    """Run a step and draw the next token of each request from the logits: its id and log-probability, or an error.

    Unlike `DrawingExecutor.draw`, a row without a finite number affects only its own request.
    """
    logits = cast("Logits", executor.run(step, ["logits"])["logits"])
    results: list[tuple[int, float] | NonFiniteError] = []
    for i, request in enumerate(requests):
        sampling = sampling_of([request])
        try:
            ids, logprobs = _draw_rows(logits[i : i + 1], sampling, nan=request.options.nan)
        except NonFiniteError as error:
            row = str(request.index)
            results.append(
                NonFiniteError(str(error).replace("logits[0]", f"logits[{row}]").replace("row 0", f"row {row}"))
            )
        else:
            results.append((int(ids[0]), float(logprobs[0])))
    return results


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
        logits = _cleaned(logits, nan, sampling)
    sample = numpy_sampler.sample if logits.dtype == np.float64 else _core.sample
    ids, logprobs = sample(logits, sampling.params, sampling.history, sampling.history_offsets)
    if unclean is not None:
        logprobs[unclean] = np.nan
    return ids, logprobs


def _unclean(logits: Logits) -> NDArray[np.bool_]:
    """Return which rows the samplers reject."""
    low = np.isneginf(logits)
    return np.asarray(~(np.isfinite(logits) | low).all(axis=1) | low.all(axis=1))


def _cleaned(logits: Logits, nan: NanPolicy, sampling: Sampling) -> Logits:
    """Return rows that the samplers accept, except for all -inf rows with the policy "finite"."""
    infinite = -np.inf if nan == "finite" else np.finfo(logits.dtype).max
    rows: Logits = np.nan_to_num(logits, nan=-np.inf, posinf=infinite, neginf=-np.inf)
    if nan == "propagate":
        for i in np.flatnonzero(np.isneginf(rows).all(axis=1)):
            allowed = np.ones(rows.shape[1], np.bool_)
            if sampling.suppress is not None and sampling.suppress[i] > 0:
                allowed[sampling.suppressed] = False
            rows[i, allowed.argmax()] = 0
    return rows
