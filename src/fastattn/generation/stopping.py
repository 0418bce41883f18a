"""The text of one request as its tokens come, and the stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence

from fastattn.generation.detokenizer import Detokenizer
from fastattn.tokenizer import Tokenizer


class TextState:
    """Collects a request's new text; a stop string ends it, also one that spans several tokens.

    `push` and `finish` return the text that no later token can take back.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = tuple(stop_strings)
        self._longest = max(map(len, self._stops), default=0)
        self._prefixes = {stop[:n] for stop in self._stops for n in range(1, len(stop))}
        self._emitted = 0
        self._borders: list[int | None] = []  # characters after each token; None where a character is unfinished

    def push(self, token_id: int) -> str:
        """Add a token: the text that is certain now. `stopped` is set if a stop string is complete."""
        searched = max(0, len(self.text) - self._longest + 1)
        self.text += self._detokenizer.push(token_id)
        self._borders.append(None if self._detokenizer.holds_back else len(self.text))
        found = [at for at in (self.text.find(stop, searched) for stop in self._stops) if at >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True
            return self._emit(len(self.text))
        return self._emit(len(self.text) - self._possible_stop())

    def finish(self) -> str:
        """The rest of the text, at the end of a request."""
        if not self.stopped:
            self.text += self._detokenizer.flush()
        return self._emit(len(self.text))

    def whole_tokens(self) -> int:
        """After a stop: how many of the new tokens lie wholly before the stop string."""
        kept = [i + 1 for i, border in enumerate(self._borders) if border is not None and border <= len(self.text)]
        return max(kept, default=0)

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that may become a stop string."""
        for n in range(min(self._longest - 1, len(self.text)), 0, -1):
            if self.text[-n:] in self._prefixes:
                return n
        return 0

    def _emit(self, end: int) -> str:
        piece = self.text[self._emitted : end]
        self._emitted = max(self._emitted, end)
        return piece
