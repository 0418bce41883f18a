"""The bytes that each token id adds to a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastattn.errors import ConfigError
from fastattn.generation.decoders import decoder_parts, make_decoder, token_bytes
from fastattn.tokenizer import Tokenizer
from fastattn.tokenizer.library import library_errors

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder

_NEVER_IN_UTF8 = 0xFF


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """The bytes of the ids of a model.

    inner: what an id adds to a text that is not empty; b"" for ids that add nothing or that the tokenizer lacks, and
    the name for special ids. special: ids that are never text. first_differs bool [n_ids]: ids that add other bytes at
    the beginning of a text, such as those of SentencePiece, which lose their space there.
    """

    inner: list[bytes]
    special: list[int]
    first_differs: NDArray[np.bool_]


def token_bytes_of(tokenizer: Tokenizer, n_ids: int, name: str, *, ends: Sequence[int] = ()) -> TokenBytes:
    """Return the bytes of the ids from 0 to n_ids - 1, so that joined bytes are the text without special tokens.

    ends: ids that end a text; they are special too. name: the option that needs the bytes, for messages. Raises
    ConfigError for a tokenizer whose tokens have no bytes of their own: their text depends on later tokens.
    """
    raw = tokenizer.raw
    spelling, any_differs = _spelling(tokenizer, name)
    special = sorted({i for i in (*tokenizer.skipped_ids, *ends) if i < n_ids})
    inner, differs, hidden = [b""] * n_ids, np.zeros(n_ids, np.bool_), set(special)
    with library_errors(lambda reason: ConfigError(f"{name}: the tokenizer cannot decode its tokens: {reason}")):
        for token_id in range(n_ids):
            token = raw.id_to_token(token_id)
            if token is None:
                continue
            if token_id in hidden:
                inner[token_id] = token.encode("utf-8", "replace")
                continue
            found = spelling(token, False)
            differs[token_id] = any_differs and found != spelling(token, True)
            if not found.startswith(bytes([_NEVER_IN_UTF8])):
                inner[token_id] = found
    return TokenBytes(inner, special, differs)


_Spelling = Callable[[str, bool], bytes]  # (token, whether the text begins with it) -> bytes


def _spelling(tokenizer: Tokenizer, name: str) -> tuple[_Spelling, bool]:
    """Return the function from a token to its bytes, as the decoders of the tokenizer define them.

    Also return whether the bytes can be different at the beginning of a text.
    """
    parts = decoder_parts(tokenizer.raw)
    if parts is None:
        raise _refusal(name, "one written in Python")
    if not parts:
        return lambda token, first: (token if first else f" {token}").encode("utf-8", "replace"), True
    texts: list[tuple[Decoder, bool]] = []
    to_bytes: Callable[[str], bytes] = partial(str.encode, errors="replace")
    joined, strip = False, ""
    for part in parts:
        kind = part["type"]
        if kind == "Fuse" or (kind == "Strip" and part["start"] == part["stop"] == 0):
            joined = joined or kind == "Fuse"
        elif not joined and kind == "ByteLevel":
            to_bytes, joined = token_bytes, True
        elif not joined and kind == "ByteFallback" and isinstance(to_bytes, partial):
            to_bytes = _ByteFallback(make_decoder(part))
        elif not joined and kind in ("Replace", "WordPiece", "Metaspace") and isinstance(to_bytes, partial):
            texts.append((make_decoder(part), kind != "Replace"))
        elif joined and not strip and kind == "Strip" and (part["start"], part["stop"]) == (1, 0):
            strip = part["content"]
        else:
            raise _refusal(name, kind)
    return partial(_spell, texts, to_bytes, strip.encode()), bool(strip) or any(differs for _, differs in texts)


def _spell(
    texts: Sequence[tuple[Any, bool]], to_bytes: Callable[[str], bytes], strip: bytes, token: str, first: bool
) -> bytes:
    """Return the bytes of a token.

    texts: decoders of single tokens, and whether they decode the first one differently. strip: what is removed once
    from the beginning of the text.
    """
    for decoder, first_differs in texts:
        token = decoder.decode(["", token] if first_differs and not first else [token])
    found = to_bytes(token)
    return found[len(strip) :] if first and strip and found.startswith(strip) else found


class _ByteFallback:
    """Tokens such as <0xE4> are one byte; others are text."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def __call__(self, token: str) -> bytes:
        if token.startswith("<0x") and self._decoder.decode([token]) != token:
            return bytes([int(token[3:5], 16)])
        return token.encode("utf-8", "replace")


def _refusal(name: str, kind: str) -> ConfigError:
    return ConfigError(
        f"{name}: expected a tokenizer whose tokens have the same text at every position, got the decoder {kind}"
    )
