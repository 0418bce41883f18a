"""The data that the modules of a SentenceTransformer pass on: named arrays, one entry per text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError

Float = NDArray[np.floating[Any]]
Rows = NDArray[np.float32]
TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"
Level = Literal["tokens", "sentences"]
_UNITS: Mapping[Level, str] = {"tokens": "token", "sentences": "text"}


@dataclass(slots=True)
class Features:
    """The features of a batch of texts.

    where: the name of each text in messages, such as "sentences[3]". prompt_len: number of tokens at the start of each
    text that belong to the prompt, including the first special token. key_counts: for each text, how many of its
    first tokens are attended to; None: all. tokens: name to one array [n_tokens, width] per
    text. sentences: name to float32 [n_texts, width].
    """

    where: Sequence[str]
    prompt_len: int = 0
    key_counts: Sequence[int] | None = None
    tokens: dict[str, list[Float]] = field(default_factory=dict)
    sentences: dict[str, Rows] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.sentences or name in self.tokens

    def transform(self, source: str, target: str, function: Callable[[Rows], Rows]) -> None:
        """Apply a function of rows to the feature `source` and store the result as `target`."""
        if source in self.sentences:
            found = function(self.sentences[source])
            self.tokens.pop(target, None)
            self.sentences[target] = found
            return
        parts = [np.asarray(part, np.float32) for part in self.tokens[source]]
        ends = list(accumulate(len(part) for part in parts))
        whole = function(np.concatenate(parts))
        self.sentences.pop(target, None)
        self.tokens[target] = [whole[end - len(part) : end] for part, end in zip(parts, ends, strict=True)]


@dataclass(slots=True)
class Widths:
    """The widths of the features after some of the modules, computed without running them."""

    known: dict[str, tuple[Level, int]] = field(default_factory=dict)

    def need(self, name: str, module: str, *, level: Level | None = None, width: int | None = None) -> int:
        """Return the width of a feature that a module reads. Raises ConfigError if it is missing or does not match."""
        if name not in self.known:
            found = ", ".join(self.known) or "nothing"
            raise ConfigError(f"{module}: expected {name} from a module before it, got {found}")
        found_level, found_width = self.known[name]
        if level is not None and found_level != level:
            raise ConfigError(f"{module}: expected one {name} per {_UNITS[level]}, got one per {_UNITS[found_level]}")
        if width is not None and found_width != width:
            raise ConfigError(f"{module}: expected {name} of width {width}, got {found_width}")
        return found_width

    def put(self, name: str, level: Level, width: int) -> None:
        """Record a feature that a module writes."""
        self.known[name] = (level, width)


class Module(Protocol):
    """A module after the first one."""

    def check(self, widths: Widths) -> None:
        """Check that the module can read its input, and record the feature that it computes. Raises ConfigError."""
        ...

    def __call__(self, features: Features) -> None:
        """Read and write features."""
        ...

    @property
    def reads(self) -> str:
        """The feature that the module reads."""
        ...
