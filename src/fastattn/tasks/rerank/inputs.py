"""Reads the pairs of texts of a call."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastattn.errors import DTypeError, InputError
from fastattn.tasks.sentence.text_model import Pairs
from fastattn.tokenizer import check_text, is_list_like, read_items
from fastattn.tokenizer.inputs import text_or_pair

_WANTED = "expected a pair of texts, or a sequence of pairs"


def read_pair_inputs(name: str, inputs: Any) -> tuple[Pairs, bool]:
    """Return the pairs, and whether the input was a single one: a list, tuple or array whose first item is a text.

    A batch is a sequence or an iterator of pairs, or an array [n, 2]. Raises DTypeError, InputError.
    """
    if hasattr(inputs, "columns"):
        raise InputError(f"{name}: {_WANTED}, got a table; pass list(zip(table['query'], table['text']))")
    if isinstance(inputs, str) or not is_list_like(inputs):
        raise DTypeError(f"{name}: {_WANTED}, got {type(inputs).__name__}")
    if isinstance(inputs, np.ndarray) and inputs.ndim == 2:
        inputs = inputs.tolist()
    single = isinstance(inputs, (list, tuple, np.ndarray)) and len(inputs) > 0 and isinstance(inputs[0], str)
    items = read_items(inputs, name)
    if single:
        return [read_pair(name, items)], True
    return [read_pair(f"{name}[{i}]", item) for i, item in enumerate(items)], False


def read_pair(name: str, item: Any) -> tuple[str, str]:
    """Return a pair of texts. Raises DTypeError, InputError."""
    if isinstance(item, np.ndarray):
        item = item.tolist()
    first, second = text_or_pair(name, item, "a pair has two texts")
    if second is None:
        raise DTypeError(f"{name}: expected a pair of texts, got one text")
    return first, second


def read_query(query: object, documents: object) -> tuple[Pairs, list[str]]:
    """Return the pairs of a query with each document, and the documents. Raises DTypeError, InputError."""
    first = check_text(query, "query")
    texts = [check_text(text, f"documents[{i}]") for i, text in enumerate(read_items(documents, "documents"))]
    return [(first, text) for text in texts], texts
