"""Text from tokens as they come, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from functools import lru_cache

from fastattn.tokenizer import Tokenizer

_WINDOW_BASE = 5  # tokens of context that a decoder other than the byte-level one sees


@lru_cache(maxsize=1)
def _byte_of_letter() -> Mapping[str, int]:
    """GPT-2's letters for bytes: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    letters.update({chr(256 + i): b for i, b in enumerate(others)})
    return letters


def token_bytes(token: str) -> bytes:
    """The bytes of a byte-level token; a token with a letter outside the table stands for its own UTF-8."""
    table = _byte_of_letter()
    try:
        return bytes(table[letter] for letter in token)
    except KeyError:
        return token.encode("utf-8")


class Detokenizer:
    """`push` each token id and get the text that is now certain; `flush` gives the rest.

    All pieces together are `tokenizer.decode(ids, skip_special_tokens=...)`.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.skipped_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ids: list[int] = []  # for other decoders: a window, of which `_done` tokens are already text
        self._done = 0

    def push(self, token_id: int) -> str:
        """The new text that `token_id` makes certain, often one piece of a word, sometimes ""."""
        if token_id in self._skip:
            return ""
        if self._tokenizer.byte_level:
            token = self._tokenizer.raw.id_to_token(token_id)
            return "" if token is None else self._utf8.decode(token_bytes(token))
        self._ids.append(token_id)
        return self._window_text(final=False)

    @property
    def holds_back(self) -> bool:
        """True inside a character: its other bytes are in tokens to come."""
        return bool(self._utf8.getstate()[0]) or self._done < len(self._ids)

    def flush(self) -> str:
        """What is still held back; an unfinished character becomes U+FFFD."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(b"", final=True)
        return self._window_text(final=True)

    def _window_text(self, *, final: bool) -> str:
        """The text of the window beyond that of its first `_done` tokens, if it ends with a whole character."""
        raw = self._tokenizer.raw
        before = raw.decode(self._ids[: self._done], skip_special_tokens=False) if self._done else ""
        text = raw.decode(self._ids, skip_special_tokens=False)
        if not final and text.endswith("\ufffd"):
            return ""
        piece = text[len(before) :]
        self._ids = self._ids[-_WINDOW_BASE:]
        self._done = len(self._ids)
        return piece
