"""Uses the library's tokenizer without changing it: truncation, padding and special tokens are call arguments.

The library stores truncation, padding and `encode_special_tokens` in the tokenizer itself, so threads with different
arguments would interfere. Here a copy without a post-processor encodes the text, the `Encoding` is truncated, and
`post_process` of the original adds the special tokens. The copies share the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from fastattn.errors import InputError
from fastattn.tokenizer.library import library_errors, uses_threads
from fastattn.tokenizer.truncation import Truncation, truncate

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Encoding as RawEncoding
    from tokenizers import Tokenizer as RawTokenizer

    from fastattn.tokenizer.marian import MarianSteps

_GROUP_TEXTS = 32  # texts of one library call; enough to make its overhead small
_GROUP_CHARS = 2**16  # bounds the memory of their encodings, and the time until Ctrl-C is handled


class Encoder:
    """The library's tokenizer and its vocabulary. It is immutable; `with_tokens` returns a new one."""

    def __init__(self, raw: RawTokenizer, steps: MarianSteps | None = None, *, target: bool = False) -> None:
        """Take ownership of `raw`, and remove its padding and truncation.

        steps: steps that the library does not have. target: whether to use the steps for the target language.
        """
        raw.no_padding()
        raw.no_truncation()
        raw.encode_special_tokens = False
        if raw.post_processor is None:
            raw.post_processor = ends_processor(None, None)
        self.special_ids = _special_ids(raw)
        """The ids that decoding with skip_special_tokens omits."""
        if steps is not None:
            steps.attach(raw, target=target)
        self.raw, self.steps = raw, steps
        self._plain = shared_copy(raw)

    @cached_property
    def _splitting(self) -> RawTokenizer:
        """Like `_plain`, but special tokens in a text are split like other text."""
        if self.steps is not None:  # as in transformers' Python tokenizers, added tokens are not matched
            return self.steps.without_added_tokens(self.raw)
        found = shared_copy(self.raw)
        found.encode_special_tokens = True
        return found

    @cached_property
    def target(self) -> Encoder:
        """The encoder of `text_target`."""
        if self.steps is None:
            return self
        return Encoder(full_copy(self.raw), self.steps, target=True)

    def to_str(self) -> str:
        """Return the tokenizer as JSON, without `steps`."""
        raw = self.raw
        if self.steps is not None:
            raw = full_copy(raw)
            raw.pre_tokenizer = raw.decoder = None
        return raw.to_str()

    @cached_property
    def added_tokens(self) -> dict[int, AddedToken]:
        """The added tokens by id."""
        return dict(sorted(self.raw.get_added_tokens_decoder().items()))

    @cached_property
    def id_limit(self) -> int:
        """One more than the highest id; larger than the number of tokens if the vocabulary has holes."""
        return 1 + max(self.raw.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(
        self,
        first: str | Sequence[str],
        second: str | Sequence[str] | None = None,
        *,
        name: str = "text",
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        words: bool = False,
        truncation: Truncation | None = None,
        overflow: bool = False,
    ) -> RawEncoding:
        """Encode a text or pair. Raises InputError.

        words: whether the texts are lists of words. overflow: whether the parts that truncation removes are needed,
        with correct token types.
        """
        plain = self._splitting if split_special_tokens else self._plain
        with library_errors(lambda reason: InputError(f"{name}: the tokenizer refuses it: {reason}")):
            a = plain.encode(first, is_pretokenized=words, add_special_tokens=False)
            b = None if second is None else plain.encode(second, is_pretokenized=words, add_special_tokens=False)
        if b is not None and truncation is not None and overflow:
            b = _with_type(b, 1)
        return self._finish(a, b, name, truncation, add_special_tokens=add_special_tokens)

    def encode_all(
        self,
        pairs: Iterable[tuple[str, str | None]],
        name_of: Callable[[int], str],
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        truncation: Truncation | None = None,
    ) -> Iterator[RawEncoding]:
        """Encode texts and pairs like `encode`, in order. name_of: returns the name of a text for messages.

        If the library uses no threads of its own, a call encodes several texts and releases the GIL meanwhile.
        """
        size = 1 if self.steps is not None or uses_threads() else _GROUP_TEXTS
        start = 0
        for group in _groups(pairs, size):
            found = None if size == 1 else self._try_group(group, split_special_tokens=split_special_tokens)
            for i, (first, second) in enumerate(group):
                name = name_of(start + i)
                if found is not None:
                    a, b = next(found), None if second is None else next(found)
                    yield self._finish(a, b, name, truncation, add_special_tokens=add_special_tokens)
                else:
                    yield self.encode(
                        first,
                        second,
                        name=name,
                        add_special_tokens=add_special_tokens,
                        split_special_tokens=split_special_tokens,
                        truncation=truncation,
                    )
            start += len(group)

    def _try_group(
        self, group: Sequence[tuple[str, str | None]], *, split_special_tokens: bool
    ) -> Iterator[RawEncoding] | None:
        """Encode the texts of a group in one call; return None if the library refuses one of them."""
        plain = self._splitting if split_special_tokens else self._plain
        texts = [text for pair in group for text in pair if text is not None]
        try:
            with library_errors(InputError):
                return iter(plain.encode_batch(texts, add_special_tokens=False))
        except InputError:  # its message does not name the text
            return None

    def _finish(
        self,
        a: RawEncoding,
        b: RawEncoding | None,
        name: str,
        truncation: Truncation | None,
        *,
        add_special_tokens: bool,
    ) -> RawEncoding:
        """Cut a text or pair, and add the special tokens."""
        if truncation is not None:
            n_special = self.n_special(pair=b is not None) if add_special_tokens else 0
            truncate(a, b, truncation, n_special=n_special, name=name)
        with library_errors(lambda reason: InputError(f"{name}: the tokenizer refuses it: {reason}")):
            return self.raw.post_process(a, b, add_special_tokens)

    def n_special(self, *, pair: bool) -> int:
        """Return the number of special tokens added to a text or pair."""
        return int(self.raw.num_special_tokens_to_add(pair))

    def with_tokens(self, tokens: Sequence[AddedToken], *, special: bool) -> tuple[Encoder, int]:
        """Return an encoder with more tokens, and how many of them are new."""
        raw = full_copy(self.raw)
        with library_errors(lambda reason: InputError(f"tokens: the tokenizer refuses them: {reason}")):
            count = raw.add_special_tokens(list(tokens)) if special else raw.add_tokens(list(tokens))
        return Encoder(raw, self.steps), int(count)

    def with_ends(self, bos: tuple[str, int] | None = None, eos: tuple[str, int] | None = None) -> Encoder:
        """Return an encoder whose only special tokens are `bos` before and `eos` after each text."""
        raw = shared_copy(self.raw)
        raw.post_processor = ends_processor(bos, eos)
        return Encoder(raw, self.steps)


def ends_processor(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> Any:
    """Return a post-processor that puts `bos` before and `eos` after each text; the texts of a pair have types 0, 1."""
    from tokenizers.processors import TemplateProcessing

    def side(text: str, kind: int) -> list[str]:
        before, after = ([f"{token[0]}:{kind}"] if token else [] for token in (bos, eos))
        return [*before, f"{text}:{kind}", *after]

    special = list(dict.fromkeys(token for token in (bos, eos) if token))
    return TemplateProcessing(single=side("$A", 0), pair=[*side("$A", 0), *side("$B", 1)], special_tokens=special)


def _special_ids(raw: RawTokenizer) -> frozenset[int]:
    """Return the ids that decoding with skip_special_tokens omits.

    The flags of the tokens are not sufficient: the library does not omit a special token whose text the normalizer
    changed, and it omits one that was special when it was first added.
    """
    decoder, raw.decoder = raw.decoder, None  # the decoder may change a text, or fail for a short one
    added = raw.get_added_tokens_decoder()
    found = frozenset(i for i in added if not raw.decode([i], skip_special_tokens=True))
    if decoder is not None:
        raw.decoder = decoder
    return found


def shared_copy(raw: RawTokenizer) -> RawTokenizer:
    """Return a tokenizer with the same vocabulary (shared), rules and added tokens, without the post-processor."""
    from tokenizers import Tokenizer as Raw

    copy = Raw(raw.model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        found = getattr(raw, part)
        if found is not None:
            setattr(copy, part, found)
    added = raw.get_added_tokens_decoder()
    copy.add_tokens([added[i] for i in sorted(added)])
    if copy.get_added_tokens_decoder() == added:
        return copy
    content = json.loads(raw.to_str())
    content["post_processor"] = None
    return Raw.from_str(json.dumps(content))


def full_copy(raw: RawTokenizer) -> RawTokenizer:
    """Return a tokenizer with the same vocabulary (shared), rules, added tokens and post-processor."""
    copy = shared_copy(raw)
    copy.post_processor = raw.post_processor
    return copy


def _groups(pairs: Iterable[tuple[str, str | None]], size: int) -> Iterator[list[tuple[str, str | None]]]:
    """Yield lists of at most `size` texts and pairs, and at most _GROUP_CHARS characters; a longer text comes alone."""
    group: list[tuple[str, str | None]] = []
    n_chars = 0
    for pair in pairs:
        length = len(pair[0]) + len(pair[1] or "")
        if group and (len(group) == size or n_chars + length > _GROUP_CHARS):
            yield group
            group, n_chars = [], 0
        group.append(pair)
        n_chars += length
    if group:
        yield group


def _with_type(encoding: RawEncoding, type_id: int) -> RawEncoding:
    """Set the token type of an encoding before truncation, because the removed parts of a pair retain their type."""
    from tokenizers import Encoding

    state = json.loads(encoding.__getstate__())
    state["type_ids"] = [type_id] * len(state["type_ids"])
    changed = Encoding()
    changed.__setstate__(json.dumps(state).encode())
    return changed
