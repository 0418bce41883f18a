"""The workloads to measure: what to run, and the shape that determines its minimum cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastattn.errors import InputError
from fastattn.graph.cost import StepShape
from fastattn.models.tasks import Task

RAGGED_TEXTS = 32
PASSAGES = 100  # that a cross-encoder ranks for one query
MOST_NEW_TOKENS = 33  # of a decode: one from the prompt, and 32 steps


@dataclass(frozen=True, slots=True)
class Work:
    """forward: one pass over sequences of `lengths`; decode: `n_new` tokens after each prompt of `lengths`.

    optional: measured only if it is chosen by name.
    """

    name: str
    kind: Literal["forward", "decode"]
    lengths: tuple[int, ...]
    n_new: int = 0
    unit: Literal["tokens", "sequences"] = "tokens"
    optional: bool = False

    @property
    def count(self) -> int:
        """Tokens or sequences per sample. A sample is one pass, or one step of a decode."""
        return sum(self.lengths) if self.kind == "forward" and self.unit == "tokens" else len(self.lengths)

    def shape(self) -> StepShape:
        """Return the shape of a sample; for a decode, the mean of its steps."""
        if self.kind == "forward":
            return StepShape(self.lengths, None, wanted=1)
        # Step t of n_new - 1 reads the prompt and t - 1 tokens from the cache.
        return StepShape((1,) * len(self.lengths), tuple(n + self.n_new / 2 - 1 for n in self.lengths), wanted=1)

    def ids(self, vocab_size: int) -> list[list[int]]:
        """Return token ids, the same for every library. Low and high ids are excluded: they may be special tokens."""
        rng = np.random.default_rng(0)
        margin = min(1000, vocab_size // 4)
        return [rng.integers(margin, max(margin + 1, vocab_size - margin), size=n).tolist() for n in self.lengths]


def works_of(task: Task, context: int) -> list[Work]:
    """Return the workloads for a model with this context; lengths that exceed it are reduced."""
    works = _language_model(context) if task == "causal-lm" else _encoder(context)
    return list({work.name: work for work in works}.values())


def choose(works: list[Work], names: list[str] | None) -> list[Work]:
    """Return the workloads with these names, in the order of `works`; None: those that are not optional.

    Raises InputError.
    """
    known = [work.name for work in works]
    for name in names or ():
        if name not in known:
            raise InputError(f"works: expected some of {', '.join(known)}, got {name!r}")
    return [work for work in works if (not work.optional if names is None else work.name in names)]


def ragged_lengths(count: int = RAGGED_TEXTS, low: int = 5, high: int = 128, median: float = 24) -> tuple[int, ...]:
    """Return lengths of texts in tokens: lognormal with this median; by default those of short texts."""
    drawn = np.exp(np.random.default_rng(0).normal(math.log(median), 0.8, count))
    return tuple(int(n) for n in np.clip(drawn, min(low, high), high))


def _language_model(context: int) -> list[Work]:
    prefill = min(512, context)
    prompt = max(1, min(32, context // 2))
    n_new = min(MOST_NEW_TOKENS, context - prompt)
    far = min(900, context - n_new)
    works = [Work(f"prefill-{prefill}", "forward", (prefill,))]
    if n_new > 1:  # a context of two positions leaves no step to measure
        works += [Work(f"decode-{n}", "decode", (prompt,) * n, n_new) for n in (1, 8, 32)]
        works += [Work(f"decode-after-{far}", "decode", (far,), n_new)] if far > prompt else []
    return works


def _encoder(context: int) -> list[Work]:
    short, long = min(16, context), min(128, context)
    even = [Work(f"{n}x{length}", "forward", (length,) * n, unit="sequences") for n, length in
            ((1, short), (1, long), (8, long))]  # fmt: skip
    passages = ragged_lengths(PASSAGES, high=min(512, context), median=100)
    return [
        *even,
        Work(f"ragged-{RAGGED_TEXTS}", "forward", ragged_lengths(high=long), unit="sequences"),
        *(Work(f"1x{n}", "forward", (n,), unit="sequences", optional=True) for n in (512, 4096) if n <= context),
        Work(f"rerank-{PASSAGES}", "forward", passages, unit="sequences", optional=True),
    ]
