"""How the next tokens of a step are drawn. `fastattn.generation.numpy_sampler` specifies the filters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_PARAMS = np.dtype(
    [
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("repetition_penalty", np.float32),
        ("top_k", np.int32),
        ("do_sample", np.int32),
        ("seed", np.uint64),
        ("counter", np.uint64),
    ]
)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn for each wanted row of a step.

    params: SAMPLE_PARAMS [n_wanted]. history: int32, the ids for the repetition penalty; row i has
    history[history_offsets[i]:history_offsets[i + 1]]. history_offsets: int64 [n_wanted + 1]. suppressed: int32, ids
    whose logits count as -inf for the next suppress[i] draws of row i. suppress: int64 [n_wanted]. logprobs: whether to
    return the log-probabilities of the tokens.
    """

    params: NDArray[np.void]
    history: NDArray[np.int32]
    history_offsets: NDArray[np.int64]
    suppressed: NDArray[np.int32] | None = None
    suppress: NDArray[np.int64] | None = None
    logprobs: bool = False
