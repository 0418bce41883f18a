"""Texts as people pass them, checked before any tokenizer sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fastattn.errors import DTypeError, InputError

MAX_TEXT_CHARS = 16 * 2**20  # a longer text is refused before it is tokenised


def check_text(text: object, name: str) -> str:
    """`text` as a str that can be encoded: DTypeError if not a str, InputError for surrogates or too long a text."""
    if not isinstance(text, str):
        raise DTypeError(f"{name}: expected str, got {type(text).__name__}")
    if len(text) > MAX_TEXT_CHARS:
        raise InputError(f"{name}: expected at most {MAX_TEXT_CHARS} characters, got {len(text)}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X}"
            raise InputError(f"{name}: expected Unicode text, got a lone surrogate {found} at {error.start}") from None
    return text


def check_texts(texts: object, name: str) -> list[str]:
    """A list, tuple, array or pandas Series of str, or another iterable, as a list of checked texts."""
    if isinstance(texts, (str, bytes, bytearray, Mapping)) or not isinstance(texts, Iterable):
        raise DTypeError(f"{name}: expected a sequence of str, got {type(texts).__name__}")
    check_one_dimension(texts, name)
    return [check_text(text, f"{name}[{i}]") for i, text in enumerate(texts)]


def check_one_dimension(texts: object, name: str) -> None:
    """Refuse arrays of more dimensions and tables: iterating over a DataFrame gives the names of its columns."""
    shape = getattr(texts, "shape", (0,))
    if len(shape) != 1:
        kind = type(texts).__name__
        raise InputError(f"{name}: expected one dimension of str, got a {kind} of shape {tuple(shape)}")


def is_list_like(value: object) -> bool:
    """True for what holds several texts: list, tuple, ndarray, pandas Series and Index, but not str or Mapping."""
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, bytearray, Mapping))
