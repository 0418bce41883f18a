"""Files of word vectors for tests, and what fastText's source defines."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest


def write(path: Path, data: str | bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def load_gensim() -> tuple[Any, Path]:
    """Return the package gensim and the folder of its test files."""
    pytest.importorskip("gensim", reason="needs gensim")
    import gensim.models.fasttext
    import gensim.test

    return gensim, Path(gensim.test.__file__).parent / "test_data"


def fnv(ngram: bytes) -> int:
    """Return the hash of fastText, as its source defines it."""
    value = 2166136261
    for byte in ngram:
        signed = byte - 256 if byte > 127 else byte
        value = ((value ^ (signed & 0xFFFFFFFF)) * 16777619) & 0xFFFFFFFF
    return value


def ngrams_of(word: str, low: int, high: int) -> list[bytes]:
    marked = f"<{word}>"
    return [
        marked[i : i + n].encode()
        for i in range(len(marked))
        for n in range(max(low, 1), high + 1)
        if i + n <= len(marked) and not (n == 1 and (i == 0 or i + 1 == len(marked)))
    ]


def fasttext_file(
    words: list[str],
    own: Any,
    grams: Any,
    *,
    low: int = 2,
    high: int = 3,
    **change: Any,
) -> bytes:
    """Return a `.bin` file of fastText."""
    arguments = {
        "dim": own.shape[1], "ws": 5, "epoch": 5, "minCount": 1, "neg": 5, "wordNgrams": 1, "loss": 2, "model": 1,
        "bucket": len(grams), "minn": low, "maxn": high, "lrUpdateRate": 100,
    } | {key: value for key, value in change.items() if key in ("model", "dim", "maxn", "bucket")}  # fmt: skip
    data = struct.pack("<2i", 793712314, change.get("version", 12)) + struct.pack("<12id", *arguments.values(), 1e-4)
    n = change.get("n_words", len(words))
    data += struct.pack("<3iqq", n, n, change.get("labels", 0), 100, change.get("pruned", -1))
    for word in words:
        data += word.encode() + b"\0" + struct.pack("<qb", 3, change.get("kind", 0))
    data += struct.pack("<?2q", change.get("quantized", False), len(own) + len(grams), own.shape[1])
    data += own.tobytes() + grams.tobytes()
    return data + struct.pack("<?2q", False, len(own), own.shape[1]) + own.tobytes()
