"""How the next tokens of a step are drawn. What the filters do is said in `fastattn.generation.numpy_sampler`."""

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

    params: SAMPLE_PARAMS [n_wanted]. history: int32, the ids that the repetition penalty looks at, those of row i being
    history[history_offsets[i]:history_offsets[i + 1]] (int64 [n_wanted + 1]). suppressed: int32, ids whose logits count
    as -inf in the rows where suppress (int64 [n_wanted]) is above 0; when a row draws again and again, for that many
    draws. logprobs: whether the tokens' log-probabilities are wanted.
    """

    params: NDArray[np.void]
    history: NDArray[np.int32]
    history_offsets: NDArray[np.int64]
    suppressed: NDArray[np.int32] | None = None
    suppress: NDArray[np.int64] | None = None
    logprobs: bool = False
