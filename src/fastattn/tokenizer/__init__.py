"""Converts text to token ids and back."""

from fastattn.tokenizer.batch_encoding import BatchEncoding
from fastattn.tokenizer.files import has_tokenizer, load_tokenizer
from fastattn.tokenizer.texts import (
    MAX_TEXT_CHARS,
    check_one_dimension,
    check_text,
    check_texts,
    is_list_like,
    read_items,
)
from fastattn.tokenizer.tokenizer import Tokenizer

__all__ = [
    "MAX_TEXT_CHARS",
    "BatchEncoding",
    "Tokenizer",
    "check_one_dimension",
    "check_text",
    "check_texts",
    "has_tokenizer",
    "is_list_like",
    "load_tokenizer",
    "read_items",
]
