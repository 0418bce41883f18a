"""Converts requests to the arrays of a step, and draws tokens for executors that only return logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn import _core
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
    whole = [request.fed + count == len(request.ids) for request, count in chunks]
    ends = np.cumsum([0, *counts]).astype(np.int32)
    return Step(
        token_ids=np.array([i for r, n in chunks for i in r.ids[r.fed : r.fed + n]], np.int32),
        cu_seqlens=ends,
        positions=np.array([i for r, n in chunks for i in range(r.fed, r.fed + n)], np.int32),
        wanted=(ends[1:] - 1)[whole].astype(np.int32),
        caches=tuple(request.cache for request, _ in chunks),
    )


def drawn_in_core(requests: Sequence[Request]) -> bool:
    """Return whether a step can draw the next token of all these requests itself, without returning logits."""
    if not all(request.draws_in_core for request in requests):
        return False
    return len({request.eos_ids for request in requests if request.new_len < request.min_new_tokens}) <= 1


def sampling_of(requests: Sequence[Request]) -> Sampling:
    """Return how to draw the next token of each request. Ends are suppressed only if `drawn_in_core`."""
    options = [request.options for request in requests]
    params = np.zeros(len(requests), SAMPLE_PARAMS)
    params["temperature"] = [o.temperature for o in options]
    params["top_p"] = [o.top_p for o in options]
    params["min_p"] = [o.min_p for o in options]
    params["repetition_penalty"] = [o.repetition_penalty for o in options]
    params["top_k"] = [o.top_k for o in options]
    params["do_sample"] = [not o.greedy for o in options]
    params["seed"] = [request.seed for request in requests]
    params["counter"] = [len(request.ids) for request in requests]
    histories = [request.ids if request.options.repetition_penalty != 1 else [] for request in requests]
    suppressed = suppress = None
    early = [request.eos_ids for request in requests if request.new_len < request.min_new_tokens]
    if any(early) and drawn_in_core(requests):
        suppressed = np.array(sorted(early[0]), np.int32)
        suppress = np.array([request.min_new_tokens - request.new_len for request in requests], np.int64)
    return Sampling(
        params=params,
        history=np.array([i for ids in histories for i in ids], np.int32),
        history_offsets=np.cumsum([0, *map(len, histories)], dtype=np.int64),
        suppressed=suppressed,
        suppress=suppress,
        logprobs=any(request.wants_logprobs for request in requests),
    )


def draw_from_logits(executor: Executor, step: Step, requests: Sequence[Request]) -> Drawn:
    """Run a step and draw the next token of each request from its logits, as its options say.

    Raises NonFiniteError for a row of a request with nan="raise".
    """
    logits = cast("Logits", executor.run(step, ["logits"])["logits"]).copy()
    unclean = np.zeros(len(requests), np.bool_)
    for i, request in enumerate(requests):
        if request.new_len < request.min_new_tokens:
            logits[i, list(request.eos_ids)] = -np.inf
        unclean[i] = request.options.nan == "propagate" and _unclean(logits[i : i + 1])[0]
        if request.options.nan != "raise":
            forbidden = sorted(request.eos_ids) if request.new_len < request.min_new_tokens else []
            logits[i] = _cleaned(logits[i], request.options.nan, forbidden)
    sampling = sampling_of(requests)
    ids, logprobs = _sample(logits, sampling)
    logprobs[unclean] = np.nan
    return ids.tolist(), logprobs.tolist() if sampling.logprobs else None


def draw_rows(executor: Executor, step: Step, sampling: Sampling, *, nan: NanPolicy = "raise") -> Drawn:
    """Do what `DrawingExecutor.draw` does, with the logits that `run` returns; `nan` as in `GenerationOptions`."""
    logits = cast("Logits", executor.run(step, ["logits"])["logits"])
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
    return ids.tolist(), logprobs.tolist() if sampling.logprobs else None


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
