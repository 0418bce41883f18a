"""Validates texts before tokenization."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, Mapping, Sequence, Set
from itertools import islice
from numbers import Number
from typing import Any

from fastattn.checks import is_masked_array, is_text, quote
from fastattn.errors import DTypeError, InputError

MAX_TEXT_CHARS = 16 * 2**20  # longer texts are refused before tokenization
MAX_TEXTS = 2**26  # per call; more are refused before any is read
_NOT_SEQUENCES = (str, bytes, bytearray, memoryview, Mapping)


def check_text(text: object, name: str) -> str:
    """Return `text` as a valid str.

    Raises DTypeError if it is not a str, InputError for surrogates or a text that is too long. An Arrow scalar is
    converted to its value.
    """
    if not isinstance(text, str):
        text = unwrap(text)
        if not isinstance(text, str):
            raise DTypeError(f"{name}: expected str, got {_kind(text)}")
    if len(text) > MAX_TEXT_CHARS:
        raise InputError(f"{name}: expected at most {MAX_TEXT_CHARS} characters, got {len(text)}")
    if not text.isascii() and not is_text(text):
        place = next(i for i, char in enumerate(text) if not is_text(char))
        found = f"U+{ord(text[place]):04X}"
        raise InputError(f"{name}: expected Unicode text, got a lone surrogate {found} at {place}")
    return text if type(text) is str else str.__str__(text)


def check_texts(texts: object, name: str) -> list[str]:
    """Return a sequence of str (see `read_items`), or an iterator over them, as a list of checked texts."""
    return check_items(read_items(texts, name), name, texts)


def check_items(items: Sequence[object], name: str, source: object) -> list[str]:
    """Return the items of `source` as checked texts; for a Series, errors name the row."""
    return [check_text(item, where) for item, where in zip(items, names_of_items(items, name, source), strict=True)]


def names_of_items(items: Sequence[object], name: str, source: object) -> Iterator[str]:
    """Yield the names of the items of `source` for messages; of those that are not str, with the row of a Series."""
    labels = _row_labels(source)
    for i, item in enumerate(items):
        row = f" (row {quote(labels[i])})" if labels is not None and not isinstance(item, str) else ""
        yield f"{name}[{i}]{row}"


def read_items(sequence: object, name: str) -> list[Any]:
    """Return the items of a sequence without checking them.

    A sequence is a list, tuple, one-dimensional array, Series, column of a data set, Arrow array, anything else with
    `__len__` and `__getitem__`, or an iterator. Raises DTypeError for a str, bytes, a mapping or a set, InputError for
    tables, arrays of other dimensions, and more than MAX_TEXTS items. A known length is checked before reading items.
    """
    iterator, length = iterate_items(sequence, name), known_length(sequence)
    if length is not None and length > MAX_TEXTS:
        raise _too_many(name, length)
    items = list(islice(iterator, MAX_TEXTS + 1))
    if len(items) > MAX_TEXTS:
        raise _too_many(name, None)
    return items


def iterate_items(sequence: object, name: str) -> Iterator[Any]:
    """Return an iterator over the items of a sequence, which may be endless. Raises what `read_items` raises."""
    if not is_list_like(sequence):
        raise DTypeError(f"{name}: expected a sequence of str, got {_kind(sequence)}")
    if isinstance(sequence, Set) and not isinstance(sequence, KeysView):
        raise DTypeError(f"{name}: expected a sequence of str, got {type(sequence).__name__}, which has no order")
    check_one_dimension(sequence, name)
    return _iterate(sequence, known_length(sequence))


def check_one_dimension(texts: object, name: str) -> None:
    """Refuse tables and arrays of other dimensions: iterating over a DataFrame gives its column names."""
    shape = getattr(texts, "shape", None)
    if isinstance(shape, tuple) and len(shape) != 1:
        kind = type(texts).__name__
        hint = "; pass one column" if hasattr(texts, "columns") else ""
        raise InputError(f"{name}: expected one dimension of str, got a {kind} of shape {quote(shape)}{hint}")


def is_list_like(value: object) -> bool:
    """Return whether a value can contain several texts: an iterable, or anything with `__len__` and `__getitem__`.

    False for str, bytes and mappings.
    """
    if isinstance(value, _NOT_SEQUENCES):
        return False
    if hasattr(value, "as_py"):  # an Arrow scalar
        return False
    return isinstance(value, Iterable) or _is_indexable(value)


def _is_indexable(value: object) -> bool:
    return all(hasattr(type(value), method) for method in ("__len__", "__getitem__"))


def _iterate(sequence: Any, length: int | None) -> Iterator[Any]:
    if isinstance(sequence, Iterable):
        return iter(sequence)
    return (sequence[i] for i in range(length or 0))


def known_length(sequence: Any) -> int | None:
    """Return the number of items; None for iterators, and for iterables that do not know their length."""
    if isinstance(sequence, Iterator) or not hasattr(type(sequence), "__len__"):
        return None
    try:
        return len(sequence)
    except TypeError:  # such as tqdm over a generator, or a DataLoader of an IterableDataset
        return None


def _too_many(name: str, found: int | None) -> InputError:
    end = "more" if found is None else str(found)
    return InputError(f"{name}: expected at most {MAX_TEXTS} texts in one call, got {end}; split them into parts")


def unwrap(value: Any) -> Any:
    """Return the Python value of an Arrow scalar; other values are unchanged."""
    as_py = getattr(value, "as_py", None)
    return as_py() if callable(as_py) else value


def _row_labels(texts: Any) -> Any:
    """Return the index of a pandas Series, None if it is 0, 1, 2 and so on."""
    index = getattr(texts, "index", None)
    if index is None or callable(index) or type(index).__name__ == "RangeIndex" or not _is_indexable(index):
        return None
    return index


def _kind(value: object) -> str:
    """Return the type of a value for a message, with the value if it is missing or a number."""
    kind = type(value).__name__
    is_nan = isinstance(value, Number) and value != value  # other types may refuse the comparison
    if value is None or kind in ("NAType", "NaTType", "MaskedConstant") or is_nan:
        shown = "None" if value is None else "a missing value" if is_masked_array(value) else None
        return f"{shown or f'{kind} {value!s:.20}'}; fill or drop missing texts"
    return f"{kind} {quote(value)}" if isinstance(value, (int, float)) else kind
