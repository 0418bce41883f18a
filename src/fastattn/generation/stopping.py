"""Collects the text of one request as its tokens arrive, and finds stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastattn.generation.decoders import length_of_beginning
from fastattn.generation.detokenizer import Detokenizer
from fastattn.tokenizer import Tokenizer

_MAX_STEPS_BACK = 16


class TextState:
    """Collects a request's new text. A stop string ends it, even if it spans several tokens.

    prompt: the ids before the new ones; the boundary between the two texts depends on them. The other arguments are
    those of `Detokenizer`. `push` and `finish` return the text that no later token can change.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_strings: Sequence[str] = (),
        *,
        prompt: Sequence[int] = (),
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._prompt = list(prompt)
        self._options: dict[str, Any] = {
            "skip_special_tokens": skip_special_tokens,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
        }
        self._detokenizer = Detokenizer(tokenizer, self._prompt, **self._options)
        self._stops = tuple(stop_strings)
        self._pieces: list[str] = []
        self._held = ""  # final text that may be the beginning of a stop string

    def again(self, new_ids: Sequence[int]) -> TextState:
        """Return a new state after these new tokens."""
        state = TextState(self._tokenizer, self._stops, prompt=self._prompt, **self._options)
        for token_id in new_ids:
            state.push(token_id)
        return state

    @property
    def text(self) -> str:
        """The text so far, up to the stop string."""
        return "".join([*self._pieces, self._held])

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now final. Sets `stopped` if a stop string is complete."""
        return self._add(self._detokenizer.push(token_id))

    def finish(self) -> str:
        """Return the rest of the text at the end of a request. It can complete a stop string too."""
        piece = "" if self.stopped else self._add(self._detokenizer.flush())
        held, self._held = self._held, ""
        return piece + self._emit(held)

    def length_of(self, new_ids: Sequence[int]) -> int:
        """Return the number of characters of these new tokens."""
        hidden = len(self._decode([])) if self._prompt else 0
        return len(self._decode(new_ids)) - hidden

    def whole_tokens(self, new_ids: Sequence[int]) -> int:
        """Return how many new tokens lie completely before the stop string. Call it after a stop."""
        text = self.text
        hidden = len(self._decode([])) if self._prompt else 0
        low, high = 0, len(new_ids)
        while low < high:  # find the last token that ends within the text
            middle = (low + high + 1) // 2
            if len(self._decode(new_ids[:middle])) - hidden <= len(text):
                low = middle
            else:
                high = middle - 1
        steps = 0
        while low and not text.startswith(self._decode(new_ids[:low])[hidden:]):  # inside a character
            steps += 1
            low = low - 1 if steps <= _MAX_STEPS_BACK else low // 2
        return low

    def _decode(self, new_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode([*self._prompt, *new_ids], **self._options))

    def _add(self, text: str) -> str:
        """Add final text and return the part that cannot belong to a stop string."""
        text = self._held + text
        found = [at for at in map(text.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return self._emit(text[: min(found)])
        held = max((length_of_beginning(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return self._emit(text[: len(text) - held])

    def _emit(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece
