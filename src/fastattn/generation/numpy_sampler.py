"""The sampler's specification in numpy: what the CPU executor, whose sums in 5 to 7 are exact, computes per row.

Used with the float64 numpy executor and as the oracle of the C++ sampler. For each row, in this order:

1. repetition penalty: the logit of every id in the row's history is divided by the penalty if positive, else multiplied
   (Keskar et al. 2019, "CTRL");
2. greedy (do_sample 0 or temperature 0): the highest logit, the first index on ties;
3. division by the temperature (greedy if the highest logit then overflows the dtype); candidates in descending order of
   logit, ties by lower index;
4. top-k: the first k candidates and those tied with the last of them (0: all);
5. weights exp(l - l_max) in float32; top-p: the shortest prefix whose weight, summed in that order in float64, reaches
   top_p of the total; at least one candidate (Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration");
6. min-p: candidates with a weight of at least min_p (the highest weight is 1);
7. the draw: u in [0, 1) from Philox4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3") with key
   = seed and counter = position of the token in its sequence; the first candidate whose cumulative weight exceeds u *
   total.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import NonFiniteError
from fastattn.graph.sampling import SAMPLE_PARAMS as SAMPLE_PARAMS

_MASK = 0xFFFFFFFF


def philox4x32(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return four random 32-bit words from Philox4x32-10."""
    k0, k1 = key
    x0, x1, x2, x3 = counter
    for _ in range(10):
        product0, product1 = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (product1 >> 32) ^ x1 ^ k0, product1 & _MASK, (product0 >> 32) ^ x3 ^ k1, product0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return x0, x1, x2, x3


def uniform(seed: int, counter: int) -> float:
    """Return a number in [0, 1) with 24 bits that depends only on seed and counter (64 bits each)."""
    words = philox4x32((seed & _MASK, seed >> 32), (counter & _MASK, counter >> 32, 0, 0))
    return (words[0] >> 8) * 2.0**-24


def sample(
    logits: NDArray[np.floating[Any]],
    params: NDArray[np.void],
    history: NDArray[np.int32],
    history_offsets: NDArray[np.int64],
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Draw one id per row: (int32 ids [n], float32 log-probabilities of the ids under the unprocessed logits [n]).

    logits [n, vocab]; params SAMPLE_PARAMS [n]; history: the previous ids of row i are
    history[history_offsets[i]:history_offsets[i + 1]]. Raises NonFiniteError if a row has NaN or +inf or is all -inf.
    """
    ids = np.zeros(len(params), np.int32)
    logprobs = np.zeros(len(params), np.float32)
    for i in range(len(params)):
        row = logits[i]
        if np.isnan(row).any() or np.isposinf(row).any() or not np.isfinite(row).any():
            raise NonFiniteError(f"logits[{i}]: expected finite numbers or -inf, got {_first_bad(row)}")
        with np.errstate(over="ignore"):  # from a penalty or temperature below 1
            chosen = _sample_row(row, params[i], history[history_offsets[i] : history_offsets[i + 1]])
        wide = row.astype(np.float64)
        highest = wide.max()
        ids[i] = chosen
        logprobs[i] = wide[chosen] - highest - np.log(np.exp(wide - highest).sum())
    return ids, logprobs


def _first_bad(row: NDArray[np.floating[Any]]) -> str:
    bad = np.flatnonzero(np.isnan(row) | np.isposinf(row))
    return f"{row[bad[0]]} at id {bad[0]}" if bad.size else "-inf everywhere"


def _sample_row(row: NDArray[np.floating[Any]], params: np.void, history: NDArray[np.int32]) -> int:
    scores = row.copy()
    penalty = params["repetition_penalty"]
    if penalty != 1:
        seen = np.unique(history)
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    if not params["do_sample"] or params["temperature"] == 0:
        return int(scores.argmax())
    highest = int(scores.argmax())
    scores = scores / params["temperature"]
    if not np.isfinite(scores.max()):
        return highest
    order = np.argsort(-scores, kind="stable")
    order = order[: np.count_nonzero(scores > -np.inf)]
    if 0 < params["top_k"] < len(order):
        order = order[: np.count_nonzero(scores >= scores[order[params["top_k"] - 1]])]
    weights = np.exp((scores[order] - scores[order[0]]).astype(np.float32))
    running = np.cumsum(weights, dtype=np.float64)
    if params["top_p"] < 1:
        keep = 1 + int(np.searchsorted(running, float(params["top_p"]) * running[-1], side="left"))
        order, weights, running = order[:keep], weights[:keep], running[:keep]
    if params["min_p"] > 0:
        keep = max(1, int((weights >= params["min_p"]).sum()))
        order, running = order[:keep], running[:keep]
    u = uniform(int(params["seed"]), int(params["counter"]))
    return int(order[min(int(np.searchsorted(running, u * running[-1], side="right")), len(order) - 1)])
