"""The decoders of the `tokenizers` library as streams: push tokens, get the text that later tokens cannot change.

`make_stages` splits a decoder into stages. Each stage takes the output of the stage before it. Together, all pieces
equal the output of the library's decoder for all tokens at once. At first a piece is a whole token; after a decoder
that joins its tokens (Fuse, ByteLevel) it is a part of one long text. Every stage handles a token in constant time and
stores a bounded amount of text, with two exceptions. ByteFallback decodes a run of byte tokens as a unit, so it waits
for the end of the run. A decoder whose output can depend on all tokens (a regular expression over the joined text, a
decoder written in Python) waits for the last token.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer
    from tokenizers.decoders import Decoder


class Stage(ABC):
    """One step of decoding."""

    @abstractmethod
    def push(self, pieces: Iterable[str]) -> list[str]:
        """Take more input and return the output that can no longer change."""

    def finish(self) -> list[str]:
        """Return the remaining output after the last input."""
        return []


class _DecoderStage(Stage):
    """A stage that calls a decoder of the library."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder


def make_stages(raw: RawTokenizer) -> list[Stage]:
    """Return the stages that together decode like `raw.decode`."""
    if raw.decoder is None:
        return [Join()]
    parts = decoder_parts(raw)
    if parts is None:
        return [Whole(raw.decoder)]
    stages: list[Stage] = []
    joined = False
    for i, part in enumerate(parts):
        stage = _joined_stage(part) if joined else _token_stage(part)
        if stage is None:
            return [*stages, Whole(make_decoder({"type": "Sequence", "decoders": parts[i:]}), joined=joined)]
        stages.append(stage)
        joined = joined or part["type"] in ("Fuse", "ByteLevel")
    return stages


def decoder_parts(raw: RawTokenizer) -> list[Mapping[str, Any]] | None:
    """Return the JSON of the decoders that a tokenizer applies one after another; None if one is written in Python."""
    if raw.decoder is None:
        return []
    try:
        found: Mapping[str, Any] = json.loads(raw.decoder.__getstate__())
    except Exception as error:  # the library's error for a decoder written in Python
        if type(error) is not Exception:
            raise
        return None
    return list(_flatten(found))


def _flatten(decoder: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for part in decoder["decoders"]:
        yield from _flatten(part)


def make_decoder(state: Mapping[str, Any]) -> Decoder:
    """Create a decoder of the library from its JSON."""
    from tokenizers import decoders

    decoder = decoders.Fuse()
    decoder.__setstate__(json.dumps(state).encode())  # works for a decoder of any type
    return decoder


def _token_stage(part: Mapping[str, Any]) -> Stage | None:
    """Return the stage of a decoder that gets tokens; None if it can only decode all tokens at once."""
    kind = part["type"]
    if kind in _TOKEN_STAGES:
        return _TOKEN_STAGES[kind](make_decoder(part))
    if kind == "ByteLevel":
        return Utf8()
    return Through() if kind == "Fuse" else None


def _joined_stage(part: Mapping[str, Any]) -> Stage | None:
    """Return the stage of a decoder that gets one long text in parts."""
    kind = part["type"]
    if kind == "Fuse":
        return Through()
    if kind == "Strip":
        return StripEnds(make_decoder(part), part["content"], part["start"], part["stop"])
    if kind == "Replace" and part["pattern"].get("String"):
        return ReplaceText(part["pattern"]["String"], part["content"])
    return None


class Through(Stage):
    """Returns its input unchanged."""

    def push(self, pieces: Iterable[str]) -> list[str]:
        return list(pieces)


class Join(Stage):
    """Joins tokens with spaces: a tokenizer without a decoder."""

    _space = ""

    def push(self, pieces: Iterable[str]) -> list[str]:
        out = []
        for piece in pieces:
            out.append(self._space + piece)
            self._space = " "
        return out


class EachToken(_DecoderStage):
    """A decoder that processes each token separately."""

    def push(self, pieces: Iterable[str]) -> list[str]:
        return [self._decoder.decode([piece]) for piece in pieces]


class FirstDiffers(_DecoderStage):
    """A decoder that processes each token separately and the first one differently."""

    _before: tuple[str, ...] = ()

    def push(self, pieces: Iterable[str]) -> list[str]:
        out = []
        for piece in pieces:
            out.append(self._decoder.decode([*self._before, piece]))
            self._before = ("",)  # decoders of this kind return "" for it
        return out


class LastDiffers(_DecoderStage):
    """A decoder that processes each token separately and the last one differently."""

    _last: str | None = None

    def push(self, pieces: Iterable[str]) -> list[str]:
        out = []
        for piece in pieces:
            if self._last is not None:
                out.append(self._decoder.decode([self._last, ""]))
            self._last = piece
        return out

    def finish(self) -> list[str]:
        return [] if self._last is None else [self._decoder.decode([self._last])]


class WithoutRepeats(_DecoderStage):
    """A CTC decoder: drops repeats of a token."""

    _last: str | None = None

    def push(self, pieces: Iterable[str]) -> list[str]:
        out = []
        for piece in pieces:
            if piece != self._last:
                out.append(self._decoder.decode([piece]))
            self._last = piece
        return [text for text in out if text]


class ByteRuns(_DecoderStage):
    """ByteFallback: a run of tokens like <0xE4> is text if the whole run is UTF-8, else one U+FFFD per byte."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)
        self._run = bytearray()

    def push(self, pieces: Iterable[str]) -> list[str]:
        out = []
        for piece in pieces:
            if self._is_byte(piece):
                self._run.append(int(piece[3:5], 16))
            else:
                out += self.finish()
                out.append(piece)
        return out

    def finish(self) -> list[str]:
        run, self._run = self._run, bytearray()
        try:
            return [run.decode()] if run else []
        except UnicodeDecodeError:
            return ["\ufffd"] * len(run)

    def _is_byte(self, piece: str) -> bool:
        return piece.startswith("<0x") and self._decoder.decode([piece]) != piece


class Utf8(Stage):
    """ByteLevel: each token is bytes, and the joined bytes are UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, pieces: Iterable[str]) -> list[str]:
        return [self._decoder.decode(b"".join(map(token_bytes, pieces)))]

    def finish(self) -> list[str]:
        return [self._decoder.decode(b"", final=True)]


class ReplaceText(Stage):
    """Replaces a string in one long text, from left to right."""

    def __init__(self, old: str, new: str) -> None:
        self._old = old
        self._new = new
        self._held = ""  # a possible beginning of `old`

    def push(self, pieces: Iterable[str]) -> list[str]:
        *found, rest = (self._held + "".join(pieces)).split(self._old)
        begin = len(rest) - length_of_beginning(rest, self._old)
        self._held = rest[begin:]
        return [self._new.join([*found, rest[:begin]])]

    def finish(self) -> list[str]:
        held, self._held = self._held, ""
        return [held]


class StripEnds(_DecoderStage):
    """Removes up to `start` and `stop` characters equal to `content` from the two ends of one long text."""

    def __init__(self, decoder: Decoder, content: str, start: int, stop: int) -> None:
        super().__init__(decoder)
        self._content = content
        self._start = start
        self._stop = stop
        self._begun = False  # the beginning is stripped
        self._held = ""

    def push(self, pieces: Iterable[str]) -> list[str]:
        text = self._held + "".join(pieces)
        if not self._begun:
            if len(text) < self._start + self._stop:
                self._held = text
                return []
            self._begun = True
            ends = text[: self._start]
            text = ends.lstrip(self._content) + text[self._start :]
        at = len(text) - self._stop
        self._held = text[at:]
        return [text[:at]]

    def finish(self) -> list[str]:
        if not self._begun:  # the two ends may meet
            return [self._decoder.decode([self._held])]
        return [self._held.rstrip(self._content)]


class Whole(_DecoderStage):
    """A decoder whose output can change with every token: it returns nothing before the last one."""

    def __init__(self, decoder: Decoder, *, joined: bool = False) -> None:
        super().__init__(decoder)
        self._joined = joined
        self._pieces: list[str] = []

    def push(self, pieces: Iterable[str]) -> list[str]:
        self._pieces += pieces
        return []

    def finish(self) -> list[str]:
        return [self._decoder.decode(["".join(self._pieces)] if self._joined else self._pieces)]


_TOKEN_STAGES: Mapping[str, type[_DecoderStage]] = {
    "Replace": EachToken,
    "Strip": EachToken,
    "WordPiece": FirstDiffers,
    "Metaspace": FirstDiffers,
    "BPEDecoder": LastDiffers,
    "CTC": WithoutRepeats,
    "ByteFallback": ByteRuns,
}


def length_of_beginning(text: str, of: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `of`."""
    at = text.find(of[0], max(0, len(text) - len(of) + 1))
    while at >= 0:
        if of.startswith(text[at:]):
            return len(text) - at
        at = text.find(of[0], at + 1)
    return 0


@lru_cache(maxsize=1)
def _byte_of_letter() -> Mapping[str, int]:
    """Return GPT-2's letters for bytes: printable Latin-1 maps to itself, the other 68 bytes to U+0100 and up."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    letters.update({chr(256 + i): b for i, b in enumerate(others)})
    return letters


def token_bytes(token: str) -> bytes:
    """Return the bytes of a byte-level token; a token with a letter outside the table is encoded as UTF-8."""
    table = _byte_of_letter()
    try:
        return bytes(table[letter] for letter in token)
    except KeyError:
        return token.encode("utf-8")


def run_stages(stages: Sequence[Stage], pieces: Iterable[str], *, last: bool = False) -> str:
    """Push tokens through all stages; last=True also finishes them."""
    out = list(pieces)
    for stage in stages:
        out = stage.push(out) + (stage.finish() if last else [])
    return "".join(out)
