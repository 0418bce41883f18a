"""Which tokens of a text get a vector, as sentence-transformers' module MultiVectorMask defines it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.checks import quote
from fastattn.settings import Settings
from fastattn.tasks.sentence.read_only import read_only
from fastattn.tokenizer import Tokenizer

_log = logging.getLogger("fastattn")


@read_only()
@dataclass(frozen=True, slots=True)
class MultiVectorMask:
    """Leaves out tokens. skiplist_words: tokens to leave out of texts whose task is in skiplist_tasks.

    A text without a task is a document. keep_only_token_ids: if not empty, documents keep only these tokens.
    """

    skiplist_words: tuple[str, ...] = ()
    skiplist_tasks: tuple[str, ...] = ("document",)
    keep_only_token_ids: tuple[int, ...] = ()

    def kept(self, ids: NDArray[np.int32], task: str | None, skipped: Sequence[int]) -> NDArray[np.bool_]:
        """Return which tokens of a text stay. skipped: the ids of the skip list."""
        kept = np.ones(len(ids), np.bool_)
        if (task or "document") in self.skiplist_tasks:
            kept &= ~np.isin(ids, skipped)
        if task != "query" and self.keep_only_token_ids:
            kept &= np.isin(ids, self.keep_only_token_ids)
        return kept

    def skipped(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return the ids of the skip list. Words that are not tokens are left out, with a warning."""
        unknown = tokenizer.unk_token_id
        found = [tokenizer.convert_tokens_to_ids(word) for word in self.skiplist_words]
        missing = [
            word
            for word, token_id in zip(self.skiplist_words, found, strict=True)
            if token_id is None or (token_id == unknown and word != tokenizer.unk_token)
        ]
        if missing:
            _log.warning("MultiVectorMask: skiplist_words that are not tokens are ignored: %s", quote(missing))
        return tuple(token_id for word, token_id in zip(self.skiplist_words, found, strict=True) if word not in missing)


def read_mask(settings: Settings) -> MultiVectorMask:
    """Read the config.json of a MultiVectorMask. Raises ConfigError."""
    ids: Any = settings.raw("keep_only_token_ids")
    if ids is not None and not (isinstance(ids, list) and all(type(item) is int and item >= 0 for item in ids)):
        raise settings.error("keep_only_token_ids", "a list of token ids")
    tasks: Any = settings.raw("skiplist_tasks")
    if isinstance(tasks, str):
        names: tuple[str, ...] = (tasks,)
    else:
        names = ("document",) if tasks is None else settings.texts("skiplist_tasks")
    found = MultiVectorMask(settings.texts("skiplist_words"), names, tuple(ids or ()))
    settings.finish()
    return found
