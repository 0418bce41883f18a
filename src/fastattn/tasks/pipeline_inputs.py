"""The inputs of pipelines: texts and pairs of texts, and how to tokenize them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from fastattn.api.model import Model
from fastattn.checks import check_count, check_flag, check_keywords, quote
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.tasks.pipeline_source import Source, read_source
from fastattn.tasks.pipeline_steps import Named, Part, StepLimits
from fastattn.tokenizer import Tokenizer, check_text, is_list_like
from fastattn.tokenizer.call import PaddingArg, TruncationArg, read_strategy
from fastattn.tokenizer.chat_template import read_messages
from fastattn.tokenizer.inputs import text_or_pair
from fastattn.tokenizer.padding import read_padding
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE

Pair = tuple[str, str | None]
Ids = list[NDArray[np.int32]]
Many: TypeAlias = "list[Any] | tuple[Any, ...] | NDArray[Any]"


class EncodeArgs(TypedDict, total=False):
    """How a pipeline tokenizes its texts, with transformers' names.

    padding changes nothing, because nothing is padded. max_length alone also turns on truncation.
    """

    truncation: TruncationArg
    max_length: int | None
    padding: PaddingArg | None
    add_special_tokens: bool | None


class BatchArgs(TypedDict, total=False):
    """How texts share steps; results do not depend on it. num_workers changes nothing.

    batch_size: number of texts that run together (32). max_batch_tokens: number of tokens that run together; without
    batch_size, any number of texts. Texts of similar length share a step. show_progress_bar: None shows a bar on a
    terminal if a call for a sequence takes long; True always shows one, even for an iterator.
    """

    batch_size: int | None
    max_batch_tokens: int | None
    num_workers: int | None
    show_progress_bar: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """The checked arguments of `EncodeArgs`. max_length: as given."""

    strategy: str = DO_NOT_TRUNCATE
    max_length: int | None = None
    add_special_tokens: bool = True

    @property
    def cuts(self) -> bool:
        """Whether long texts are cut."""
        return self.strategy != DO_NOT_TRUNCATE

    def limit(self, tokenizer: Tokenizer, context: int) -> int | None:
        """Return the maximum number of tokens of a text; None if nothing is cut."""
        if not self.cuts:
            return None
        return min(tokenizer.model_max_length, context) if self.max_length is None else self.max_length

    def advice(self, context: int) -> str:
        """Return what to do about a text that is longer than the model's context."""
        return f"use a max_length of at most {context}" if self.cuts else "truncation=True cuts the text"


def read_encoding(options: dict[str, Any], *, reject_fixed_padding: bool = False) -> Encoding:
    """Remove the arguments of `EncodeArgs` from `options` and check them. Raises InputError, DTypeError.

    reject_fixed_padding: reject padding="max_length", which would change the shape of a result.
    """
    given = {name: options.pop(name, None) for name in EncodeArgs.__annotations__}
    padding = False if given["padding"] is None else given["padding"]
    if reject_fixed_padding and read_padding("padding", padding) == "max_length":
        raise InputError('padding: expected True, "longest" or False, got "max_length"; results have no padding')
    length = None if given["max_length"] is None else check_count("max_length", given["max_length"], low=1)
    special = given["add_special_tokens"]
    return Encoding(
        strategy=read_strategy(given["truncation"], length, padding),
        max_length=length,
        add_special_tokens=True if special is None else check_flag("add_special_tokens", special),
    )


def read_limits(options: dict[str, Any]) -> StepLimits:
    """Remove the arguments of `BatchArgs` from `options` and check them. Raises InputError, DTypeError."""
    given = {name: options.pop(name, None) for name in BatchArgs.__annotations__}
    if given["num_workers"] is not None:
        check_count("num_workers", given["num_workers"])
    size, tokens, show = given["batch_size"], given["max_batch_tokens"], given["show_progress_bar"]
    return StepLimits(
        batch_size=None if size is None else check_count("batch_size", size, low=1),
        max_batch_tokens=None if tokens is None else check_count("max_batch_tokens", tokens, low=1),
        show_progress_bar=None if show is None else check_flag("show_progress_bar", show),
    )


def merge_kwargs(options: dict[str, Any], name: str) -> None:
    """Replace a mapping of tokenizer arguments with its items. Raises InputError, DTypeError."""
    inner = options.pop(name, None)
    if inner is None:
        return
    if not isinstance(inner, Mapping):
        raise DTypeError(f"{name}: expected a mapping of arguments, got {type(inner).__name__}")
    check_keywords(map(str, inner), EncodeArgs.__annotations__, name)
    for key, value in inner.items():
        if options.get(key) is not None:
            raise InputError(f"{key}: expected one value, got one as a keyword and one in {name}")
        options[key] = value


def read_texts(inputs: object, name: str) -> Source[str]:
    """Return the texts from a str, a sequence or an iterator. Raises DTypeError, InputError."""
    return read_source(inputs, name, _read_text)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation: messages with a role and content."""

    messages: list[dict[str, Any]]


def read_texts_or_chats(inputs: object, name: str) -> Source[str | Chat]:
    """Return texts and chats. A list of messages is one chat. Raises DTypeError, InputError."""
    return read_source(
        inputs, name, _read_text_or_chat, is_one=lambda found: not is_list_like(found) or _is_chat(found)
    )


def _is_chat(item: object) -> bool:
    return isinstance(item, (list, tuple)) and bool(item) and isinstance(item[0], Mapping)


def _read_text_or_chat(item: object, name: str) -> str | Chat:
    if not _is_chat(item):
        return _read_text(item, name)
    read_messages(item, name)
    chat = Chat([dict(message) for message in cast("Sequence[Mapping[str, Any]]", item)])
    for i, message in enumerate(chat.messages):
        if "content" not in message:
            raise InputError(f"{name}[{i}]: expected a message with a role and content, got {quote(sorted(message))}")
    return chat


def _read_text(item: object, name: str) -> str:
    first = item[0] if isinstance(item, (list, tuple)) and item else item
    if isinstance(first, Mapping):
        raise _no_mapping(name, first)
    return check_text(item, name)


def _no_mapping(name: str, found: Mapping[Any, Any]) -> DTypeError:
    if "role" in found or "content" in found:
        return DTypeError(
            f'{name}: expected str, got a chat message; pipeline("text-generation") takes chats, which are lists of '
            "messages"
        )
    return DTypeError(f"{name}: expected str, got {type(found).__name__} {quote(found)}")


def read_pairs(inputs: object, name: str) -> Source[Pair]:
    """Return texts and pairs: one str or one mapping with "text" and "text_pair", a sequence, or an iterator.

    In a sequence, a tuple or list of two str is a pair too. Raises DTypeError, InputError.
    """
    return read_source(inputs, name, _read_pair, is_one=is_one_mapping)


def is_one_mapping(inputs: object) -> bool:
    """Return whether an input is one item, if mappings are items too."""
    return isinstance(inputs, Mapping) or not is_list_like(inputs)


def _read_pair(item: object, name: str) -> Pair:
    if isinstance(item, Mapping):
        if not {"text"} <= set(item) <= {"text", "text_pair"}:
            raise InputError(f'{name}: expected the keys "text" and "text_pair", got {quote(sorted(map(str, item)))}')
        pair = item.get("text_pair")
        return check_text(item["text"], name), None if pair is None else check_text(pair, name) or None
    if isinstance(item, list) and len(item) == 1 and isinstance(item[0], (list, tuple)):
        item = item[0]  # as older versions of transformers accepted
    first, second = text_or_pair(name, item, 'a pair is {"text": ..., "text_pair": ...}')
    return first, second or None


@dataclass(frozen=True, slots=True)
class PairEncoder:
    """Tokenizes the texts and pairs of a call. limit: the maximum number of tokens, None if nothing is cut."""

    model: Model
    tokenizer: Tokenizer
    encoding: Encoding
    limit: int | None

    @classmethod
    def of(cls, model: Model, tokenizer: Tokenizer, encoding: Encoding) -> PairEncoder:
        """Return the encoder of a call."""
        return cls(model, tokenizer, encoding, encoding.limit(tokenizer, model.executor.program.max_positions))

    def encode(self, index: int, item: Pair, name: str) -> Part:
        """Tokenize one text or pair. Raises ContextLengthError, InputError."""
        return next(self.encode_all([Named(index, item, name)]))

    def encode_all(self, items: Iterable[Named[Pair]]) -> Iterator[Part]:
        """Tokenize texts and pairs. Raises ContextLengthError, InputError."""
        given: list[Named[Pair]] = []
        names: list[str] = []

        def pairs() -> Iterator[Pair]:
            for one in items:
                given.append(one)
                names.append(one.name)
                yield one.item

        found = self.tokenizer.encode_pairs(
            pairs(),
            add_special_tokens=self.encoding.add_special_tokens,
            max_length=self.limit,
            strategy=self.encoding.strategy,
            names=names,
        )
        advice = self.encoding.advice(self.model.executor.program.max_positions)
        for one, (ids, type_ids) in zip(given, found, strict=True):
            check_length(self.model, one.index, ids, one.name, advice)
            check_fits(self.model, self.tokenizer, ids, one.name)
            yield Part(one.name, ids, type_ids)

    def encode_texts(self, items: Iterable[Named[str]]) -> Iterator[Part]:
        """Tokenize texts. Raises ContextLengthError, InputError."""
        return self.encode_all(Named(one.index, (one.item, None), one.name) for one in items)


def need_tokens(part: Part) -> Part:
    """Return a sequence with at least one token. Raises InputError for others, which a classifier cannot read."""
    if not len(part.ids):
        raise InputError(f"{part.name}: expected at least one token, got none; use add_special_tokens=True")
    return part


def types_of(model: Model, tokenizer: Tokenizer, parts: Sequence[Part]) -> Ids | None:
    """Return the token types of a step; None if the tokenizer or the model has none."""
    return model.types_of(tokenizer, [part.type_ids for part in parts])


def check_length(model: Model, index: int, ids: NDArray[np.int32], name: str, hint: str) -> None:
    """Reject more tokens than the model's context. hint: what to do. Raises ContextLengthError."""
    context = model.executor.program.max_positions
    if len(ids) > context:
        raise ContextLengthError(
            f"{name}: {len(ids)} tokens, the model's context is {context}; {hint}",
            index=index,
            n_tokens=len(ids),
            context=context,
        )


def check_fits(model: Model, tokenizer: Tokenizer, ids: NDArray[np.int32], name: str) -> None:
    """Reject tokenizer ids that the model does not have. Raises InputError."""
    highest, n_ids = int(ids.max(initial=0)), model.config.vocab_size
    if highest >= n_ids:
        token = quote(tokenizer.convert_ids_to_tokens(highest))
        raise InputError(
            f"{name}: expected ids below the model's vocab_size {n_ids}, got {highest} for the token {token}; use the "
            "tokenizer of this model"
        )
