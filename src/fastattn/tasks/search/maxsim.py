"""MaxSim: for each vector of a query, the best score of a document's vectors; their sum (Khattab and Zaharia 2020).

https://arxiv.org/abs/2004.12832 defines it. A score depends only on its query and its document, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from fastattn.checks import check_flag
from fastattn.errors import DTypeError, InputError
from fastattn.tasks.search.similarity import product
from fastattn.tasks.search.vectors import BLOCK_ELEMENTS, Rows, read_matrix

# The score of a document without vectors: below that of every other document, as in sentence-transformers.
EMPTY_DOCUMENT = -1e9
_log = logging.getLogger("fastattn")


def maxsim(a: object, b: object, *, length_normalize: bool = False) -> Rows:
    """Return the MaxSim scores float32 [n_a, n_b] of queries and documents.

    a, b: a list with float32 [n_tokens, d] of each text, or the array of one text. The score is the sum over the
    vectors of the query of the largest product with a vector of the document. length_normalize: divide it by the number
    of vectors of the query. A document without vectors gets -1e9, with a warning. Raises DTypeError, InputError.
    """
    queries, documents = _read(a, b)
    mean = check_flag("length_normalize", length_normalize)
    found = np.zeros((len(queries), len(documents)), np.float32)
    for first, part in _groups(queries):
        rows = np.concatenate([np.zeros((0, queries[0].shape[1]), np.float32), *part])
        for start, group in _groups(documents, len(rows)):
            found[first : first + len(part), start : start + len(group)] = _scores(rows, part, group)
    if mean:
        counts = np.array([max(1, len(query)) for query in queries])
        found /= counts.astype(np.float32)[:, None]
    return found


def mean_maxsim(a: object, b: object) -> Rows:
    """Return `maxsim` divided by the number of vectors of each query, float32 [n_a, n_b].

    Raises DTypeError, InputError.
    """
    return maxsim(a, b, length_normalize=True)


def maxsim_pairwise(a: object, b: object, *, length_normalize: bool = False) -> Rows:
    """Return the MaxSim scores float32 [n] of each query with the document at the same index.

    a, b: as in `maxsim`. Raises DTypeError, InputError.
    """
    queries, documents = _read(a, b)
    if len(queries) != len(documents):
        raise InputError(f"b: expected {len(queries)} documents, as many as queries, got {len(documents)}")
    found = [
        maxsim([query], [document], length_normalize=length_normalize)[0, 0]
        for query, document in zip(queries, documents, strict=True)
    ]
    return np.array(found, np.float32)


def mean_maxsim_pairwise(a: object, b: object) -> Rows:
    """Return `maxsim_pairwise` divided by the number of vectors of each query, float32 [n].

    Raises DTypeError, InputError.
    """
    return maxsim_pairwise(a, b, length_normalize=True)


def _scores(rows: Rows, queries: Sequence[Rows], documents: Sequence[Rows]) -> Rows:
    """Return the scores of queries, whose vectors together are `rows`, and of some documents."""
    found = np.full((len(queries), len(documents)), EMPTY_DOCUMENT, np.float32)
    full = [i for i, document in enumerate(documents) if len(document)]
    if len(full) < len(documents):
        _log.warning("%d documents have no vectors; their score is %g", len(documents) - len(full), EMPTY_DOCUMENT)
    if not full:
        return found
    products = product(rows, np.concatenate([documents[i] for i in full]))
    starts = np.cumsum([0, *(len(documents[i]) for i in full[:-1])])
    best = np.maximum.reduceat(products, starts, axis=1) if len(rows) else np.zeros((0, len(full)), np.float32)
    end = 0
    for i, query in enumerate(queries):
        end += len(query)
        found[i, full] = best[end - len(query) : end].sum(axis=0, dtype=np.float64)
    return found


def _groups(texts: Sequence[Rows], other: int | None = None) -> Iterator[tuple[int, Sequence[Rows]]]:
    """Yield groups of texts that fit in one block, at least one text each, with the index of their first text.

    other: the number of vectors on the other side; None: the width of a vector.
    """
    first, total = 0, 0
    for i, text in enumerate(texts):
        size = len(text) * max(1, text.shape[1] if other is None else other)
        if i > first and total + size > BLOCK_ELEMENTS:
            yield first, texts[first:i]
            first, total = i, 0
        total += size
    if first < len(texts):
        yield first, texts[first:]


def _read(a: object, b: object) -> tuple[list[Rows], list[Rows]]:
    queries, documents = _texts(a, "a"), _texts(b, "b")
    widths = {text.shape[1] for text in (*queries, *documents)}
    if len(widths) > 1:
        raise InputError(f"b: expected vectors of one length, got lengths {sorted(widths)}")
    return queries, documents


def _texts(value: object, name: str) -> list[Rows]:
    """Return float32 [n_tokens, d] of each text."""
    if isinstance(value, (list, tuple)):
        return [cast(Rows, read_matrix(item, f"{name}[{i}]").astype(np.float32)) for i, item in enumerate(value)]
    ndim = getattr(value, "ndim", None)
    if ndim == 3:
        raise InputError(f"{name}: expected a list of arrays [n_tokens, d], got one array with padding; pass a list")
    if ndim != 2:
        raise DTypeError(f"{name}: expected a list of arrays [n_tokens, d] or one array, got {type(value).__name__}")
    return [cast(Rows, read_matrix(value, name).astype(np.float32))]
