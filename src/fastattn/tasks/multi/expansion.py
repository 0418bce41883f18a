"""Query expansion of ColBERT: queries are lengthened with mask tokens, which get vectors too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastattn.api.encoders import Encoder
from fastattn.checks import quote
from fastattn.errors import ConfigError
from fastattn.settings import Settings
from fastattn.tasks.sentence.text_model import Encoded, TextTruncation
from fastattn.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class QueryExpansion:
    """How queries are lengthened. strategy: "fixed" cuts or lengthens them to `length` tokens, "min" only lengthens.

    attend: whether the other tokens attend to the added ones. token: the added token; None: the mask token, else the
    end-of-sentence token.
    """

    strategy: str
    attend: bool
    token: str | None
    length: int

    def truncation(self, given: TextTruncation) -> TextTruncation:
        """Return how queries are cut."""
        if self.strategy == "fixed":
            return TextTruncation(given.strategy, self.length)
        if given.max_length is None and given.query_length is not None:
            return TextTruncation(given.strategy, max(given.query_length, self.length))
        return given

    def check(self, where: str, query_length: int | None) -> None:
        """Refuse a query_length below the length of expanded queries. Raises ConfigError."""
        if query_length is not None and query_length < self.length:
            raise ConfigError(
                f"{where}: query_length: expected at least {self.length}, the length of query_expansion, got "
                f"{query_length}"
            )

    def expand(self, encoded: Encoded, token_id: int) -> Encoded:
        """Return the queries with the added tokens at their ends."""
        found: Encoded = []
        for ids, types in encoded:
            missing = max(0, self.length - len(ids))
            added = np.full(missing, token_id, ids.dtype)
            found.append((np.concatenate([ids, added]), np.concatenate([types, np.zeros(missing, types.dtype)])))
        return found

    def token_id(self, tokenizer: Tokenizer, where: object) -> int:
        """Return the id of the added token. Raises ConfigError if the tokenizer has none."""
        if self.token is not None:
            found = tokenizer.get_vocab().get(self.token)
        else:
            found = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.eos_token_id
        if found is None:
            named = "a mask token or an end-of-sentence token" if self.token is None else quote(self.token)
            raise ConfigError(f"{where}: query_expansion: expected a tokenizer with {named}, found none")
        return int(found)


def why_all_are_attended(model: Encoder, expansion: QueryExpansion) -> str | None:
    """Return why a model cannot leave out the added tokens as keys (`fastattn.graph.ir.Step`); None if it can."""
    if model.device == "cuda":
        return 'expected the device "cpu", got "cuda"'
    for op in model.executor.program.ops:
        if op.kind != "attention":
            continue
        if op.attrs["has_bias"] or op.attrs["has_columns"]:
            return "attention with relative positions attends to all tokens"
        if 0 < int(op.attrs["window"]) < expansion.length:
            return f"length: expected at most {op.attrs['window']}, the window of attention, got {expansion.length}"
    return None


def read_expansion(where: str, values: Mapping[str, Any] | None) -> QueryExpansion | None:
    """Read query_expansion of the Transformer module. Raises ConfigError."""
    if values is None:
        return None
    settings = Settings(f"{where}: query_expansion", values)
    strategy = settings.choice("strategy", ("fixed", "min"), None)
    length = settings.count("length", None, low=1)
    attend, token = settings.flag("attend", False), settings.text("token", None)
    if strategy is None or length is None:
        raise settings.error("strategy" if strategy is None else "length", "a value")
    for key in settings.unused():
        raise ConfigError(f"{settings.where}: expected only strategy, attend, token and length, got {quote(key)}")
    return QueryExpansion(strategy, attend, token, length)
