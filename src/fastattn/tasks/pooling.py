"""Sentence vectors from token vectors, as sentence-transformers' Pooling module defines them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError

Float = NDArray[np.floating[Any]]
# In the order in which several modes are concatenated.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The modes that are ops of a Program, by the names they have there.
POOL_OPS = {
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "lasttoken": "last",
}


@dataclass(frozen=True, slots=True)
class Pooling:
    """modes: one or several, concatenated. include_prompt=False leaves the prompt's tokens out of the pooling."""

    modes: tuple[str, ...] = ("mean",)
    include_prompt: bool = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, where: str, hidden_size: int) -> Pooling:
        """From 1_Pooling/config.json, with the old `pooling_mode_*` flags or the new `pooling_mode`."""
        named = config.get("pooling_mode")
        if named is None:
            modes = tuple(mode for flag, mode in _FLAGS.items() if config.get(flag)) or ("mean",)
        elif isinstance(named, str) or (isinstance(named, list) and named):
            modes = (named,) if isinstance(named, str) else tuple(named)
        else:
            raise ConfigError(f"{where}: pooling_mode: expected a name or a list of names, got {named!r:.80}")
        for mode in modes:
            if mode not in _FLAGS.values():
                raise ConfigError(f"{where}: pooling_mode: expected one of {', '.join(_FLAGS.values())}, got {mode!r}")
        unknown = [key for key in config if key.startswith("pooling_mode_") and key not in _FLAGS and config[key]]
        if unknown:
            raise ConfigError(f"{where}: {unknown[0]} is not supported")
        width = config.get("word_embedding_dimension", config.get("embedding_dimension", hidden_size))
        if width != hidden_size:
            raise ConfigError(f"{where}: expected vectors of {hidden_size} numbers, as the model gives, got {width}")
        return cls(modes, bool(config.get("include_prompt", True)))

    def __call__(self, states: Float, *, prompt_len: int = 0) -> NDArray[np.float32]:
        """One vector [len(modes) * hidden_size] from states [n_tokens, hidden_size]; zeros where nothing is pooled."""
        skipped = 0 if self.include_prompt else min(prompt_len, len(states))
        rows = states[skipped:]
        if not len(rows):
            return np.zeros(states.shape[1] * len(self.modes), np.float32)
        return np.concatenate([_pool(mode, rows, skipped) for mode in self.modes]).astype(np.float32)


def _pool(mode: str, rows: Float, first_position: int) -> Float:
    if mode == "cls":
        return cast(Float, rows[0])
    if mode == "lasttoken":
        return cast(Float, rows[-1])
    if mode == "max":
        return cast(Float, rows.max(axis=0))
    if mode == "weightedmean":
        weights = np.arange(first_position + 1, first_position + len(rows) + 1, dtype=np.float64)
        return cast(Float, weights @ rows / weights.sum())
    total = rows.sum(axis=0, dtype=np.float64)
    return cast(Float, total / (len(rows) if mode == "mean" else np.sqrt(len(rows))))


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; a row of zeros stays so (as torch's normalize with eps 1e-12)."""
    wide = vectors.astype(np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=-1, keepdims=True))
    return cast("NDArray[np.float32]", (wide / np.maximum(lengths, 1e-12)).astype(np.float32))
