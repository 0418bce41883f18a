"""Converts requests to the arrays of a step, and draws tokens for executors that only return logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from fastattn import _core
from fastattn.generation import numpy_sampler
from fastattn.generation.options import GenerationOptions, NanPolicy
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


def sampling_of(
    requests: Sequence[Request], options: GenerationOptions, *, eos_ids: frozenset[int], logprobs: bool
) -> Sampling:
    """Return how to draw the next token of each request."""
    params = np.zeros(len(requests), SAMPLE_PARAMS)
    params["temperature"] = options.temperature
    params["top_p"] = options.top_p
    params["min_p"] = options.min_p
    params["repetition_penalty"] = options.repetition_penalty
    params["top_k"] = options.top_k
    params["do_sample"] = not options.greedy
    params["seed"] = [request.seed for request in requests]
    params["counter"] = [len(request.ids) for request in requests]
    histories = [request.ids if options.repetition_penalty != 1 else [] for request in requests]
    suppressed = suppress = None
    if eos_ids and any(request.new_len < request.min_new_tokens for request in requests):
        suppressed = np.array(sorted(eos_ids), np.int32)
        suppress = np.array([request.min_new_tokens - request.new_len for request in requests], np.int64)
    return Sampling(
        params=params,
        history=np.array([i for ids in histories for i in ids], np.int32),
        history_offsets=np.cumsum([0, *map(len, histories)], dtype=np.int64),
        suppressed=suppressed,
        suppress=suppress,
        logprobs=logprobs,
    )


def draw_from_logits(executor: Executor, step: Step, sampling: Sampling, *, nan: NanPolicy = "raise") -> Drawn:
    """Do what `DrawingExecutor.draw` does, with the logits that `run` returns; `nan` as in `GenerationOptions`."""
    logits = cast("Logits", executor.run(step, ["logits"])["logits"])
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
    return ids.tolist(), logprobs.tolist() if sampling.logprobs else None


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
