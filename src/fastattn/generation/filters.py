"""The filters of sampling in numpy, one row at a time, in transformers' order.

The order is temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff. Each filter removes
candidates by setting their scores to -inf. Probabilities are those of the candidates that are left, computed in
float64. The sampler in C++ has temperature, top_k, top_p and min_p itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.generation.options import GenerationOptions

Row = NDArray[np.floating[Any]]  # [vocab]
_TOP_N = 100  # candidates of top_h, as in transformers


def filtered(row: Row, options: GenerationOptions, *, min_keep: int = 1) -> Row:
    """Return scores [vocab] after the temperature and all filters.

    If a score overflows after the division by the temperature, only the highest one is left. min_keep: number of
    candidates that every filter except top_h leaves.
    """
    with np.errstate(over="ignore"):
        scores: Row = row / row.dtype.type(max(options.temperature, 1e-30))
    if not np.isfinite(scores.max()):
        best = int(row.argmax())
        scores = np.full_like(row, -np.inf)
        scores[best] = 0
        return scores
    if options.top_h is not None:
        _keep(scores, _top_h(scores, options.top_h))
    if options.top_k and options.top_k < len(scores):
        k = min(max(options.top_k, min_keep), len(scores))
        scores[scores < np.partition(scores, -k)[-k]] = -np.inf
    ids = np.flatnonzero(scores > -np.inf)
    ids = ids[np.argsort(-scores[ids], kind="stable")]  # the likeliest first, ties by id
    for keep in (_top_p, _min_p, _typical, _epsilon, _eta):
        ids = ids[keep(_probabilities(scores[ids]), options, min_keep)]
    _keep(scores, ids)
    return scores


def _keep(scores: Row, ids: NDArray[np.intp]) -> None:
    kept = scores[ids]
    scores[:] = -np.inf
    scores[ids] = kept


def _probabilities(scores: Row) -> NDArray[np.float64]:
    weights = np.exp(scores.astype(np.float64) - float(scores.max()))
    total: NDArray[np.float64] = weights / weights.sum()
    return total


def _entropy(probs: NDArray[np.float64]) -> float:
    return -float((probs * np.log(np.maximum(probs, 1e-300))).sum())


def _all(probs: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.ones(len(probs), np.bool_)


def _top_h(scores: Row, share: float) -> NDArray[np.intp]:
    """Return the likeliest ids up to a share of the entropy of the 100 likeliest."""
    ids = np.argsort(-scores, kind="stable")[:_TOP_N]
    ids = ids[scores[ids] > -np.inf]
    probs = _probabilities(scores[ids])
    running = np.cumsum(-probs * np.log(np.maximum(probs, 1e-300)))
    kept = running <= share * running[-1]
    kept[0] = True
    return np.asarray(ids[kept])


def _top_p(probs: NDArray[np.float64], options: GenerationOptions, min_keep: int) -> NDArray[np.bool_]:
    """Keep the shortest beginning that reaches top_p (Holtzman et al. 2019)."""
    kept = _all(probs)
    if options.top_p < 1:
        running = np.cumsum(probs)
        kept[max(min_keep, 1 + int(np.searchsorted(running, options.top_p * running[-1], side="left"))) :] = False
    return kept


def _min_p(probs: NDArray[np.float64], options: GenerationOptions, min_keep: int) -> NDArray[np.bool_]:
    return _from(options.min_p * probs[0], probs, min_keep)


def _typical(probs: NDArray[np.float64], options: GenerationOptions, min_keep: int) -> NDArray[np.bool_]:
    """Keep the candidates of most typical surprise, up to typical_p (Meister et al. 2022)."""
    if options.typical_p >= 1:
        return _all(probs)
    distance = np.abs(-np.log(np.maximum(probs, 1e-300)) - _entropy(probs))
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(probs[order]) < options.typical_p).sum()), len(probs) - 1)
    kept = np.asarray(distance <= distance[order[last]])
    kept[order[:min_keep]] = True
    return kept


def _epsilon(probs: NDArray[np.float64], options: GenerationOptions, min_keep: int) -> NDArray[np.bool_]:
    """Keep probabilities of at least epsilon (Hewitt et al. 2022)."""
    epsilon = options.epsilon_cutoff
    return _from(epsilon if epsilon < 1 else 0.0, probs, min_keep)


def _eta(probs: NDArray[np.float64], options: GenerationOptions, min_keep: int) -> NDArray[np.bool_]:
    """Keep probabilities of at least eta, which depends on the entropy (Hewitt et al. 2022)."""
    epsilon = options.eta_cutoff
    if not 0 < epsilon < 1:
        return _all(probs)
    return _from(min(epsilon, math.sqrt(epsilon) * math.exp(-_entropy(probs))), probs, min_keep)


def _from(least: float, probs: NDArray[np.float64], min_keep: int) -> NDArray[np.bool_]:
    kept = np.asarray(probs >= least)
    kept[:min_keep] = True
    return kept
