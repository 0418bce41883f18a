"""Sentence vectors from token vectors, as defined by sentence-transformers' Pooling module."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from fastattn.checks import quote
from fastattn.errors import ConfigError, InputError
from fastattn.settings import Settings
from fastattn.tasks.sentence.features import SENTENCE, TOKENS, Features, Float, Rows, Widths
from fastattn.tasks.sentence.read_only import read_only

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# The flags of older folders, in the order in which several modes are concatenated.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The modes that are ops of a Program, with their names there.
POOL_OPS = {
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "lasttoken": "last",
}
# The modes that need at least one token.
_NEED_A_TOKEN = ("cls", "max")
_log = logging.getLogger("fastattn")


@read_only(include_prompt="call set_pooling_include_prompt of the SentenceTransformer")
@dataclass(frozen=True, slots=True)
class Pooling:
    """Computes one vector per text from its token vectors.

    pooling_mode: one of MODES, or several, whose results are concatenated. include_prompt=False excludes the tokens of
    the prompt.
    """

    embedding_dimension: int
    pooling_mode: str | tuple[str, ...] = "mean"
    include_prompt: bool = True
    reads: ClassVar[str] = TOKENS

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes in order."""
        return (self.pooling_mode,) if isinstance(self.pooling_mode, str) else self.pooling_mode

    def get_pooling_mode_str(self) -> str:
        """Return the modes as one string."""
        return "+".join(self.modes)

    def get_embedding_dimension(self) -> int:
        """Return the width of the vectors."""
        return self.embedding_dimension * len(self.modes)

    get_sentence_embedding_dimension = get_embedding_dimension

    def check(self, widths: Widths) -> None:
        """Check the input and record the feature that the module computes."""
        width = widths.need(TOKENS, "Pooling", level="tokens")
        if width != self.embedding_dimension:  # sentence-transformers pools them anyway
            _log.warning(
                "Pooling: embedding_dimension is %d, the token vectors have %d", self.embedding_dimension, width
            )
        widths.put(SENTENCE, "sentences", width * len(self.modes))

    def __call__(self, features: Features) -> None:
        """Pool the token vectors of each text."""
        skipped = 0 if self.include_prompt else features.prompt_len
        states = features.tokens[TOKENS]
        pooled = [self.pool(rows, skipped, where) for rows, where in zip(states, features.where, strict=True)]
        features.sentences[SENTENCE] = np.stack(pooled)

    def pool(self, states: Float, skipped: int, where: str) -> Rows:
        """Return one vector [len(modes) * width] from states [n_tokens, width], without the first `skipped` rows.

        If no token is left, the result is zeros for means and the last token, and the first token for cls, as in
        sentence-transformers. Raises InputError for a mode that has no value then.
        """
        rows = states[skipped:]
        parts = [_pool(mode, states, rows, where) for mode in self.modes]
        return np.concatenate(parts).astype(np.float32)

    def check_tokens(self, n_tokens: int, where: str) -> None:
        """Reject a text without tokens if a mode needs one."""
        if not n_tokens and any(mode in _NEED_A_TOKEN for mode in self.modes):
            raise InputError(
                f"{where}: expected at least one token for pooling by {self.get_pooling_mode_str()}, got 0"
            )


def read_pooling(settings: Settings) -> Pooling:
    """Read the Pooling of a config.json with `pooling_mode` or the older `pooling_mode_*` flags. Raises ConfigError."""
    named = settings.raw("pooling_mode")
    flags = {flag: settings.flag(flag, False) for flag in _FLAGS}
    if named is None:
        modes = tuple(mode for flag, mode in _FLAGS.items() if flags[flag]) or ("mean",)
    elif isinstance(named, str) or (isinstance(named, list) and named):
        modes = (named,) if isinstance(named, str) else tuple(named)
    else:
        raise settings.error("pooling_mode", "a name or a list of names")
    for mode in modes:
        if not isinstance(mode, str) or mode not in MODES:
            raise ConfigError(f"{settings.where}: pooling_mode: expected one of {', '.join(MODES)}, got {quote(mode)}")
    for key in settings.values:
        if key.startswith("pooling_mode_") and key not in _FLAGS and settings.values[key]:
            raise ConfigError(f"{settings.where}: {quote(key)}: expected one of {', '.join(_FLAGS)}")
    old = settings.count("word_embedding_dimension", None, low=1)
    size = settings.count("embedding_dimension", old, low=1)
    include_prompt = settings.flag("include_prompt", True)
    settings.finish()
    if size is None:
        raise settings.error("embedding_dimension", "the width of the token vectors")
    return Pooling(size, modes[0] if len(modes) == 1 else modes, include_prompt)


def _pool(mode: str, states: Float, rows: Float, where: str) -> Float:
    if not len(rows):
        if mode == "max" or (mode == "cls" and not len(states)):
            raise InputError(f"{where}: expected a token to pool by {mode}, got none after the prompt")
        return cast(Float, states[0] if mode == "cls" else np.zeros(states.shape[1]))
    if mode == "cls":
        return cast(Float, rows[0])
    if mode == "lasttoken":
        return cast(Float, rows[-1])
    if mode == "max":
        return cast(Float, rows.max(axis=0))
    if mode == "weightedmean":
        first = len(states) - len(rows) + 1
        weights = np.arange(first, len(states) + 1, dtype=np.float64)
        # No BLAS here: the bits of its products depend on the alignment of the arrays.
        return cast(Float, (weights[:, None] * rows).sum(axis=0, dtype=np.float64) / weights.sum())
    total = rows.sum(axis=0, dtype=np.float64)
    return cast(Float, total / (len(rows) if mode == "mean" else np.sqrt(len(rows))))
