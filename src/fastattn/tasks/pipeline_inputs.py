"""The inputs of pipelines: texts and pairs of texts, and how to tokenize them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from fastattn.api.model import Model
from fastattn.checks import check_count, check_flag, check_keywords, quote
from fastattn.errors import ContextLengthError, DTypeError, InputError
from fastattn.tokenizer import Tokenizer, check_text, is_list_like
from fastattn.tokenizer.call import PaddingArg, TruncationArg, read_strategy
from fastattn.tokenizer.inputs import text_or_pair
from fastattn.tokenizer.padding import read_padding
from fastattn.tokenizer.texts import check_items, read_items
from fastattn.tokenizer.truncation import DO_NOT_TRUNCATE

Pair = tuple[str, str | None]
Ids = list[NDArray[np.int32]]
Many: TypeAlias = "list[Any] | tuple[Any, ...] | NDArray[Any]"
DEFAULT_BATCH_SIZE = 32


class EncodeArgs(TypedDict, total=False):
    """How a pipeline tokenizes its texts, with transformers' names.

    padding changes nothing, because nothing is padded. max_length alone also turns on truncation.
    """

    truncation: TruncationArg
    max_length: int | None
    padding: PaddingArg | None
    add_special_tokens: bool | None


class BatchArgs(TypedDict, total=False):
    """batch_size: number of texts that run together; results do not depend on it. num_workers changes nothing."""

    batch_size: int | None
    num_workers: int | None


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


def read_batch_size(options: dict[str, Any]) -> int | None:
    """Remove batch_size and num_workers from `options` and check them. Raises InputError, DTypeError."""
    size, workers = options.pop("batch_size", None), options.pop("num_workers", None)
    if workers is not None:
        check_count("num_workers", workers)
    return None if size is None else check_count("batch_size", size, low=1)


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


def read_texts(inputs: object, name: str) -> tuple[list[str], bool]:
    """Return the texts, and whether the input was a single str. Raises DTypeError, InputError."""
    if isinstance(inputs, str) or not is_list_like(inputs):
        if isinstance(inputs, Mapping):
            raise _no_mapping(name, inputs)
        return [check_text(inputs, name)], True
    items = read_items(inputs, name)
    for i, item in enumerate(items):
        first = item[0] if isinstance(item, (list, tuple)) and item else item
        if isinstance(first, Mapping):
            raise _no_mapping(f"{name}[{i}]", first)
    return check_items(items, name, inputs), False


def names_of(name: str, count: int, *, single: bool) -> list[str]:
    """Return the name of each text of an argument, for messages."""
    return [name] if single else [f"{name}[{i}]" for i in range(count)]


def _no_mapping(name: str, found: Mapping[Any, Any]) -> DTypeError:
    if "role" in found or "content" in found:
        return DTypeError(
            f"{name}: expected str, got a chat message; chat templates are not supported: write the prompt as one text"
        )
    return DTypeError(f"{name}: expected str, got {type(found).__name__} {quote(found)}")


def read_pairs(inputs: object, name: str) -> tuple[list[Pair], bool]:
    """Return texts and pairs, and whether the input was a single str or a single mapping with "text" and "text_pair".

    In a sequence, a tuple or list of two str is a pair too. Raises DTypeError, InputError.
    """
    if isinstance(inputs, (str, Mapping)) or not is_list_like(inputs):
        return [_read_pair(inputs, name)], True
    items = read_items(inputs, name)
    if any(isinstance(item, (Mapping, list, tuple)) for item in items):
        return [_read_pair(item, f"{name}[{i}]") for i, item in enumerate(items)], False
    return [(text, None) for text in check_items(items, name, inputs)], False


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


def batches(
    model: Model,
    tokenizer: Tokenizer,
    items: Sequence[Pair],
    encoding: Encoding,
    *,
    batch_size: int | None,
    names: Sequence[str],
) -> Iterator[tuple[Ids, Ids]]:
    """Yield token ids and token type ids for `batch_size` texts at a time. names: those of the texts in messages.

    Raises ContextLengthError, InputError.
    """
    context = model.executor.program.max_positions
    size, limit = batch_size or DEFAULT_BATCH_SIZE, encoding.limit(tokenizer, context)
    for start in range(0, len(items), size):
        encoded = tokenizer.encode_pairs(
            items[start : start + size],
            add_special_tokens=encoding.add_special_tokens,
            max_length=limit,
            strategy=encoding.strategy,
        )
        for i, (ids, _) in enumerate(encoded, start):
            if len(ids) > context:
                raise ContextLengthError(
                    f"{names[i]}: {len(ids)} tokens, the model's context is {context}; truncation=True cuts the text",
                    index=i,
                    n_tokens=len(ids),
                    context=context,
                )
            check_fits(model, tokenizer, ids, names[i])
        yield [ids for ids, _ in encoded], [type_ids for _, type_ids in encoded]


def check_fits(model: Model, tokenizer: Tokenizer, ids: NDArray[np.int32], name: str) -> None:
    """Reject tokenizer ids that the model does not have. Raises InputError."""
    highest, n_ids = int(ids.max(initial=0)), model.config.vocab_size
    if highest >= n_ids:
        token = quote(tokenizer.convert_ids_to_tokens(highest))
        raise InputError(
            f"{name}: expected ids below the model's vocab_size {n_ids}, got {highest} for the token {token}; use the "
            "tokenizer of this model"
        )
