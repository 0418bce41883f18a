"""The interface of a library, and code shared by the adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastattn.checkpoint import Checkpoint, open_checkpoint, read_tensor
from fastattn.models.names import ModelNames, resolve_names
from fastattn.models.registry import find_family
from fastattn.models.tasks import Task

Ids = list[list[int]]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What to load: a checkpoint's folder, a task, a dtype and the number of threads.

    folder: where a converted model may be stored; the same for all libraries. kv_dtype, head_dtype: only for fastattn.
    """

    path: Path
    task: Task
    dtype: str
    threads: int
    folder: Path
    kv_dtype: str | None = None
    head_dtype: str | None = None


class Peer(Protocol):
    """A loaded model of a library."""

    def forward(self, ids: Ids) -> Array:
        """Return float [n_sequences, width].

        For a language model, the logits of the last token of each sequence; for a classifier, those of each sequence;
        for an encoder, the last hidden state of the first token of each.
        """

    def decode(self, ids: Ids, n_new: int) -> tuple[Ids, float]:
        """Return greedy tokens after prompts of equal length, and the seconds from the first to the last token."""


# Per classifier: dense layer, last layer, activation between them.
HEADS: Mapping[str, tuple[str, str, str]] = {
    "bert": ("pooler.dense", "classifier", "tanh"),
    "distilbert": ("pre_classifier", "classifier", "relu"),
    "roberta": ("classifier.dense", "classifier.out_proj", "tanh"),
    "xlm-roberta": ("classifier.dense", "classifier.out_proj", "tanh"),
}


class Unsupported(Exception):
    """The library cannot do this; the message says what."""


class Source:
    """A checkpoint, for code that writes it in another format."""

    def __init__(self, job: Job) -> None:
        self.checkpoint: Checkpoint = open_checkpoint(job.path)
        family = find_family(self.checkpoint.config)
        self.config: Any = family.read_config(self.checkpoint.config)
        self.task = job.task
        self._names: ModelNames = resolve_names(self.checkpoint.tensors, family.layout)

    @property
    def model_type(self) -> str:
        """ "gpt2", "bert", ..."""
        return str(self.config.model_type)

    def has(self, name: str) -> bool:
        """Return whether the tensor exists, by the name that the model code uses."""
        return self._names.has(name)

    def __call__(self, name: str) -> NDArray[np.float32]:
        """Return a tensor; matrices are [out_features, in_features]."""
        array = read_tensor(self._names.get(name))
        return np.ascontiguousarray(array.T) if self._names.transposed(name) else array

    def head_names(self) -> tuple[str, str, str]:
        """Return the entry of HEADS. Raises Unsupported for families whose layers this module cannot write."""
        if self.model_type not in HEADS:
            raise Unsupported(f"expected one of gpt2, {', '.join(HEADS)}, got {self.model_type}")
        return HEADS[self.model_type]

    def head(self) -> Callable[[Array], Array]:
        """Return the classification head in numpy: hidden states of first tokens [n, width] -> logits [n, labels]."""
        dense, last, activation = self.head_names()
        first, second = self(f"{dense}.weight").T, self(f"{last}.weight").T
        biases = self(f"{dense}.bias"), self(f"{last}.bias")

        def run(hidden: Array) -> Array:
            x = hidden @ first + biases[0]
            x = np.tanh(x) if activation == "tanh" else np.maximum(x, 0)
            logits: Array = x @ second + biases[1]
            return logits

        return run


def pad(ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids and mask [n, longest], padded on the right."""
    width = max(map(len, ids))
    padded, mask = np.zeros((len(ids), width), np.int64), np.zeros((len(ids), width), np.int64)
    for i, row in enumerate(ids):
        padded[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return padded, mask
