"""Reads the texts and pairs of one call, as transformers does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastattn.errors import DTypeError, InputError
from fastattn.tokenizer.texts import check_items, check_text, check_texts, is_list_like, read_items

Text = str | list[str]
_WORDS = "is_split_into_words=True reads a list as the words of one text"


@dataclass(frozen=True, slots=True)
class Inputs:
    """Texts or pairs, each a str or a list of words. batched: whether the call had a sequence of them."""

    pairs: list[tuple[Text, Text | None]]
    batched: bool


def read_inputs(name: str, text: Any, text_pair: Any = None, *, words: bool = False) -> Inputs:
    """Read one text (and its pair), or a sequence of texts or pairs; with `words`, each text is a sequence of words.

    A sequence of two str is two texts. Inside a sequence, a tuple or list of two texts is a pair. As in transformers,
    one text with an empty second text is not a pair. Raises DTypeError, InputError.
    """
    return _read_words(name, text, text_pair) if words else _read_texts(name, text, text_pair)


def read_pairs(name: str, texts: Any, hint: str = _WORDS) -> list[tuple[str, str | None]]:
    """Read a sequence of texts and pairs. Raises DTypeError, or InputError with a hint for a list of another length."""
    items = read_items(texts, name)
    if not any(isinstance(item, (tuple, list)) for item in items):
        return [(text, None) for text in check_items(items, name, texts)]
    return [text_or_pair(f"{name}[{i}]", item, hint) for i, item in enumerate(items)]


def _read_texts(name: str, text: Any, text_pair: Any) -> Inputs:
    pair_name = _pair_name(name)
    if not is_list_like(text):
        first = check_text(text, name)
        if is_list_like(text_pair):
            raise DTypeError(f"{pair_name}: expected one str, because {name} is one, got {type(text_pair).__name__}")
        second = None if text_pair is None else check_text(text_pair, pair_name)
        return Inputs([(first, second or None)], batched=False)
    if text_pair is not None:
        _check_batch(pair_name, text_pair, name)
        firsts, seconds = check_texts(text, name), check_texts(text_pair, pair_name)
        _check_lengths(pair_name, len(seconds), name, len(firsts))
        return Inputs(list(zip(firsts, seconds, strict=True)), batched=True)
    return Inputs([*read_pairs(name, text)], batched=True)


def text_or_pair(name: str, item: Any, hint: str = _WORDS) -> tuple[str, str | None]:
    """Read a text, or a list or tuple of two. Raises DTypeError, or InputError with a hint for any other number."""
    if not isinstance(item, (tuple, list)):
        return check_text(item, name), None
    if len(item) != 2:
        raise InputError(f"{name}: expected a str or a pair of them, got {len(item)} items; {hint}")
    return check_text(item[0], f"{name}[0]"), check_text(item[1], f"{name}[1]")


def _read_words(name: str, text: Any, text_pair: Any) -> Inputs:
    pair_name = _pair_name(name)
    _check_is_words(name, text)
    items = read_items(text, name)
    if not items or not is_list_like(items[0]):
        second = None
        if text_pair is not None:
            _check_is_words(pair_name, text_pair)
            second = check_texts(text_pair, pair_name)
        return Inputs([(check_texts(items, name), second or None)], batched=False)
    if text_pair is None:
        return Inputs([_words_or_pair(f"{name}[{i}]", item) for i, item in enumerate(items)], batched=True)
    _check_batch(pair_name, text_pair, name)
    seconds = read_items(text_pair, pair_name)
    _check_lengths(pair_name, len(seconds), name, len(items))
    pairs: list[tuple[Text, Text | None]] = []
    for i, (a, b) in enumerate(zip(items, seconds, strict=True)):
        pairs.append((check_texts(a, f"{name}[{i}]"), check_texts(b, f"{pair_name}[{i}]")))
    return Inputs(pairs, batched=True)


def _words_or_pair(name: str, item: Any) -> tuple[Text, Text | None]:
    _check_is_words(name, item)
    found = read_items(item, name)
    if not found or not is_list_like(found[0]):
        return check_texts(found, name), None
    if len(found) != 2:
        raise InputError(f"{name}: expected words, or a pair of lists of words, got {len(found)} lists")
    return check_texts(found[0], f"{name}[0]"), check_texts(found[1], f"{name}[1]")


def _check_is_words(name: str, value: Any) -> None:
    if not is_list_like(value):
        raise DTypeError(
            f"{name}: expected a sequence of words, because of is_split_into_words=True, got {type(value).__name__}"
        )


def _check_batch(pair_name: str, text_pair: Any, name: str) -> None:
    if not is_list_like(text_pair):
        found = type(text_pair).__name__
        raise DTypeError(f"{pair_name}: expected a sequence of as many texts as in {name}, got {found}")


def _check_lengths(pair_name: str, found: int, name: str, expected: int) -> None:
    if found != expected:
        raise InputError(f"{pair_name}: expected {expected} texts, as many as in {name}, got {found}")


def _pair_name(name: str) -> str:
    return {"text": "text_pair", "text_target": "text_pair_target"}.get(name, f"{name}_pair")
